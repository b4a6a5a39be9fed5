"""A model and its engine, loaded: what LLM and LLMEngine share."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun import _core
from forerun.checkpoints.loading import refuse_drafter, resolve_model
from forerun.checkpoints.model_cache import warn_of_weight_cache, weight_cache
from forerun.engine.config import num_past_outputs, settle_options
from forerun.engine.generation_config import recommended_params
from forerun.engine.prompts import (
    Messages,
    Prompt,
    deadline_after,
    params_list,
    parse_prompt,
    priority_list,
    prompt_list,
)
from forerun.engine.requests import PreparedPrompt, Request
from forerun.engine.scoreboard import Scoreboard
from forerun.engine.streams import Stream
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.outputs import TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.text.detokenizer import TokenBytes
from forerun.text.tokenizer_backend import read_backend
from forerun.util.background import Background
from forerun.util.checks import check_dict, check_path
from forerun.vllm_fields.arguments import checked_arguments

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from forerun.checkpoints.drafters import Drafter
    from forerun.engine.suffix_memory import SuffixMemory
    from forerun.logits_processors import EngineProcessors
    from forerun.metrics import EngineMetrics, Metric
    from forerun.text.grammar_compiler import GrammarCompiler, GrammarState
    from forerun.text.tokenizer import Tokenizer
    from forerun.text.vocabulary import Vocabulary

_log = logging.getLogger("forerun")


class LoadedModel:
    """A model with its tokenizer, its drafter and the engine that runs them.

    Args:
        model: what LLM takes.
        options: LLM's keywords.
    """

    def __init__(self, model: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self._making_compiler = threading.Lock()
        self._compiler: GrammarCompiler | None = None  # made for the first grammar
        core_options, self.speculative_config = settle_options(options)
        source = options.get("generation_config")
        self._generation_config = "auto" if source is None else os.fspath(source)
        self._generation_overrides = dict(options.get("override_generation_config") or {})
        self.directory = resolve_model(model, revision=options.get("revision"))
        try:
            self._load(model, core_options, options)
        except CheckpointError:
            refuse_drafter(self.directory)  # says more than which file or tensor is missing
            raise

    def _load(
        self,
        model: str | os.PathLike[str],
        core_options: _core.EngineOptions,
        options: dict[str, Any],
    ) -> None:
        core_options.model = str(self.directory)
        core_options.weight_cache = weight_cache()
        self.labels = {"model_name": str(model), "engine": "0"}
        level = options.get("per_request_spec_decode_metrics", "none")
        self._reports_drafts = level != "none" and self.speculative_config is not None
        self._tokenizer: Tokenizer | None = None
        if options.get("skip_tokenizer_init"):
            self._load_engine(model, core_options, options)
        else:
            given = options.get("tokenizer")
            directory = check_path("tokenizer", self.directory if given is None else given)
            # Both are read without the GIL.
            reading = Background(lambda: read_backend(directory))
            try:
                self._load_engine(model, core_options, options)
                self._import_ahead()
            finally:
                backend = reading.result()
            self._tokenizer = _make_tokenizer(directory, backend)
        self._token_bytes = TokenBytes([], [])
        if self._tokenizer is not None:
            self._set_vocabulary(self._tokenizer)
        self._board = Scoreboard(self._engine)
        if self._memory is not None:
            self._memory.start(self._engine)
        self._processors: EngineProcessors | None = None
        if options.get("logits_processors"):
            from forerun.logits_processors import engine_processors

            self._processors = engine_processors(options["logits_processors"], self, core_options)

    def _import_ahead(self) -> None:
        """Imports what the first request needs, while the tokenizer is read."""
        import forerun.metrics
        import forerun.text.tokenizer  # noqa: F401

    def _load_engine(
        self,
        model: str | os.PathLike[str],
        core_options: _core.EngineOptions,
        options: dict[str, Any],
    ) -> None:
        self.drafter: Drafter | None = None
        if self.speculative_config is not None and self.speculative_config.uses_model:
            from forerun.checkpoints.drafters import set_drafter

            # The binding copies what it is given.
            speculative = core_options.speculative
            self.drafter = set_drafter(self.speculative_config, self.directory, speculative)
            core_options.speculative = speculative
        self._memory: SuffixMemory | None = None
        if options.get("suffix_memory") is not None:
            self._memory = _open_memory(
                options["suffix_memory"], model, self.directory, core_options
            )
        self._engine = _core.Engine(core_options)
        if self.limits.weight_cache.startswith("not written"):
            warn_of_weight_cache(self.limits.weight_cache)
        if self.speculative_config is not None:
            self.speculative_config.check_length(self.limits.max_model_len)
        if (
            core_options.max_model_len is None
            and self.limits.max_model_len < self.limits.model_max_len
        ):
            _log.warning(
                "max_model_len is %d, not the model's %d: the KV cache has no room for more; set "
                "max_model_len, kv_cache_memory_bytes or gpu_memory_utilization to say otherwise",
                self.limits.max_model_len,
                self.limits.model_max_len,
            )
        self._report_unpacked()

    def _set_vocabulary(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        vocabulary = self._vocabulary
        self._engine.set_token_bytes(vocabulary.token_bytes, sorted(vocabulary.special))
        if tokenizer.eos_token_id is not None:
            self._engine.add_eos_tokens([tokenizer.eos_token_id])
        self._check_eos(tokenizer)

    def _report_unpacked(self) -> None:
        unpacked = self.limits.num_unpacked_layers
        if not unpacked:
            return
        _log.warning(
            "%d linear layers were unpacked to %s, which is larger and slower: %s; "
            "quantization={'linear': 'int8'} packs them in 8 bits",
            sum(unpacked.values()),
            self.limits.dtype,
            "; ".join(f"{reason} ({count})" for reason, count in unpacked.items()),
        )

    def _check_eos(self, tokenizer: Tokenizer) -> None:
        if tokenizer.eos_token_id not in (None, *self.limits.eos_token_ids):
            _log.warning(
                "the tokenizer's eos_token %r has the id %d, beyond the model's vocabulary of %d "
                "tokens: it ends no text",
                tokenizer.eos_token,
                tokenizer.eos_token_id,
                self.limits.vocab_size,
            )

    @property
    def limits(self) -> _core.ModelLimits:
        """What the loaded model can serve: lengths, KV blocks, bytes per token, threads."""
        return self._engine.limits

    @checked_arguments
    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._require_tokenizer()

    @checked_arguments
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
        """A conversation's prompt; `variables` and `chat_template_kwargs` go to the template."""
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

    @checked_arguments
    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return SamplingParams(**self._recommended)

    @checked_arguments
    def metrics(self) -> EngineMetrics:
        """The engine's counters with the ratios that follow from them."""
        from forerun.metrics import engine_metrics

        return engine_metrics(self._engine.metrics(), self._board.prompt_histograms)

    @checked_arguments
    def get_metrics(self) -> list[Metric]:
        """The counters one by one, as vLLM gives them, then those of this engine alone."""
        return self.metrics().as_list(self.labels)

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidArgumentError("skip_tokenizer_init", True, "False for text in or out")
        return self._tokenizer

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        from forerun.text.vocabulary import Vocabulary

        return Vocabulary(self._require_tokenizer(), self.limits.vocab_size)

    @property
    def _grammars(self) -> GrammarCompiler:
        """The only compiler: the states of grammars that run together must be of the same one."""
        from forerun.text.grammar_compiler import GrammarCompiler, GrammarTokenizer

        with self._making_compiler:  # threads may prepare requests at the same time
            if self._compiler is None:
                tokenizer = self._require_tokenizer()
                vocabulary = GrammarTokenizer(
                    self._vocabulary.token_bytes,
                    sorted(self._vocabulary.special),
                    self.limits.eos_token_ids,
                    lambda text: tokenizer.encode(text, add_special_tokens=False),
                )
                self._compiler = GrammarCompiler(vocabulary, self.limits.num_threads)
            return self._compiler

    @functools.cached_property
    def _recommended(self) -> dict[str, Any]:
        return recommended_params(
            self.directory, self._generation_config, self._generation_overrides
        )

    def _encode(self, text: str, **options: Any) -> list[int]:
        return self._require_tokenizer().encode(text, **options)

    def _open(self, requests: list[Request]) -> Stream:
        self._board.submit(requests, self.limits.max_model_len)
        return Stream(self._board, requests)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> list[Request]:
        deadline = deadline_after(timeout)
        prepared = self._prepare(prompts, sampling_params)
        priorities = priority_list(priority, len(prepared))
        return [
            self._request(each, index=index, priority=priorities[index], deadline=deadline)
            for index, each in enumerate(prepared)
        ]

    def _prepare(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[PreparedPrompt]:
        """Checks, tokenizes and compiles. Threads may call it."""
        items = prompt_list(prompts)
        params = params_list(sampling_params, len(items), self.get_default_sampling_params)
        names = ["prompts" if len(items) == 1 else f"prompts[{i}]" for i in range(len(items))]
        grammars = {id(each): self._grammar(each) for each in {id(p): p for p in params}.values()}
        return [
            self._prepared(name, item, param, grammars[id(param)])
            for name, item, param in zip(names, items, params, strict=True)
        ]

    def _grammar(self, params: SamplingParams) -> Callable[[], GrammarState] | None:
        structure = params.structured_outputs
        assert not isinstance(structure, Mapping)  # SamplingParams made it one
        return self._grammars.compile(structure) if structure else None

    def _prepared(
        self,
        where: str,
        item: Any,
        params: SamplingParams,
        start_grammar: Callable[[], GrammarState] | None,
    ) -> PreparedPrompt:
        prompt = parse_prompt(where, item, self._encode)
        words = params.bad_words
        bad_words = self._require_tokenizer().encode_bad_words(words) if words else []
        return PreparedPrompt(prompt, params, bad_words, start_grammar)

    def _request(
        self,
        prepared: PreparedPrompt,
        *,
        index: int = 0,
        priority: int = 0,
        deadline: _core.Deadline | None = None,
        request_id: str | None = None,
    ) -> Request:
        salt = prepared.prompt.cache_salt
        prediction = prepared.prompt.prediction
        return Request(
            index,
            prepared.prompt.text,
            prepared.prompt.token_ids,
            prepared.params,
            self._token_bytes,
            prepared.bad_words,
            prepared.start_grammar,
            _core.SubmitOptions(priority, salt, prediction, deadline),
            request_id,
            deadline,
            reports_drafts=self._reports_drafts,
            engine_processors=self._processors,
            remember=self._memory.for_tenant(salt) if self._memory else None,
        )


def _open_memory(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str],
    directory: Path,
    options: _core.EngineOptions,
) -> SuffixMemory:
    from forerun.checkpoints.model_identity import identify
    from forerun.engine.suffix_memory import SuffixMemory

    identity = identify(model, directory)
    return SuffixMemory(check_path("suffix_memory", path), identity, num_past_outputs(options))


def _make_tokenizer(directory: Path, backend: Backend) -> Tokenizer:
    from forerun.text.tokenizer import Tokenizer

    return Tokenizer(directory, backend)
