"""The offline interface: load a model, generate, chat, stream, read the counters."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forerun.engine.loaded_model import LoadedModel
from forerun.engine.profiling import Profiler
from forerun.engine.progress import check_use_tqdm, import_tqdm, progress_bar
from forerun.engine.prompts import (
    Messages,
    Prompt,
    conversation_list,
)
from forerun.engine.requests import Request, deadline_error
from forerun.engine.streams import Stream, run_all, wait_all
from forerun.errors import InvalidArgumentError
from forerun.outputs import RequestOutput, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.speculative_config import SpeculativeConfig
from forerun.unsupported import UnsupportedMethods
from forerun.vllm_fields.arguments import checked_methods

if TYPE_CHECKING:
    from forerun.beam_search import BeamSearchOutput, BeamSearchParams
    from forerun.engine.model_config import ModelConfig
    from forerun.engine_args import EngineArgs
    from forerun.llm_engine import LLMEngine


@checked_methods
class LLM(LoadedModel, UnsupportedMethods):
    """A model that generates text, faster with a `speculative_config` and word for word the same.

    Args:
        model: a Hugging Face model directory, a `.gguf` file, or the id of a model on the hub.
        tokenizer: a directory with another tokenizer.json than the model's.
        speculative_config: a SpeculativeConfig, or a dict of its fields; None decodes plainly.
            `drafter` and the log of "forerun" describe the drafter that was detected.
        skip_tokenizer_init: load no tokenizer: prompts are token ids, and texts stay empty.
        revision: the branch, tag or commit of a model on the hub.
        **options: dtype ("auto", "bfloat16" or "float32"), max_model_len, max_num_seqs,
            max_num_batched_tokens, block_size, enable_prefix_caching, kv_cache_memory_bytes, seed,
            num_threads, suffix_memory (a file that keeps past outputs: docs/suffix_memory.md),
            max_waiting_requests (calls raise QueueFullError rather than let more completions than
            this be unfinished beyond `max_num_seqs`, InvalidArgumentError where they alone are
            more; None: no limit), and vLLM's: docs/vllm_compatibility.md has
            what each of them does here.

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
        super().__init__(model, options)
        config = options.get("profiler_config")
        self._profiler = Profiler(self._engine, self._board.turn, config)
        self._enqueued: list[Request] = []

    def _import_ahead(self) -> None:
        super()._import_ahead()
        import_tqdm()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        """An LLM of these arguments."""
        from forerun.engine_args import fields_of

        return cls(**fields_of(engine_args))

    @property
    def model_config(self) -> ModelConfig:
        """The model and its limits under vLLM's names, as of `llm_engine`."""
        return self.llm_engine.model_config

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Generates for one prompt or many; outputs are in the order of the prompts.

        Prompts are strings, token ids, TextPrompt or TokensPrompt. Parameters are one for all
        prompts or one each; None takes `get_default_sampling_params()`. Each prompt has one output
        with the `n` completions asked for. If one prompt can never be served, none runs, and the
        error names it.

        Args:
            use_tqdm: show a progress bar; a function is called in place of tqdm.
            priority: with scheduling_policy="priority", one for all prompts or one each; lower
                values run first.
            lora_request, tokenization_kwargs, mm_processor_kwargs: as in vLLM, None.
            timeout: in seconds, for the whole call. What is not finished then, running or waiting,
                ends at the next step with what it has.

        Raises:
            InvalidArgumentError: a prompt or a parameter can never be served.
            DeadlineExceededError: not everything was finished in time. Nothing is lost: its
                `outputs` are those of all prompts, finished or not.
            QueueFullError: more would wait than `max_waiting_requests`; none of the prompts runs.
        """
        return self._run(self._requests(prompts, sampling_params, priority, timeout), use_tqdm)

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Submits what `generate` takes, for `wait_for_completion`; returns the request ids."""
        return self._enqueue(self._requests(prompts, sampling_params, priority), use_tqdm)

    def wait_for_completion(
        self, output_type: Any = None, *, use_tqdm: bool | Callable[..., Any] = True
    ) -> list[RequestOutput]:
        """Runs everything that was enqueued; outputs are in the order of the prompts."""
        if output_type is not None and output_type is not RequestOutput:
            raise InvalidArgumentError("output_type", output_type, "None or RequestOutput")
        check_use_tqdm(use_tqdm)
        with self._board.turn:  # so that a hook, which may not wait here, does not take them
            requests, self._enqueued = self._enqueued, []
        run = functools.partial(wait_all, self._board, requests)
        return self._with_bar(requests, use_tqdm, run)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Generates the next message of one conversation or of many.

        With `continue_final_message` and `add_generation_prompt=False` the model continues the
        last message instead. The chat template describes `tools` to the model; the other arguments
        are those of `generate`.
        """
        prompts = self._render_all(
            messages,
            chat_template_kwargs=chat_template_kwargs,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )
        return self._run(self._requests(prompts, sampling_params, priority, timeout), use_tqdm)

    def enqueue_chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Submits what `chat` takes, for `wait_for_completion`; returns the request ids."""
        prompts = self._render_all(
            messages,
            chat_template_kwargs=chat_template_kwargs,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )
        return self._enqueue(self._requests(prompts, sampling_params, priority), use_tqdm)

    def _render_all(self, messages: Any, **options: Any) -> list[TokensPrompt]:
        return [
            self.render_chat(conversation, **options)
            for conversation in conversation_list(messages)
        ]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        timeout: float | None = None,
    ) -> Stream:
        """Generates step by step: an iterator of CompletionDelta.

        A delta belongs to one completion and ends with a whole character. Closing the stream
        cancels what has not finished. After `timeout` seconds, of which those between the steps
        count too, what is not finished ends, and the stream with DeadlineExceededError.
        """
        return self._open(self._requests(prompts, sampling_params, timeout=timeout))

    def start_profile(self, profile_prefix: str | None = None) -> None:
        """Writes a trace of the steps to come into the directory that `profiler_config` names.

        The file's name begins with `profile_prefix`. docs/tracing.md explains what a trace holds.
        While another trace is written, that of FORERUN_TRACE included, nothing is done.
        """
        self._profiler.start(profile_prefix)

    def stop_profile(self) -> None:
        """Ends the trace that is being written, if there is one."""
        self._profiler.stop()

    @functools.cached_property
    def llm_engine(self) -> LLMEngine:
        """The same engine, step by step: requests come and go while others run."""
        from forerun.llm_engine import LLMEngine

        return LLMEngine(self)

    def get_world_size(self, include_dp: bool = True) -> int:
        """The number of processes: one."""
        return 1

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forgets cached prefixes; False, and nothing forgotten, while a request is unfinished."""
        return self._board.reset_prefix_cache()

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The most probable texts of each prompt that a search with `beam_width` beams finds.

        At most `concurrency_limit` prompts are searched at a time; None is all. Each beam counts
        against `max_waiting_requests`.

        Raises:
            InvalidArgumentError: a prompt or a parameter can never be served.
            QueueFullError: more would wait than `max_waiting_requests`; nothing was searched.
        """
        from forerun.beam_search import search

        return search(self, prompts, params, use_tqdm, concurrency_limit)

    def reset_caches(self) -> None:
        """Forgets cached prefixes and past outputs. No request may be unfinished."""
        self._board.reset_caches()

    def _run(self, requests: list[Request], use_tqdm: Any) -> list[RequestOutput]:
        check_use_tqdm(use_tqdm)
        run = functools.partial(run_all, self._board, requests, self.limits.max_model_len)
        return self._with_bar(requests, use_tqdm, run)

    def _enqueue(self, requests: list[Request], use_tqdm: Any) -> list[str]:
        check_use_tqdm(use_tqdm)
        self._board.submit(requests, self.limits.max_model_len)
        self._enqueued += requests
        return [str(request.completions[0].id) for request in requests]

    def _with_bar(
        self, requests: list[Request], use_tqdm: Any, run: Callable[..., None]
    ) -> list[RequestOutput]:
        num_tokens = 0

        def on_finish(request: Request) -> None:
            nonlocal num_tokens
            num_tokens += request.num_generated_tokens
            elapsed = bar.format_dict["elapsed"] or 1e-9
            bar.set_postfix_str(f"{num_tokens / elapsed:.1f} tokens/s", refresh=False)
            bar.update()

        if use_tqdm is False:
            run(lambda _: None)
        else:
            with progress_bar(use_tqdm, len(requests)) as bar:
                run(on_finish)
        if error := deadline_error(requests):
            raise error
        return [request.output for request in requests if request.output is not None]
