"""The engine step by step, under vLLM's names."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from forerun.engine.loaded_model import LoadedModel
from forerun.engine.model_config import CacheConfig, ModelConfig, VllmConfig
from forerun.engine.requests import Request
from forerun.engine.streams import Stream
from forerun.engine_args import fields_of
from forerun.errors import InvalidArgumentError
from forerun.outputs import CompletionDelta, CompletionOutput, RequestOutput
from forerun.sampling_params import RequestOutputKind, SamplingParams
from forerun.util.checks import check_int, check_list, check_name, check_str
from forerun.vllm_fields.arguments import checked_methods

if TYPE_CHECKING:
    from forerun.engine.prompts import Prompt
    from forerun.engine_args import EngineArgs
    from forerun.metrics import Metric
    from forerun.text.tokenizer import Tokenizer


@checked_methods
class LLMEngine:
    """The engine driven step by step: requests are added and aborted while others run.

    It shares its engine with the LLM it is made of. `SamplingParams.output_kind` decides
    what `step` returns for a request: everything so far, what is new, or everything at the end.
    """

    def __init__(self, llm: LoadedModel) -> None:
        if not isinstance(llm, LoadedModel):
            raise InvalidArgumentError("llm", llm, "an LLM; from_engine_args makes one")
        self._llm = llm
        self._running: dict[str, _Running] = {}

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        """Loads the model that some EngineArgs name."""
        options = fields_of(engine_args)
        return cls(LoadedModel(options.pop("model"), options))

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: None = None,
        tokenization_kwargs: None = None,
        trace_headers: None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> str:
        """Submits a request for the steps to come; returns its id.

        Args:
            arrival_time, trace_headers: without effect; requests of equal priority run in the order
                in which they were added.
            prompt_text: the prompt's text, which its output then has, where `prompt` is token ids.
        """
        check_name("request_id", request_id)
        if request_id in self._running:
            raise InvalidArgumentError("request_id", request_id, "an id that no request has")
        if not isinstance(params, SamplingParams):
            raise InvalidArgumentError("params", params, "SamplingParams")
        if prompt_text is not None:
            check_str("prompt_text", prompt_text)
        params = params.clone()
        prepared = self._llm._prepared("prompt", prompt, params, self._llm._grammar(params))
        request = self._llm._request(
            prepared, priority=check_int("priority", priority), request_id=request_id
        )
        if request.prompt is None:
            request.prompt = prompt_text
        self._running[request_id] = _Running(request, self._llm._open([request]))
        return request_id

    def step(self) -> list[RequestOutput]:
        """Runs one step; returns an output for each request with new tokens or an end."""
        if not self._running:
            return []
        self._llm._board.run_step()
        outputs = []
        for request_id, running in list(self._running.items()):
            output = running.output()
            if running.request.output is not None:
                del self._running[request_id]
            if output is not None:
                outputs.append(output)
        return outputs

    def has_unfinished_requests(self) -> bool:
        """Whether a step has work to do."""
        return bool(self._running)

    def get_num_unfinished_requests(self) -> int:
        """How many requests have not finished."""
        return len(self._running)

    def abort_request(self, request_ids: str | Iterable[str], internal: bool = False) -> None:
        """Ends requests without another output; ids that no request has are ignored."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        for request_id in check_list("request_ids", request_ids, "an id or a list of ids"):
            running = self._running.pop(check_str("request_ids", request_id), None)
            if running is not None:
                running.stream.close()

    @functools.cached_property
    def vllm_config(self) -> VllmConfig:
        """The model, the KV cache and the speculation under vLLM's names."""
        limits = self._llm.limits
        cache = CacheConfig(limits.block_size, limits.num_kv_blocks)
        return VllmConfig(ModelConfig(self._llm), cache, self._llm.speculative_config)

    @property
    def model_config(self) -> ModelConfig:
        """The model and its limits."""
        return self.vllm_config.model_config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the model; None with skip_tokenizer_init."""
        return self._llm._tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._llm._require_tokenizer()

    def get_metrics(self) -> list[Metric]:
        """The counters one by one."""
        return self._llm.get_metrics()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes; False while a request is unfinished."""
        return self._llm._board.reset_prefix_cache()


class _Running:
    """A request that has not finished, and the texts that its outputs had so far."""

    def __init__(self, request: Request, stream: Stream) -> None:
        self.request = request
        self.stream = stream
        self._texts = [""] * len(request.completions)
        self._is_first = True

    def output(self) -> RequestOutput | None:
        """What the last step's output of the request is; None if it has none."""
        request = self.request
        kind = request.params.output_kind
        deltas = self.stream.take()
        for delta in deltas:
            self._texts[delta.completion_index] += delta.text
        if request.output is not None and kind is not RequestOutputKind.DELTA:
            return request.output
        if not deltas or kind is RequestOutputKind.FINAL_ONLY:
            return None
        if kind is RequestOutputKind.DELTA:
            completions = [self._delta(delta) for delta in deltas]
        else:
            completions = [self._so_far(index) for index in range(len(request.completions))]
        first = request.completions[0]
        # Deltas have the prompt's log-probabilities once.
        has_prompt = kind is not RequestOutputKind.DELTA or self._is_first
        self._is_first = False
        return RequestOutput(
            request_id=request.request_id or str(first.id),
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=completions,
            finished=request.output is not None,
            prompt_logprobs=request.prompt_logprobs if has_prompt else None,
            num_cached_tokens=first.num_cached_tokens,
            metrics=request.output.metrics if request.output is not None else None,
            error=request.output.error if request.output is not None else None,
        )

    def _delta(self, delta: CompletionDelta) -> CompletionOutput:
        index = delta.completion_index
        output = self.request.completions[index].output
        return CompletionOutput(
            index=index,
            text=delta.text,
            token_ids=delta.token_ids,
            cumulative_logprob=self.request.cumulative_logprob(index),
            logprobs=delta.logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=output.stop_reason if output is not None else None,
        )

    def _so_far(self, index: int) -> CompletionOutput:
        completion = self.request.completions[index]
        if completion.output is not None:
            return completion.output
        return CompletionOutput(
            index=index,
            text=self._texts[index],
            token_ids=list(completion.token_ids),
            cumulative_logprob=self.request.cumulative_logprob(index),
            logprobs=completion.logprobs[:] if self.request.has_logprobs else None,
        )
