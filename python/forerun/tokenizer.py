"""The tokenizer of a Hugging Face model directory, without transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forerun import chat_template, detokenizer
from forerun.errors import CheckpointError, InvalidArgumentError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """Encodes, decodes and renders chats as the model's `tokenizer.json` and template say."""

    def __init__(self, directory: str | Path) -> None:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        self._directory = Path(directory)
        path = self._directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError("tokenizer", str(directory), "a directory with tokenizer.json")
        try:
            self.backend = Backend.from_file(str(path))
        except Exception as error:
            raise CheckpointError(str(path), str(error), "a tokenizer.json") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        self._config = _read_json(self._directory / "tokenizer_config.json")
        named = {**_read_json(self._directory / "special_tokens_map.json"), **self._config}
        self.special_tokens = {
            name: _content(named[name]) for name in _NAMED_TOKENS if named.get(name) is not None
        }
        # As transformers does: what the config names is special, whatever tokenizer.json says.
        self.backend.add_special_tokens(
            [
                AddedToken(token, normalized=False, special=True)
                for token in dict.fromkeys(self.special_tokens.values())
                if self.backend.token_to_id(token) is not None
            ]
        )

    @functools.cached_property
    def token_bytes(self) -> detokenizer.TokenBytes:
        """The bytes of each token, indexed by id."""
        return detokenizer.token_bytes(self.backend)

    @property
    def special_token_ids(self) -> list[int]:
        """The ids of the tokens that are no text."""
        return detokenizer.special_token_ids(self.backend)

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The model's own template, None where it has none."""
        path = self._directory / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens around it that tokenizer.json asks for."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a sequence."""
        tables = self.token_bytes
        return detokenizer.decode(tables.plain if skip_special_tokens else tables.whole, token_ids)

    def encode_bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """The token sequences that write the words, with and without a space before them."""
        sequences: list[list[int]] = []
        for word in dict.fromkeys(words):
            bare = self.encode(word.lstrip(), add_special_tokens=False)
            spaced = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if not bare:
                raise InvalidArgumentError("bad_words", word, "words of at least one token")
            sequences.append(bare)
            if spaced[-len(bare) :] != bare:  # or the bare sequence rules it out already
                sequences.append(spaced)
        return sequences

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation, by the given template or the model's own."""
        template = template or self.chat_template
        if template is None:
            raise InvalidArgumentError(
                "chat_template", None, "a template: this model comes without one"
            )
        return chat_template.render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **{"tools": None, "documents": None, **self.special_tokens, **variables},
        )


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(str(path), str(error), "valid JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(str(path), type(value).__name__, "a JSON object")
    return value
