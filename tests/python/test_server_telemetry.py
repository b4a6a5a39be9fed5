"""/metrics: the engine's counters as Prometheus reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from prometheus_client.parser import text_string_to_metric_families
from server_apps import small_app
from starlette.testclient import TestClient

from forerun import LLM, SamplingParams, metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    model = LLM(tiny_dir, speculative_config={"method": "suffix", "adaptive": False}, num_threads=1)
    params = SamplingParams(temperature=0, max_tokens=64)
    model.generate(["low low low low", "a b a b"], params, use_tqdm=False)
    return model


def scrape(client: TestClient) -> tuple[dict[str, str], Samples]:
    """Kinds by family, and values by name and labels."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    kinds = {family.name: family.type for family in families}
    assert len(kinds) == len(families)
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return kinds, samples


def test_every_counter_of_the_engine_is_there(llm: LLM) -> None:
    kinds, samples = scrape(TestClient(small_app(llm)))
    listed = llm.get_metrics()
    assert len(listed) > 50
    vllm_names = {metric.name for metric in listed if metric.name.startswith("vllm:")}
    for metric in listed:
        name = metric.name
        if not name.startswith("vllm:"):
            name = f"vllm:{name}" if f"vllm:{name}" in vllm_names else f"forerun:{name}"
        key = tuple(sorted(metric.labels.items()))
        if isinstance(metric, metrics.Histogram):
            assert kinds[name] == "histogram"
            assert samples[f"{name}_count", key] == metric.count
            assert samples[f"{name}_sum", key] == metric.sum
            for bound, count in metric.buckets.items():
                labels = tuple(sorted({**metric.labels, "le": bound}.items()))
                assert samples[f"{name}_bucket", labels] == count
        elif isinstance(metric, metrics.Vector):
            for position, value in enumerate(metric.values):
                labels = tuple(sorted({**metric.labels, "position": str(position)}.items()))
                assert samples[f"{name}_total", labels] == value
        elif isinstance(metric, metrics.Counter):
            assert samples[f"{name}_total", key] == metric.value
        else:
            assert isinstance(metric, metrics.Gauge)
            assert kinds[name] == "gauge"
            assert samples[name, key] == metric.value


# What vLLM's own dashboard and its documentation of speculation read.
VLLM_SAMPLES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "request_success_total",
    "num_preemptions_total",
    "spec_decode_num_drafts_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    "spec_decode_num_accepted_tokens_per_pos_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum",
    "request_decode_time_seconds_sum",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_params_max_tokens_bucket",
    "request_params_n_bucket",
    "iteration_tokens_total_bucket",
]


def test_samples_have_vllms_names(llm: LLM) -> None:
    _, samples = scrape(TestClient(small_app(llm)))
    names = {name for name, _ in samples}
    assert {f"vllm:{name}" for name in VLLM_SAMPLES} - names == set()
    (accepted,) = [
        value
        for (name, _), value in samples.items()
        if name == "vllm:spec_decode_num_accepted_tokens_total"
    ]
    assert accepted > 0


def test_requests_are_counted_by_route(llm: LLM) -> None:
    client = TestClient(small_app(llm, api_keys=["one"]), headers={"authorization": "Bearer one"})
    client.get("/v1/output")
    client.get("/v1/output")
    client.get("/v1/output", headers={"authorization": "Bearer two"})
    for path in ("/x", "/y"):
        client.request("BREW", path)
    _, samples = scrape(client)
    counts = {
        (labels["handler"], labels["method"], labels["status"]): value
        for (name, pairs), value in samples.items()
        if name == "http_requests_total" and (labels := dict(pairs))
    }
    assert counts == {
        ("/v1/output", "GET", "200"): 2,
        ("none", "GET", "401"): 1,
        ("none", "other", "404"): 2,
    }
    assert (
        samples[
            "http_request_duration_seconds_count", (("handler", "/v1/output"), ("method", "GET"))
        ]
        == 2
    )


def test_the_process_is_measured(llm: LLM) -> None:
    _, samples = scrape(TestClient(small_app(llm)))
    assert samples["process_resident_memory_bytes", ()] > 1e6


def test_the_dashboard_reads_samples_that_exist(llm: LLM) -> None:
    client = TestClient(small_app(llm))
    client.get("/v1/output")
    _, samples = scrape(client)
    names = {name for name, _ in samples}
    labels = {label for _, pairs in samples for label, _ in pairs}
    path = Path(__file__).parents[2] / "docs" / "grafana_dashboard.json"
    panels = json.loads(path.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        # Names are followed by a selection of labels or of a range, or are the whole query.
        read = re.findall(r"([a-z][a-z0-9_]*(?::[a-z0-9_]+)?)(?=[{\[]|$)", query)
        assert read, query
        assert set(read) <= names, query
        for listed in re.findall(r"by \((\w+)\)", query):
            assert listed in labels, query
