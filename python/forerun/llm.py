"""The offline interface: load a model, generate, chat, stream, read the counters."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun import _core
from forerun.checks import check_dict, check_int, check_list, check_path, check_str
from forerun.config import settle_options
from forerun.detokenizer import TokenBytes
from forerun.engine_args import EngineArgs
from forerun.errors import InvalidArgumentError
from forerun.json_files import read_json_object
from forerun.loading import resolve_model
from forerun.metrics import EngineMetrics, Metric, engine_metrics
from forerun.outputs import RequestOutput, TextPrompt, TokensPrompt
from forerun.requests import Request, Scoreboard, Stream, run_all
from forerun.sampling_params import SamplingParams
from forerun.speculative_config import SpeculativeConfig
from forerun.structured_outputs import GrammarCompiler, Vocabulary

if TYPE_CHECKING:
    from forerun.drafters import Drafter
    from forerun.tokenizer import Tokenizer

_log = logging.getLogger("forerun")

Prompt = str | TextPrompt | TokensPrompt | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model that generates text, faster with a `speculative_config` and word for word the same.

    Args:
        model: a Hugging Face model directory, a `.gguf` file, or the id of a model on the hub.
        tokenizer: a directory with another tokenizer.json than the model's.
        speculative_config: a SpeculativeConfig, or a dict of its fields; None decodes plainly.
            What was found of a drafter is `drafter`, and a line in the log of "forerun".
        skip_tokenizer_init: load no tokenizer: prompts are token ids, and texts stay empty.
        revision: the branch, tag or commit of a model on the hub.
        **options: dtype ("auto", "bfloat16" or "float32"), max_model_len, max_num_seqs,
            max_num_batched_tokens, block_size, enable_prefix_caching, kv_cache_memory_bytes, seed,
            num_threads, and vLLM's: docs/vllm_compatibility.md has what each of them does here.

    Raises:
        CheckpointError: the model is missing, damaged, or of a kind that is not understood.
        InvalidArgumentError: an option is unknown or wrong.

    Threads may share an LLM: their calls take turns, step by step, and run in one batch. Code that
    the LLM calls, such as a logits processor, must not call it: that raises EngineBusyError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        speculative_config: SpeculativeConfig | Mapping[str, Any] | None = None,
        skip_tokenizer_init: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        options |= {
            "tokenizer": tokenizer,
            "speculative_config": speculative_config,
            "skip_tokenizer_init": skip_tokenizer_init,
            "revision": revision,
        }
        core_options, self.speculative_config = settle_options(options)
        source = options.get("generation_config")
        self._generation_config = "auto" if source is None else os.fspath(source)
        self._generation_overrides = dict(options.get("override_generation_config") or {})
        self.directory = resolve_model(model, revision=revision)
        core_options.model = str(self.directory)
        self._labels = {"model_name": str(model), "engine": "0"}
        level = options.get("per_request_spec_decode_metrics", "none")
        self._reports_drafts = level != "none" and self.speculative_config is not None
        self._tokenizer: Tokenizer | None = None
        if not skip_tokenizer_init:
            self._tokenizer = _load_tokenizer(self.directory if tokenizer is None else tokenizer)
            if self._tokenizer.eos_token_id is not None:
                core_options.eos_token_ids = [self._tokenizer.eos_token_id]
        self.drafter: Drafter | None = None
        if self.speculative_config is not None and self.speculative_config.uses_model:
            from forerun.drafters import set_drafter

            # The binding copies what it is given.
            speculative = core_options.speculative
            self.drafter = set_drafter(self.speculative_config, self.directory, speculative)
            core_options.speculative = speculative
        self._engine = _core.Engine(core_options)
        if self.speculative_config is not None:
            self.speculative_config.check_length(self.limits.max_model_len)
        if (
            core_options.max_model_len is None
            and self.limits.max_model_len < self.limits.model_max_len
        ):
            _log.warning(
                "max_model_len is %d, not the model's %d: the KV cache has no room for more; set "
                "max_model_len or kv_cache_memory_bytes to say otherwise",
                self.limits.max_model_len,
                self.limits.model_max_len,
            )
        self._token_bytes = TokenBytes([], [])
        if self._tokenizer is not None:
            self._token_bytes = self._tokenizer.token_bytes
            size = self.limits.vocab_size
            special = [token for token in self._tokenizer.special_token_ids if token < size]
            self._engine.set_token_bytes(_fit(self._token_bytes.whole, size), special)
            self._check_eos(self._tokenizer)
        self._board = Scoreboard(self._engine)

    def _check_eos(self, tokenizer: Tokenizer) -> None:
        if tokenizer.eos_token_id not in (None, *self.limits.eos_token_ids):
            _log.warning(
                "the tokenizer's eos_token %r has the id %d, beyond the model's vocabulary of %d "
                "tokens: it ends no text",
                tokenizer.eos_token,
                tokenizer.eos_token_id,
                self.limits.vocab_size,
            )

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        """An LLM of these arguments."""
        if not isinstance(engine_args, EngineArgs):
            raise InvalidArgumentError("engine_args", engine_args, "EngineArgs")
        return cls(**vars(engine_args))

    @property
    def limits(self) -> _core.ModelLimits:
        """What the loaded model can serve: lengths, KV blocks, bytes per token, threads."""
        return self._engine.limits

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        if self._tokenizer is None:
            raise InvalidArgumentError("skip_tokenizer_init", True, "False for text in or out")
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generates for one prompt or many; outputs are in the order of the prompts.

        Prompts are strings, token ids, TextPrompt or TokensPrompt. Parameters are one for all
        prompts or one each; None takes `get_default_sampling_params()`. Each prompt has one output
        with the `n` completions asked for. Where one prompt can never be served, none runs, and the
        error names it.
        """
        return self._run(self._requests(prompts, sampling_params), use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Generates the next message of one conversation or of many.

        With `continue_final_message` and `add_generation_prompt=False` the model goes on with the
        last message instead.
        """
        prompts = [
            self.render_chat(
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in _conversations(messages)
        ]
        return self._run(self._requests(prompts, sampling_params), use_tqdm)

    def render_chat(
        self,
        messages: Messages,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> TokensPrompt:
        """The prompt of a conversation, for `generate` and `stream`.

        `variables` and `chat_template_kwargs` are given to the template.
        """
        tokenizer = self.get_tokenizer()
        if chat_template_kwargs is not None:
            variables |= check_dict("chat_template_kwargs", chat_template_kwargs)
        text = tokenizer.render_chat(
            messages,
            template=chat_template,
            tools=tools,
            documents=documents,
            content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        # The template writes the special tokens itself.
        return TokensPrompt(prompt_token_ids=tokenizer.encode(text, add_special_tokens=False))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Stream:
        """Generates step by step: an iterator of CompletionDelta.

        A delta belongs to one completion and ends with a whole character. Closing the stream
        cancels what has not finished.
        """
        requests = self._requests(prompts, sampling_params)
        self._board.submit(requests, self.limits.max_model_len)
        return Stream(self._board, requests)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return SamplingParams(**self._recommended)

    @functools.cached_property
    def _grammars(self) -> GrammarCompiler:
        tokenizer = self.get_tokenizer()
        size = self.limits.vocab_size
        return GrammarCompiler(
            Vocabulary(
                _fit(self._token_bytes.whole, size),
                [token for token in tokenizer.special_token_ids if token < size],
                self.limits.eos_token_ids,
                lambda text: tokenizer.encode(text, add_special_tokens=False),
            )
        )

    @functools.cached_property
    def _recommended(self) -> dict[str, Any]:
        source = self._generation_config
        path = self.directory if source == "auto" else Path(source).expanduser()
        path /= "generation_config.json"
        has_file = source != "vllm" and path.is_file()
        config = {**(read_json_object(path) if has_file else {}), **self._generation_overrides}
        names = {"max_new_tokens": "max_tokens"} | {
            name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }
        return {
            ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None
        }

    def metrics(self) -> EngineMetrics:
        """The engine's counters with the ratios that follow from them."""
        return engine_metrics(self._engine.metrics())

    def get_metrics(self) -> list[Metric]:
        """The counters one by one, as vLLM gives them, then those of this engine alone."""
        return self.metrics().as_list(self._labels)

    def reset_caches(self) -> None:
        """Forgets cached prefixes and past outputs. No request may be unfinished."""
        self._board.reset_caches()

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        if not use_tqdm:
            run_all(self._board, requests, self.limits.max_model_len, lambda _: None)
        else:
            self._run_with_bar(requests)
        return [request.output for request in requests if request.output is not None]

    def _run_with_bar(self, requests: list[Request]) -> None:
        num_tokens = 0

        def on_finish(request: Request) -> None:
            nonlocal num_tokens
            num_tokens += request.num_generated_tokens
            elapsed = bar.format_dict["elapsed"] or 1e-9
            bar.set_postfix_str(f"{num_tokens / elapsed:.1f} tokens/s", refresh=False)
            bar.update()

        with _progress_bar()(total=len(requests), desc="Generating", unit=" prompts") as bar:
            run_all(self._board, requests, self.limits.max_model_len, on_finish)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Request]:
        items = _prompt_list(prompts)
        params = self._params_list(sampling_params, len(items))
        requests = []
        for index, (item, param) in enumerate(zip(items, params, strict=True)):
            where = f"prompts[{index}]" if len(items) > 1 else "prompts"
            text, token_ids = self._tokenize(where, item)
            words = param.bad_words
            bad_words = self.get_tokenizer().encode_bad_words(words) if words else []
            structure = param.structured_outputs
            assert not isinstance(structure, Mapping)  # SamplingParams made it one
            requests.append(
                Request(
                    index,
                    text,
                    token_ids,
                    param,
                    self._token_bytes,
                    bad_words,
                    self._grammars.compile(structure) if structure else None,
                    reports_drafts=self._reports_drafts,
                )
            )
        return requests

    def _params_list(self, params: Any, count: int) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        # Copies, checked again: what the caller changes later has no effect.
        if isinstance(params, SamplingParams):
            return [params.clone()] * count
        expected = "SamplingParams, a list of them, one per prompt, or None"
        given = check_list("sampling_params", params, expected)
        for param in given:
            if not isinstance(param, SamplingParams):
                raise InvalidArgumentError("sampling_params", param, expected)
        if len(given) != count:
            raise InvalidArgumentError("sampling_params", f"{len(given)} of them", f"{count}")
        return [param.clone() for param in given]

    def _tokenize(self, where: str, item: Any) -> tuple[str | None, list[int]]:
        if isinstance(item, Mapping):
            keys = set(item)
            if keys == {"prompt"}:
                item = item["prompt"]
            elif keys == {"prompt_token_ids"}:
                item = item["prompt_token_ids"]
            else:
                raise InvalidArgumentError(
                    where, sorted(map(str, keys)), "the key 'prompt' or 'prompt_token_ids'"
                )
        if isinstance(item, str):
            return item, self.get_tokenizer().encode(check_str(where, item))
        if isinstance(item, bytes) or not isinstance(item, Iterable):
            raise InvalidArgumentError(where, item, "a string, token ids, or a dict of either")
        return None, [check_int(f"{where}.prompt_token_ids", token) for token in item]


def _fit(token_bytes: list[bytes], size: int) -> list[bytes]:
    """The bytes of as many tokens as the model knows."""
    return token_bytes[:size] + [b""] * (size - len(token_bytes))


@functools.cache
def _progress_bar() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        # tqdm's own lock is no native one: an interrupt can leave it locked for other threads.
        _lock = threading.RLock()
        monitor_interval = 0

    return Bar


def _load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    from forerun.tokenizer import Tokenizer

    return Tokenizer(check_path("tokenizer", directory))


def _prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list; a flat list of ids is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise InvalidArgumentError("prompts", prompts, "a prompt or a list of prompts")
    items = list(prompts)
    flat = bool(items) and not isinstance(items[0], str | bytes | Mapping | Iterable)
    return [items] if flat else items


def _conversations(messages: Any) -> list[Messages]:
    if isinstance(messages, Sequence) and messages and isinstance(messages[0], Sequence):
        return list(messages)
    return [messages]
