"""The counters as Python shows them: vLLM's names and classes, and that they add up."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forerun
from forerun import LLM, SamplingParams
from forerun.metrics import EngineMetrics, RequestMetrics, SpecDecodeMetrics
from forerun.prompt_histograms import PromptHistograms

PROMPTS = [
    "the low the low the low",
    "one two one two one two one",
    "a",
    "newer newer newest 12 12 12",
]
GREEDY = SamplingParams(temperature=0, max_tokens=24)
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 1,
    "adaptive": False,  # the speed of the machine must not matter
}
LATENCY = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920]
TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40]
FIRST_TOKEN = [
    *[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10],
    *[20, 40, 80, 160, 640, 2560],
]
STEP_TOKENS = [1, 8, *[2**i for i in range(4, 15)]]
OF_REQUESTS = [
    "e2e_request_latency_seconds",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_num_preemptions",
    "request_params_max_tokens",
    "request_prefill_kv_computed_tokens",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
]


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, speculative_config=NGRAM, max_model_len=512, seed=3)


class FailedDrafter:
    """An engine with the metrics of one whose drafter failed."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def metrics(self) -> Any:
        return SimpleNamespace(num_drafting_failures=2, first_drafting_failure="no such block")


def test_a_failure_of_the_drafter_is_logged_once(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(tiny_dir, speculative_config=NGRAM, max_model_len=512)
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert llm.metrics().first_drafting_failure == ""
    assert "drafter failed" not in caplog.text
    monkeypatch.setattr(llm._board, "_engine", FailedDrafter(llm._board._engine))
    for _ in range(2):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert caplog.text.count("The drafter failed") == 1
    assert caplog.text.count("no such block") == 1


def by_name(llm: LLM) -> dict[str, Any]:
    """The metrics of vLLM's that have no labels of their own."""
    return {m.name: m for m in llm.get_metrics() if len(m.labels) == 2}


def labelled(llm: LLM, name: str, label: str) -> dict[str, int]:
    return {
        m.labels[label]: m.value
        for m in llm.get_metrics()
        if isinstance(m, forerun.Counter) and m.name == name
    }


def test_every_metric_has_the_class_and_labels_of_vllm(llm: LLM, tiny_dir: Path) -> None:
    classes: dict[type, set[str]] = {}
    for metric in llm.get_metrics():
        assert isinstance(metric, forerun.Metric)
        assert metric.labels["model_name"] == str(tiny_dir)
        assert metric.labels["engine"] == "0"
        if metric.name.startswith("vllm:"):
            classes.setdefault(type(metric), set()).add(metric.name.removeprefix("vllm:"))
    assert classes[forerun.Gauge] == {
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
    }
    assert classes[forerun.Counter] == {
        "generation_tokens",
        "num_preemptions",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "prompt_tokens",
        "prompt_tokens_by_source",
        "prompt_tokens_cached",
        "request_success",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_drafts",
    }
    assert classes[forerun.Vector] == {"spec_decode_num_accepted_tokens_per_pos"}
    assert classes[forerun.Histogram] == {
        *OF_REQUESTS,
        "request_params_n",
        "request_max_num_generation_tokens",
        "inter_token_latency_seconds",
        "iteration_tokens_total",
    }


def test_metrics_print_as_in_vllms_example(llm: LLM) -> None:
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    lines = []
    for metric in llm.get_metrics():
        if isinstance(metric, forerun.Gauge | forerun.Counter):
            lines.append(f"{metric.name} = {metric.value}")
        elif isinstance(metric, forerun.Vector):
            lines.append(f"{metric.name} = {metric.values}")
        else:
            assert isinstance(metric, forerun.Histogram)
            lines.append(f"{metric.name}: sum {metric.sum}, count {metric.count}")
            lines += [f"    {bound} = {count}" for bound, count in metric.buckets.items()]
    assert any(line.startswith("    +Inf = ") for line in lines)


def test_buckets_are_vllms_and_cumulative(llm: LLM) -> None:
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    metrics = by_name(llm)
    for metric in metrics.values():
        if not isinstance(metric, forerun.Histogram):
            continue
        counts = list(metric.buckets.values())
        assert list(metric.buckets)[-1] == "+Inf"
        assert counts == sorted(counts)
        assert counts[-1] == metric.count
        assert all(isinstance(count, int) for count in counts)
        assert [float(bound) for bound in metric.buckets][-1] == math.inf

    def bounds(name: str) -> list[str]:
        return list(metrics[f"vllm:{name}"].buckets)

    assert bounds("e2e_request_latency_seconds") == [*map(_written, [*LATENCY, 7680]), "+Inf"]
    assert bounds("request_queue_time_seconds") == bounds("e2e_request_latency_seconds")
    assert bounds("inter_token_latency_seconds") == [*map(_written, [*TOKEN, 80]), "+Inf"]
    assert bounds("time_to_first_token_seconds") == [*map(_written, FIRST_TOKEN), "+Inf"]
    assert bounds("iteration_tokens_total") == [*map(_written, STEP_TOKENS), "+Inf"]
    assert bounds("request_prompt_tokens")[-3:] == ["200.0", "500.0", "+Inf"]
    assert forerun.metrics._bound_name(2e6) == "2e+06"
    assert forerun.metrics._bound_name(5e5) == "500000.0"


def _written(bound: float) -> str:
    return str(float(bound))


def test_counters_add_up_over_completions_stops_and_aborts(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, speculative_config=NGRAM, max_model_len=512, seed=3)
    several = SamplingParams(n=3, temperature=0.8, seed=5, max_tokens=20)
    outputs = llm.generate(PROMPTS, several, use_tqdm=False)
    texts = [part.text for output in outputs for part in output.outputs if len(part.text) > 4]
    stopped = SamplingParams(temperature=0, max_tokens=40, stop=[texts[0][2:4]])
    outputs += llm.generate(PROMPTS, stopped, use_tqdm=False)
    num_prompts = 4 * len(PROMPTS)
    with llm.stream(
        PROMPTS[:2], SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    ) as s:
        delta = next(s)
    llm.generate(
        "x", SamplingParams(max_tokens=1, temperature=0), use_tqdm=False
    )  # sees the aborts
    metrics, counts = by_name(llm), labelled(llm, "vllm:request_success", "finished_reason")

    assert set(counts) == {"stop", "length", "abort", "deadline", "error"}
    assert (counts["abort"], counts["deadline"], counts["error"]) == (2, 0, 0)
    assert sum(counts.values()) == num_prompts + 2 + 1
    for name in OF_REQUESTS:
        histogram = metrics[f"vllm:{name}"]
        assert histogram.count == histogram.buckets["+Inf"] == num_prompts + 2 + 1, name
    generated = metrics["vllm:request_generation_tokens"]
    done = sum(len(part.token_ids) for output in outputs for part in output.outputs)
    assert (
        metrics["vllm:generation_tokens"].value == generated.sum >= done + len(delta.token_ids) + 1
    )
    lengths = [len(output.prompt_token_ids) * len(output.outputs) for output in outputs]
    queries = metrics["vllm:prefix_cache_queries"].value
    assert queries == metrics["vllm:prompt_tokens"].value > sum(lengths)
    assert queries == metrics["vllm:request_prompt_tokens"].sum
    sources = labelled(llm, "vllm:prompt_tokens_by_source", "source")
    assert sum(sources.values()) == queries
    assert sources["local_cache_hit"] == metrics["vllm:prefix_cache_hits"].value > 0
    assert metrics["vllm:prompt_tokens_cached"].value == sources["local_cache_hit"]
    assert metrics["vllm:num_requests_running"].value == 0
    raw = llm.metrics()
    assert metrics["vllm:inter_token_latency_seconds"].count == raw.num_target_passes - sum(
        counts.values()
    )
    steps = metrics["vllm:iteration_tokens_total"]
    assert steps.sum == raw.num_prompt_tokens + raw.num_generated_tokens


def test_prompts_are_counted_once_with_all_their_completions(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, max_model_len=128)
    sampled = SamplingParams(n=3, temperature=1, seed=1, max_tokens=60)
    outputs = llm.generate(PROMPTS, sampled, use_tqdm=False)
    outputs += llm.generate(PROMPTS[:3], GREEDY, use_tqdm=False)
    longest = [max(len(part.token_ids) for part in output.outputs) for output in outputs]
    assert len(set(longest)) > 1
    with llm.stream("a", SamplingParams(max_tokens=90, ignore_eos=True)) as stream:
        next(stream)
    llm.generate(PROMPTS[:1], SamplingParams(n=25, max_tokens=1), use_tqdm=False)
    metrics = by_name(llm)
    num = metrics["vllm:request_params_n"]
    assert num.buckets == {"1.0": 3, "2.0": 3, "5.0": 7, "10.0": 7, "20.0": 7, "+Inf": 8}
    assert (num.count, num.sum) == (8, 3 * 1 + 4 * 3 + 25)
    most = metrics["vllm:request_max_num_generation_tokens"]
    assert (most.count, most.sum) == (8, sum(longest) + 1)
    assert list(most.buckets) == list(metrics["vllm:request_generation_tokens"].buckets)
    for bound, count in most.buckets.items():
        assert count == sum(length <= float(bound) for length in [*longest, 1])


def test_a_prompt_whose_end_is_delivered_again_is_counted_once() -> None:
    once = PromptHistograms.empty([1, 2]).observe(4, [1, 3])
    assert once.observe(4, [1, 3]) == once
    assert once.request_max_num_generation_tokens.counts == (0, 0, 1)
    twice = once.observe(5, [2])
    assert twice.request_params_n.counts == (1, 1, 0, 0, 0, 0)
    most = twice.request_max_num_generation_tokens
    assert (most.counts, most.sum) == ((0, 1, 1), 5)


def test_preemptions_are_counted_once_everywhere(tiny_dir: Path) -> None:
    options = {"max_model_len": 64, "enable_prefix_caching": False}
    room = 16 << 20
    blocks = LLM(tiny_dir, kv_cache_memory_bytes=room, **options).metrics().num_total_blocks
    # Five blocks of 16 tokens, of which one request may need four.
    llm = LLM(tiny_dir, kv_cache_memory_bytes=room // blocks * 5, **options)
    assert llm.metrics().num_total_blocks == 5
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    each = [output.metrics.num_preemptions for output in outputs if output.metrics]
    metrics = by_name(llm)
    assert metrics["vllm:num_preemptions"].value == sum(each) > 0
    assert metrics["vllm:request_num_preemptions"].sum == sum(each)
    prompts = sum(len(output.prompt_token_ids) for output in outputs)
    assert metrics["vllm:prompt_tokens"].value == prompts < llm.metrics().num_prompt_tokens
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert metrics["vllm:generation_tokens"].value == generated > 4 * 30
    assert metrics["vllm:prefix_cache_queries"].value == 0


def test_chains_are_drafted_position_by_position(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    specs = [output.metrics.spec_decode for output in outputs if output.metrics]
    for spec in [*specs, llm.metrics().spec_decode]:
        drafted = spec.num_draft_tokens_per_pos
        assert sum(drafted) == spec.num_draft_tokens
        assert drafted == sorted(drafted, reverse=True)
        assert drafted[0] == spec.num_drafts
        assert sum(spec.num_accepted_tokens_per_pos) == spec.num_accepted_tokens
    [vector] = [m for m in llm.get_metrics() if m.name == "spec_decode_num_draft_tokens_per_pos"]
    assert isinstance(vector, forerun.Vector)
    assert vector.values == llm.metrics().spec_decode.num_draft_tokens_per_pos


def test_rates_by_position_divide_by_drafts_or_by_drafts_that_reach_it() -> None:
    # Ten drafts, of which four had two tokens.
    spec = SpecDecodeMetrics(10, 14, 8, [6, 2], [10, 4])
    assert spec.acceptance_rate_per_pos == [0.6, 0.2]  # vLLM's: of all drafts
    assert spec.acceptance_rate_per_drafted_pos == [0.6, 0.5]
    assert spec.mean_acceptance_length == 1.8
    nothing = SpecDecodeMetrics(0, 0, 0, [0, 0], [0, 0])
    assert nothing.acceptance_rate_per_drafted_pos == [0.0, 0.0]


def test_times_of_a_request_have_vllms_names_and_one_order(llm: LLM) -> None:
    before = (time.time(), time.monotonic())
    [output] = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    after = (time.time(), time.monotonic())
    metrics = output.metrics
    assert metrics is not None
    assert before[0] <= metrics.arrival_time <= after[0]
    times = [
        before[1],
        metrics.queued_ts,
        metrics.scheduled_ts,
        metrics.first_token_ts,
        metrics.last_token_ts,
        metrics.finished_ts,
        after[1],
    ]
    assert times == sorted(times)
    assert metrics.num_generation_tokens == len(output.outputs[0].token_ids)
    assert metrics.first_token_latency == metrics.first_token_ts - metrics.queued_ts
    assert (metrics.is_watermarked, metrics.is_watermark_skipped) == (False, False)
    assert metrics.queue_seconds == metrics.scheduled_ts - metrics.queued_ts
    assert metrics.total_seconds == metrics.finished_ts - metrics.queued_ts
    assert (metrics.num_preemptions, metrics.is_corrupted) == (0, False)


def test_completions_that_never_ran_have_no_times() -> None:
    drafts = SpecDecodeMetrics(0, 0, 0, [], [])
    waiting = RequestMetrics(drafts, queued_ts=5.0, arrival_time=1.0, finished_ts=9.0)
    assert (waiting.queue_seconds, waiting.first_token_seconds, waiting.total_seconds) == (0, 0, 4)
    ran = RequestMetrics(drafts, queued_ts=6.0, arrival_time=2.0, scheduled_ts=7.0, finished_ts=8.0)
    both = forerun.metrics.total_request_metrics([waiting, ran])
    assert (both.queued_ts, both.scheduled_ts, both.finished_ts) == (5.0, 7.0, 9.0)
    assert (both.first_token_ts, both.arrival_time) == (0.0, 1.0)


def test_every_field_of_the_core_is_shown() -> None:
    core = {n for n, m in vars(forerun._core.EngineMetrics).items() if isinstance(m, property)}
    assert core == set(EngineMetrics.__dataclass_fields__)


def test_drafts_of_one_completion_are_reported_when_asked_for(tiny_dir: Path) -> None:
    def drafts(level: str | None, config: Any = NGRAM) -> tuple[Any, Any]:
        options = {} if level is None else {"per_request_spec_decode_metrics": level}
        llm = LLM(tiny_dir, speculative_config=config, max_model_len=512, **options)
        params = SamplingParams(temperature=0.5, seed=1, max_tokens=24, n=2)
        [output] = llm.generate(PROMPTS[1], params, use_tqdm=False)
        return output, [part.spec_decode_metrics for part in output.outputs]

    assert drafts(None)[1] == drafts("none")[1] == [None, None]
    assert drafts("detailed", None)[1] == [None, None]
    output, summaries = drafts("summary")
    _, details = drafts("detailed")
    total = output.metrics.spec_decode
    assert sum(sum(part.histogram) for part in summaries) == total.num_drafts > 0
    assert sum(part.num_draft_tokens for part in summaries) == total.num_draft_tokens
    accepted = [sum(j * n for j, n in enumerate(part.histogram)) for part in summaries]
    assert sum(accepted) == total.num_accepted_tokens
    for summary, detail in zip(summaries, details, strict=True):
        assert isinstance(summary, forerun.RequestSpecDecodeMetrics)
        assert summary.num_spec_tokens == len(summary.histogram) - 1 == 4
        assert (summary.per_step_accepted, summary.per_step_drafted) == ([], [])
        assert "per_step_drafted" not in summary.to_dict()
        assert detail.histogram == summary.histogram
        steps = detail.to_dict()
        assert (
            len(detail.per_step_drafted) == len(detail.per_step_accepted) == sum(detail.histogram)
        )
        assert sum(detail.per_step_drafted) == detail.num_draft_tokens == steps["num_draft_tokens"]
        counts = [detail.per_step_accepted.count(length) for length in range(5)]
        assert detail.histogram == counts == steps["acceptance_histogram"]


@pytest.mark.parametrize("level", ["all", True, None, 1])
def test_an_unknown_level_of_detail_is_refused(tiny_dir: Path, level: Any) -> None:
    with pytest.raises(forerun.InvalidArgumentError, match="per_request_spec_decode_metrics"):
        LLM(tiny_dir, per_request_spec_decode_metrics=level)
