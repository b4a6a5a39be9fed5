"""Views of the engine's counters, and the ratios that follow from them.

docs/metrics.md defines each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from forerun import _core
from forerun.prompt_histograms import Distribution, PromptHistograms


@dataclass(frozen=True)
class Metric:
    """A named value, as in vLLM's metrics reader.

    Several metrics may have one name and different labels.
    """

    name: str
    labels: dict[str, str]


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
class Histogram(Metric):
    """How many of the observed values were at most each bound.

    Attributes:
        count: all observed values.
        sum: their sum.
        buckets: for each upper bound, inclusive, as Prometheus writes it, how many values were not
            above it; "+Inf" has all of them.
    """

    count: int
    sum: float
    buckets: dict[str, int]


@dataclass(frozen=True)
class SpecDecodeMetrics:
    """What was drafted and what of it was emitted.

    A draft counts as accepted only as far as its tokens were emitted: nothing beyond a stop or
    max_tokens. Positions are depths in the draft; index 0 is the first drafted token.

    Attributes:
        num_draft_tokens_per_pos: drafts that reached the position. Fewer than num_drafts where
            drafts are shortened, as by `adaptive`. Of chains the sum is num_draft_tokens.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: list[int]
    num_draft_tokens_per_pos: list[int]

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
        """By position, the part of all drafts that was accepted at least so far, as vLLM counts.

        A draft too short to reach the position counts as not accepted there.
        """
        return [count / max(self.num_drafts, 1) for count in self.num_accepted_tokens_per_pos]

    @property
    def acceptance_rate_per_drafted_pos(self) -> list[float]:
        """By position, the part of the drafts that reached it which was accepted that far.

        0 where no draft reached it.
        """
        pairs = zip(self.num_accepted_tokens_per_pos, self.num_draft_tokens_per_pos, strict=True)
        return [accepted / max(drafted, 1) for accepted, drafted in pairs]


@dataclass(frozen=True)
class RequestSpecDecodeMetrics:
    """The drafts of one completion, under vLLM's names.

    Attributes:
        num_spec_tokens: the most tokens of a draft.
        histogram: [num_spec_tokens + 1]; entry j counts the drafts of which j tokens were accepted.
        num_draft_tokens: of all drafts together.
        per_step_accepted: accepted tokens of each draft in order; empty unless
            per_request_spec_decode_metrics is "detailed". Likewise per_step_drafted.
    """

    num_spec_tokens: int
    histogram: list[int] = field(default_factory=list)
    num_draft_tokens: int = 0
    per_step_accepted: list[int] = field(default_factory=list)
    per_step_drafted: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The counts with the ratios that follow from them, ready for JSON."""
        num_drafts = sum(self.histogram)
        num_accepted = sum(length * count for length, count in enumerate(self.histogram))
        values: dict[str, Any] = {
            "mean_acceptance_length": 1 + num_accepted / max(num_drafts, 1),
            "draft_acceptance_rate": num_accepted / max(self.num_draft_tokens, 1),
            "acceptance_histogram": list(self.histogram),
            "num_spec_steps": num_drafts,
            "num_accepted_draft_tokens": num_accepted,
            "num_draft_tokens": self.num_draft_tokens,
            "num_spec_tokens": self.num_spec_tokens,
        }
        if self.per_step_drafted:
            values["per_step_accepted"] = list(self.per_step_accepted)
            values["per_step_drafted"] = list(self.per_step_drafted)
        return values


@dataclass(frozen=True)
class RequestMetrics:
    """Counters and times of one request, all its completions together.

    Times are in seconds, 0.0 while the event has not happened. `arrival_time` is on the clock of
    time.time(), those that end in _ts are on the clock of time.monotonic().

    Attributes:
        num_target_passes: passes that emitted tokens, with a draft or without.
        num_accepted_prediction_tokens: draft tokens out of the prompt's `prediction` that were
            emitted; num_rejected_prediction_tokens: those that were not. spec_decode counts both.
        is_corrupted: it failed because logits were not finite.
        arrival_time: when it was submitted.
        queued_ts: the same on the other clock.
        scheduled_ts: when it was first scheduled.
        first_token_ts: when its first token was verified.
        last_token_ts: when its last token was verified.
        finished_ts: when it ended, by itself or because it was cancelled.
    """

    spec_decode: SpecDecodeMetrics
    num_target_passes: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_accepted_prediction_tokens: int = 0
    num_rejected_prediction_tokens: int = 0
    is_corrupted: bool = False
    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    finished_ts: float = 0.0

    @property
    def num_generation_tokens(self) -> int:
        """num_generated_tokens under vLLM's name."""
        return self.num_generated_tokens

    @property
    def is_watermarked(self) -> bool:
        """False: texts are not watermarked. Likewise is_watermark_skipped."""
        return False

    is_watermark_skipped = is_watermarked

    @property
    def first_token_latency(self) -> float:
        """first_token_seconds under vLLM's name."""
        return self.first_token_seconds

    @property
    def queue_seconds(self) -> float:
        """From the submission until it was first scheduled."""
        return self._since_queued(self.scheduled_ts)

    @property
    def first_token_seconds(self) -> float:
        """From the submission until the first token."""
        return self._since_queued(self.first_token_ts)

    @property
    def total_seconds(self) -> float:
        """From the submission until the end."""
        return self._since_queued(self.finished_ts)

    @property
    def tokens_per_target_pass(self) -> float:
        """Tokens per pass that emitted any, with a draft or without."""
        return self.num_generated_tokens / max(self.num_target_passes, 1)

    def _since_queued(self, time: float) -> float:
        return time - self.queued_ts if time else 0.0


@dataclass(frozen=True)
class EngineMetrics:
    """Counters of an engine since it was made, and its state as of the last step.

    Attributes:
        histograms: distributions under vLLM's names without "vllm:".
        num_prompt_tokens: computed, without those from the prefix cache; again after a preemption.
        num_cached_prompt_tokens: found in the prefix cache when first scheduled.
        num_prefix_cache_queries: prompt tokens looked up there.
        num_prefilled_tokens: prompts of the requests that emitted a token, each once;
            num_prefilled_from_cache of them beyond what their requests
            computed, where tokens recomputed after a preemption count again.
        num_finished_by_reason: "stop", "length", "abort", "error" and "deadline".
        num_drafting_failures: requests whose drafter failed; they go on without drafts.
        first_drafting_failure: the message of the first of them; "" where there was none.
    """

    spec_decode: SpecDecodeMetrics
    histograms: dict[str, Histogram]
    num_steps: int
    num_target_passes: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_prefix_cache_queries: int
    num_prefilled_tokens: int
    num_prefilled_from_cache: int
    num_generated_tokens: int
    num_preemptions: int
    num_finished_requests: int
    num_finished_by_reason: dict[str, int]
    num_drafting_failures: int
    first_drafting_failure: str
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

    def as_list(self, labels: Mapping[str, str] | None = None) -> list[Metric]:
        """The counters one by one, first under vLLM's names, then under this engine's own."""
        common = dict(labels or {})
        return self._as_vllm(common) + self._as_fields(common)

    def _as_vllm(self, labels: dict[str, str]) -> list[Metric]:
        spec = self.spec_decode
        counters = {
            "prompt_tokens": self.num_prefilled_tokens,
            "prompt_tokens_cached": self.num_prefilled_from_cache,
            "generation_tokens": self.num_generated_tokens,
            "num_preemptions": self.num_preemptions,
            "prefix_cache_queries": self.num_prefix_cache_queries,
            "prefix_cache_hits": self.num_cached_prompt_tokens,
            "spec_decode_num_drafts": spec.num_drafts,
            "spec_decode_num_draft_tokens": spec.num_draft_tokens,
            "spec_decode_num_accepted_tokens": spec.num_accepted_tokens,
        }
        gauges = {
            "num_requests_running": self.num_running_requests,
            "num_requests_waiting": self.num_waiting_requests,
            "kv_cache_usage_perc": self.kv_cache_usage,
        }
        sources = {
            "local_compute": self.num_prefilled_tokens - self.num_prefilled_from_cache,
            "local_cache_hit": self.num_prefilled_from_cache,
        }
        return [
            *(Gauge(f"vllm:{name}", dict(labels), value) for name, value in gauges.items()),
            *(Counter(f"vllm:{name}", dict(labels), value) for name, value in counters.items()),
            Vector(
                "vllm:spec_decode_num_accepted_tokens_per_pos",
                dict(labels),
                spec.num_accepted_tokens_per_pos,
            ),
            *(
                Counter("vllm:prompt_tokens_by_source", {**labels, "source": source}, count)
                for source, count in sources.items()
            ),
            *(
                Counter("vllm:request_success", {**labels, "finished_reason": reason}, count)
                for reason, count in self.num_finished_by_reason.items()
            ),
            *(replace(histogram, labels=dict(labels)) for histogram in self.histograms.values()),
        ]

    def _as_fields(self, labels: dict[str, str]) -> list[Metric]:
        metrics: list[Metric] = []
        for name, value in vars(self.spec_decode).items():
            kind = Vector if isinstance(value, list) else Counter
            metrics.append(kind(f"spec_decode_{name}", dict(labels), value))
        for name, value in vars(self).items():
            counts = name.startswith("num_") and not name.endswith(("_blocks", "ing_requests"))
            if isinstance(value, int) and counts:
                metrics.append(Counter(name, dict(labels), value))
            elif isinstance(value, int | float):
                metrics.append(Gauge(name, dict(labels), value))
        return metrics


def _spec_decode_metrics(core: _core.SpecDecodeCounters) -> SpecDecodeMetrics:
    return SpecDecodeMetrics(
        **{name: getattr(core, name) for name in SpecDecodeMetrics.__dataclass_fields__}
    )


def request_metrics(core: _core.RequestMetrics) -> RequestMetrics:
    """A view of raw counters."""
    values = {name: getattr(core, name) for name in RequestMetrics.__dataclass_fields__}
    values["spec_decode"] = _spec_decode_metrics(core.spec_decode)
    return RequestMetrics(**values)


def request_spec_decode_metrics(core: _core.RequestMetrics) -> RequestSpecDecodeMetrics:
    """The drafts of one completion."""
    spec = core.spec_decode
    at_least = [spec.num_drafts, *spec.num_accepted_tokens_per_pos, 0]
    return RequestSpecDecodeMetrics(
        num_spec_tokens=len(spec.num_accepted_tokens_per_pos),
        histogram=[count - more for count, more in itertools.pairwise(at_least)],
        num_draft_tokens=spec.num_draft_tokens,
        per_step_accepted=[step.num_accepted_tokens for step in core.draft_steps],
        per_step_drafted=[step.num_draft_tokens for step in core.draft_steps],
    )


def total_request_metrics(parts: Sequence[RequestMetrics]) -> RequestMetrics:
    """The counters of a request's completions together: sums; of times the first and the last."""
    specs = [part.spec_decode for part in parts]
    return RequestMetrics(
        spec_decode=total_spec_decode_metrics(specs),
        num_target_passes=sum(part.num_target_passes for part in parts),
        num_generated_tokens=sum(part.num_generated_tokens for part in parts),
        num_preemptions=sum(part.num_preemptions for part in parts),
        num_accepted_prediction_tokens=sum(part.num_accepted_prediction_tokens for part in parts),
        num_rejected_prediction_tokens=sum(part.num_rejected_prediction_tokens for part in parts),
        is_corrupted=any(part.is_corrupted for part in parts),
        arrival_time=min(part.arrival_time for part in parts),
        queued_ts=min(part.queued_ts for part in parts),
        scheduled_ts=_first([part.scheduled_ts for part in parts]),
        first_token_ts=_first([part.first_token_ts for part in parts]),
        last_token_ts=max(part.last_token_ts for part in parts),
        finished_ts=max(part.finished_ts for part in parts),
    )


def total_spec_decode_metrics(parts: Sequence[SpecDecodeMetrics]) -> SpecDecodeMetrics:
    """The counters of several requests together, whose drafts may differ in length."""

    def per_pos(lists: Sequence[list[int]]) -> list[int]:
        return [sum(counts) for counts in itertools.zip_longest(*lists, fillvalue=0)]

    return SpecDecodeMetrics(
        num_drafts=sum(part.num_drafts for part in parts),
        num_draft_tokens=sum(part.num_draft_tokens for part in parts),
        num_accepted_tokens=sum(part.num_accepted_tokens for part in parts),
        num_accepted_tokens_per_pos=per_pos([part.num_accepted_tokens_per_pos for part in parts]),
        num_draft_tokens_per_pos=per_pos([part.num_draft_tokens_per_pos for part in parts]),
    )


def _first(times: Sequence[float]) -> float:
    return min(filter(None, times), default=0.0)


def engine_metrics(core: _core.EngineMetrics, prompts: PromptHistograms) -> EngineMetrics:
    """A view of raw counters."""
    values = {name: getattr(core, name) for name in EngineMetrics.__dataclass_fields__}
    values["spec_decode"] = _spec_decode_metrics(core.spec_decode)
    values["histograms"] = {
        name: _histogram(name, getattr(core.histograms, name))
        for name, member in vars(_core.EngineHistograms).items()
        if isinstance(member, property)
    } | {name: _histogram(name, values) for name, values in prompts.by_name().items()}
    values["num_finished_by_reason"] = {
        reason.name.lower(): core.num_finished_by_reason[int(reason)]
        for reason in _core.FinishReason.__members__.values()
        if reason != _core.FinishReason.NONE
    }
    return EngineMetrics(**values)


def _histogram(name: str, core: _core.Histogram | Distribution) -> Histogram:
    names = [*map(_bound_name, core.bounds), "+Inf"]
    buckets = dict(zip(names, itertools.accumulate(core.counts), strict=True))
    return Histogram(f"vllm:{name}", {}, core.count, core.sum, buckets)


def _bound_name(bound: float) -> str:
    """As Prometheus clients write it: 0.5, 100000.0, 2e+06."""
    return repr(bound) if bound < 1e6 else f"{bound:.0e}"
