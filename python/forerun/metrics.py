"""Views of the engine's counters, and the ratios that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from forerun import _core


@dataclass(frozen=True)
class Metric:
    """A named value, as in vLLM's metrics reader."""

    name: str


@dataclass(frozen=True)
class Counter(Metric):
    """A number that only grows."""

    value: int


@dataclass(frozen=True)
class Vector(Metric):
    """Numbers that only grow, one per position of the draft."""

    values: list[int]


@dataclass(frozen=True)
class Gauge(Metric):
    """A number as of now."""

    value: float


@dataclass(frozen=True)
class SpecDecodeMetrics:
    """What was drafted and what of it was emitted.

    A draft counts as accepted only as far as its tokens were emitted: nothing beyond a stop or
    max_tokens.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: list[int]

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per target pass that had a draft, as vLLM counts: 1 + accepted / drafts."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0

    @property
    def acceptance_rate(self) -> float:
        """The part of the drafted tokens that was accepted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """By position, the part of the drafts that was accepted at least so far."""
        return [count / max(self.num_drafts, 1) for count in self.num_accepted_tokens_per_pos]


@dataclass(frozen=True)
class RequestMetrics:
    """Counters of one request; times are in seconds."""

    spec_decode: SpecDecodeMetrics
    num_target_passes: int
    num_generated_tokens: int
    num_preemptions: int
    queue_seconds: float
    first_token_seconds: float
    total_seconds: float

    @property
    def tokens_per_target_pass(self) -> float:
        """Tokens per pass that emitted any, with a draft or without."""
        return self.num_generated_tokens / max(self.num_target_passes, 1)


@dataclass(frozen=True)
class EngineMetrics:
    """Counters of an engine since it was made, and its state as of the last step.

    `num_drafting_failures` counts requests whose drafter failed; they go on without drafts.
    """

    spec_decode: SpecDecodeMetrics
    num_steps: int
    num_target_passes: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    num_finished_requests: int
    num_drafting_failures: int
    draft_seconds: float
    model_seconds: float
    verify_seconds: float
    other_seconds: float
    num_waiting_requests: int
    num_running_requests: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_total_blocks: int

    @property
    def tokens_per_target_pass(self) -> float:
        """Tokens per pass that emitted any; unlike the mean acceptance length, passes without a
        draft count."""
        return self.num_generated_tokens / max(self.num_target_passes, 1)

    @property
    def kv_cache_usage(self) -> float:
        """The part of the KV blocks that running requests hold."""
        return self.num_held_blocks / max(self.num_total_blocks, 1)

    def as_list(self) -> list[Metric]:
        """The counters one by one; those that vLLM has too appear under its name as well."""
        spec = self.spec_decode
        ours: list[Metric] = [
            Counter("spec_decode_num_drafts", spec.num_drafts),
            Counter("spec_decode_num_draft_tokens", spec.num_draft_tokens),
            Counter("spec_decode_num_accepted_tokens", spec.num_accepted_tokens),
            Vector("spec_decode_num_accepted_tokens_per_pos", spec.num_accepted_tokens_per_pos),
        ]
        theirs: list[Metric] = [
            *(_renamed(metric) for metric in ours),
            Counter("vllm:prompt_tokens", self.num_prompt_tokens + self.num_cached_prompt_tokens),
            Counter("vllm:generation_tokens", self.num_generated_tokens),
            Gauge("vllm:num_requests_running", self.num_running_requests),
            Gauge("vllm:num_requests_waiting", self.num_waiting_requests),
            Gauge("vllm:kv_cache_usage_perc", self.kv_cache_usage),
        ]
        for name, value in vars(self).items():
            if name == "spec_decode":
                continue
            counts = name.startswith("num_") and not name.endswith(("_blocks", "ing_requests"))
            ours.append(Counter(name, value) if counts else Gauge(name, value))
        return ours + theirs


def _renamed(metric: Metric) -> Metric:
    return type(metric)(**{**vars(metric), "name": f"vllm:{metric.name}"})


def spec_decode_metrics(core: _core.SpecDecodeCounters) -> SpecDecodeMetrics:
    """A view of raw counters."""
    return SpecDecodeMetrics(
        core.num_drafts,
        core.num_draft_tokens,
        core.num_accepted_tokens,
        list(core.num_accepted_tokens_per_pos),
    )


def request_metrics(core: _core.RequestMetrics) -> RequestMetrics:
    """A view of raw counters."""
    return RequestMetrics(
        spec_decode=spec_decode_metrics(core.spec_decode),
        **{
            name: getattr(core, name)
            for name in RequestMetrics.__dataclass_fields__
            if name != "spec_decode"
        },
    )


def total_request_metrics(parts: list[RequestMetrics]) -> RequestMetrics:
    """The counters of a request's completions together: sums; of times the first and the last."""
    per_pos = [part.spec_decode.num_accepted_tokens_per_pos for part in parts]
    spec = SpecDecodeMetrics(
        sum(part.spec_decode.num_drafts for part in parts),
        sum(part.spec_decode.num_draft_tokens for part in parts),
        sum(part.spec_decode.num_accepted_tokens for part in parts),
        [sum(counts) for counts in zip(*per_pos, strict=True)],
    )
    return RequestMetrics(
        spec_decode=spec,
        num_target_passes=sum(part.num_target_passes for part in parts),
        num_generated_tokens=sum(part.num_generated_tokens for part in parts),
        num_preemptions=sum(part.num_preemptions for part in parts),
        queue_seconds=min(part.queue_seconds for part in parts),
        first_token_seconds=min(part.first_token_seconds for part in parts),
        total_seconds=max(part.total_seconds for part in parts),
    )


def engine_metrics(core: _core.EngineMetrics) -> EngineMetrics:
    """A view of raw counters."""
    return EngineMetrics(
        spec_decode=spec_decode_metrics(core.spec_decode),
        **{
            name: getattr(core, name)
            for name in EngineMetrics.__dataclass_fields__
            if name != "spec_decode"
        },
    )
