"""The tokenizer of a Hugging Face model directory: transformers' interface without transformers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.text import chat_messages, detokenizer
from forerun.text import chat_template as templates
from forerun.text.tokenizer_backend import read_backend
from forerun.text.tokenizer_files import NAMED_TOKENS, TokenizerFiles
from forerun.text.tool_schemas import tool_schemas
from forerun.util.checks import (
    check_bool,
    check_choice,
    check_dict,
    check_int,
    check_list,
    check_str,
    is_integral,
)
from forerun.util.interrupts import pass_on_interrupt
from forerun.vllm_fields.arguments import checked_methods

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_log = logging.getLogger("forerun")
_NO_TENSORS = "None: ids come as lists, and no tensor library is needed"


class BatchEncoding(dict[str, Any]):
    """What a call of the tokenizer returns: `input_ids` and `attention_mask`, also as attributes.

    Each is a list of integers for one text, and a list of such lists for a list of texts.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@checked_methods
class Tokenizer:
    """Encodes, decodes and renders chats as the model's files say.

    Names and ids are those of transformers' tokenizer of the directory. Text differs from its
    `decode` where detokenizer.py says so, and equals that of the engine's outputs.

    Attributes:
        model_max_length: the default length of calls with `truncation`.
        padding_side: the side that calls with `padding` fill: "left" or "right".
        is_fast: as in transformers, that it is the library tokenizers that encodes.
    """

    is_fast = True

    def __init__(self, directory: str | Path, backend: Backend | None = None) -> None:
        """`backend` is what `read_backend` returned for the directory, if it was called before."""
        self.backend = read_backend(directory) if backend is None else backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.name_or_path = str(directory)
        self._files = TokenizerFiles(Path(directory))
        self.model_max_length = self._files.model_max_length
        self.padding_side = self._files.padding_side
        self._add_tokens()

    def _add_tokens(self) -> None:
        """Adds the tokens that tokenizer.json lacks, and sets what the config says of others."""
        files = self._files
        added = {token.content: token for _, token in sorted(files.added.items())}
        known = {token.content: token for token in self.backend.get_added_tokens_decoder().values()}
        for token in [*files.named.values(), *files.extra]:
            token = added.get(token.content) or known.get(token.content) or token
            token.special = True
            added[token.content] = token
        self.backend.add_tokens(list(added.values()))
        for index, token in files.added.items():
            actual = self.backend.token_to_id(token.content)
            if actual != index:
                _log.warning(
                    "tokenizer: token %r has the id %s, not %d as among the added tokens of %s",
                    token.content,
                    actual,
                    index,
                    self.name_or_path,
                )

    @functools.cached_property
    def token_bytes(self) -> detokenizer.TokenBytes:
        """The bytes of each token, indexed by id."""
        return detokenizer.token_bytes(self.backend)

    @property
    def special_token_ids(self) -> list[int]:
        """The ids of special tokens."""
        return detokenizer.special_token_ids(self.backend)

    @functools.cached_property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens that have a role, by its name: "bos_token", "eos_token", ..."""
        return {name: str(token.content) for name, token in self._files.named.items()}

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens that have a role, and those that the config calls special beside them."""
        extra = [str(token.content) for token in self._files.extra]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *extra]))

    @functools.cached_property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        vocab = self.get_vocab()
        return [vocab[token] for token in self.all_special_tokens]

    def __getattr__(self, name: str) -> Any:
        """`eos_token`, `eos_token_id` and the same of the other roles: None where there is none."""
        role = name.removesuffix("_id")
        if role not in NAMED_TOKENS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        token = self.special_tokens_map.get(role)
        return token if name == role or token is None else self.backend.token_to_id(token)

    def get_vocab(self) -> dict[str, int]:
        """All tokens, with their ids."""
        vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocab

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that were added to the vocabulary, with their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: index for index, token in sorted(added.items())}

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those that were added to the vocabulary."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        """The number of tokens."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """A token's id, or a list's; that of `unk_token`, or None, where there is no such token."""
        if isinstance(tokens, str):
            index = self.backend.token_to_id(check_str("tokens", tokens))
            return self.unk_token_id if index is None else index
        expected = "a token or a list of tokens"
        return [
            self.convert_tokens_to_ids(check_str("tokens", token))
            for token in check_list("tokens", tokens, expected)
        ]

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> Any:
        """The token of an id, or the tokens of a list; None where an id has none."""
        if is_integral(ids):
            return self.backend.id_to_token(check_int("ids", ids, least=0))
        is_skipping = check_bool("skip_special_tokens", skip_special_tokens)
        skipped = set(self.all_special_ids) if is_skipping else set()
        numbers = [check_int("ids", index, least=0) for index in check_list("ids", ids, "ids")]
        return [self.backend.id_to_token(index) for index in numbers if index not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of a list of tokens."""
        given = [check_str("tokens", t) for t in check_list("tokens", tokens, "a list of tokens")]
        decoder = self.backend.decoder
        return " ".join(given) if decoder is None else str(decoder.decode(given))

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        tokens: list[str] = self.convert_ids_to_tokens(
            self.encode(text, add_special_tokens=add_special_tokens)
        )
        return tokens

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens around it that tokenizer.json asks for."""
        text = check_str("text", text)
        check_bool("add_special_tokens", add_special_tokens)
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            pass_on_interrupt(error)
            # A tokenizer.json that contradicts itself makes the library panic, past Exception.
            if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
                field = f"{self.name_or_path}: tokenizer.json"
                raise CheckpointError(field, str(error), "a tokenizer that encodes") from error
            raise
        return ids

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: None = None,
        **others: Any,
    ) -> BatchEncoding:
        """Token ids of a text or of a list of texts.

        Args:
            text_pair: None: texts come one by one, not in pairs.
            padding: fill shorter texts of a list with `pad_token`, at the `padding_side`.
            truncation: cut to `max_length` tokens at the end; None takes `model_max_length`.
            others: transformers' other options, which may be None or False.

        Raises:
            InvalidArgumentError: an option asks for what this tokenizer does not do.
        """
        if return_tensors is not None:
            raise InvalidArgumentError("return_tensors", return_tensors, _NO_TENSORS)
        for name, value in {"text_pair": text_pair, **others}.items():
            if value is not None and value is not False and not (type(value) is int and value == 0):
                raise InvalidArgumentError(name, value, "None or False: not supported here")
        check_bool("padding", padding)
        check_bool("truncation", truncation)
        single = isinstance(text, str)
        texts = [text] if single else check_list("text", text, "a string or a list of strings")
        rows = [
            self.encode(check_str("text", item), add_special_tokens=add_special_tokens)
            for item in texts
        ]
        if truncation:
            limit = self.model_max_length
            if max_length is not None:
                limit = check_int("max_length", max_length, least=1)
            rows = [row[:limit] for row in rows]
        masks = [[1] * len(row) for row in rows]
        is_left = check_choice("padding_side", self.padding_side, ("left", "right")) == "left"
        if padding and rows:
            if self.pad_token_id is None:
                raise InvalidArgumentError("padding", True, "False: this model has no pad_token")
            masks = [_padded(mask, 0, max(map(len, rows)), is_left) for mask in masks]
            rows = [_padded(row, self.pad_token_id, max(map(len, rows)), is_left) for row in rows]
        encoding = BatchEncoding(input_ids=rows[0] if single else rows)
        if check_bool("return_attention_mask", return_attention_mask):
            encoding["attention_mask"] = masks[0] if single else masks
        return encoding

    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of a sequence; its spaces are never changed."""
        if clean_up_tokenization_spaces is not None and clean_up_tokenization_spaces is not False:
            field = "clean_up_tokenization_spaces"
            raise InvalidArgumentError(field, clean_up_tokenization_spaces, "None or False")
        ids = [token_ids] if is_integral(token_ids) else token_ids
        numbers = [check_int("token_ids", i, least=0) for i in check_list("token_ids", ids, "ids")]
        tables = self.token_bytes
        check_bool("skip_special_tokens", skip_special_tokens)
        return detokenizer.decode(tables.plain if skip_special_tokens else tables.whole, numbers)

    def batch_decode(
        self,
        sequences: Sequence[Sequence[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of several sequences."""
        rows = check_list("sequences", sequences, "a list of lists of ids")
        return [
            self.decode(sequence, skip_special_tokens, clean_up_tokenization_spaces)
            for sequence in rows
        ]

    def encode_bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """The token sequences that write the words, with and without a space before them."""
        sequences: list[list[int]] = []
        given = check_list("bad_words", words, "a list of strings")
        for word in dict.fromkeys(check_str("bad_words", word) for word in given):
            bare = self.encode(word.lstrip(), add_special_tokens=False)
            spaced = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if not bare:
                raise InvalidArgumentError("bad_words", word, "words of at least one token")
            sequences.append(bare)
            if spaced[-len(bare) :] != bare:  # or the bare sequence rules it out already
                sequences.append(spaced)
        return sequences

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The model's template; a dict by name where it has several, None where it has none."""
        named = self._files.templates
        return named.get("default") if set(named) <= {"default"} else dict(named)

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """A template by its name or as it is; without one, the model's own.

        Of several, that is "tool_use" where there are tools, else "default".
        """
        named = self._files.templates
        listed = ", ".join(sorted(named))
        if chat_template is None:
            if tools is not None and "tool_use" in named:
                return named["tool_use"]
            if "default" in named:
                return named["default"]
            expected = f"one of {listed}" if named else "a template: this model comes without one"
            raise InvalidArgumentError("chat_template", None, expected)
        chat_template = check_str("chat_template", chat_template)
        if chat_template in named:
            return named[chat_template]
        if not any(mark in chat_template for mark in ("{{", "{%", "{#")):
            names = f", or the name of one: {listed}" if named else ""
            raise InvalidArgumentError("chat_template", chat_template, f"a Jinja template{names}")
        return chat_template

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """The prompt of a conversation, or of a list of them, as the template writes it.

        Contents reach the template as they are; `render_chat` adapts them.

        Args:
            tools: JSON schemas, or functions with type hints and a docstring.
            documents: dicts with "title" and "text".
            chat_template: a Jinja template, or the name of one of the model's.
            tokenize: return token ids: a BatchEncoding, or with return_dict=False its input_ids.
            tokenizer_kwargs: options of the tokenizer's call.
            variables: more variables for the template; `padding`, `truncation`, `max_length` and
                `return_tensors` are options of the tokenizer's call.
        """
        wanted = {} if tokenizer_kwargs is None else tokenizer_kwargs
        options: dict[str, Any] = {
            "add_special_tokens": False,
            **{
                check_str("tokenizer_kwargs key", name): value
                for name, value in check_dict("tokenizer_kwargs", wanted).items()
            },
        }
        for name in ("padding", "truncation", "max_length", "return_tensors"):
            if name in variables:
                options[name] = variables.pop(name)
        for name in ("sanitize_control_tokens", "return_assistant_tokens_mask"):
            if variables.pop(name, False):
                raise InvalidArgumentError(name, True, "False: not supported here")
        template = self.get_chat_template(chat_template, tools)
        given = self._variables(variables, tools, documents)
        expected = "a list of dicts with the keys 'role' and 'content'"
        conversation = check_list("messages", conversation, expected)
        is_batch = _is_batch(conversation)
        texts = [
            templates.render(
                template,
                chat_messages.read_messages(messages),
                given,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for messages in (conversation if is_batch else [conversation])
        ]
        if not check_bool("tokenize", tokenize):
            return texts if is_batch else texts[0]
        if "text" in options:
            raise InvalidArgumentError("tokenizer_kwargs['text']", options["text"], "no such key")
        encoding = self(texts if is_batch else texts[0], **options)
        return encoding if check_bool("return_dict", return_dict) else encoding["input_ids"]

    def render_chat(
        self,
        messages: Sequence[Any],
        *,
        template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation, which is adapted to the template first, as in vLLM.

        Args:
            template: a Jinja template, or the name of one of the model's.
            content_format: "string" joins the parts of a content to text, "openai" makes parts of
                text, and "auto" does what the template reads.
            variables: more variables for the template.
        """
        text = self.get_chat_template(template, tools)
        check_choice("chat_template_content_format", content_format, chat_messages.FORMATS)
        if content_format == "auto":
            content_format = templates.content_format(text)
        return templates.render(
            text,
            chat_messages.normalize(chat_messages.read_messages(messages), content_format),
            self._variables({} if variables is None else variables, tools, documents),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def _variables(
        self, variables: Mapping[str, Any], tools: Any, documents: Any
    ) -> dict[str, Any]:
        """All that a template is given but the conversation."""
        named = check_dict("chat_template_kwargs", variables)
        for name in named:
            field = f"chat_template_kwargs[{name!r}]"
            if name in templates.RESERVED or name in ("chat_template", "tokenize"):
                raise InvalidArgumentError(field, named[name], "the argument of that name instead")
        read = chat_messages.plain("documents", documents)
        if read is not None and not (
            isinstance(read, list) and all(isinstance(each, dict) for each in read)
        ):
            raise InvalidArgumentError("documents", documents, "a list of dicts, or None")
        return {
            **self.special_tokens_map,
            **chat_messages.plain("chat_template_kwargs", named),
            "tools": chat_messages.plain("tools", tool_schemas(tools)),
            "documents": read,
        }


def _padded(row: list[int], item: int, length: int, is_left: bool) -> list[int]:
    padding = [item] * (length - len(row))
    return padding + row if is_left else row + padding


def _is_batch(conversation: list[Any]) -> bool:
    return bool(conversation) and isinstance(conversation[0], list | tuple)
