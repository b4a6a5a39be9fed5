"""The engine's and the server's counters in Prometheus' format, under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.types import Scope

from forerun import metrics

_HELP = "defined in docs/metrics.md"
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class HasMetrics(Protocol):
    """An LLM, as far as its counters are concerned."""

    def get_metrics(self) -> list[metrics.Metric]:
        """The counters one by one."""


class EngineCollector(Collector):
    """Reads an LLM's counters at every scrape.

    Counters that vLLM has keep its names; the others begin with `forerun:`.
    """

    def __init__(self, llm: HasMetrics) -> None:
        self._llm = llm

    def collect(self) -> Iterator[Family]:
        """One family for each name."""
        listed = self._llm.get_metrics()
        names = {metric.name for metric in listed}
        families: dict[str, Family] = {}
        for metric in listed:
            if metric.name.startswith("vllm:"):
                name = metric.name
            elif f"vllm:{metric.name}" not in names:
                name = f"forerun:{metric.name}"
            else:
                continue
            _add(families, name, metric)
        yield from families.values()


def _add(families: dict[str, Family], name: str, metric: metrics.Metric) -> None:
    labels, values = list(metric.labels), list(metric.labels.values())
    family: Any
    if isinstance(metric, metrics.Histogram):
        family = families.setdefault(name, HistogramMetricFamily(name, _HELP, labels=labels))
        family.add_metric(values, list(metric.buckets.items()), metric.sum)
    elif isinstance(metric, metrics.Vector):
        labels.append("position")
        family = families.setdefault(name, CounterMetricFamily(name, _HELP, labels=labels))
        for position, value in enumerate(metric.values):
            family.add_metric([*values, str(position)], value)
    elif isinstance(metric, metrics.Counter):
        family = families.setdefault(name, CounterMetricFamily(name, _HELP, labels=labels))
        family.add_metric(values, metric.value)
    elif isinstance(metric, metrics.Gauge):
        family = families.setdefault(name, GaugeMetricFamily(name, _HELP, labels=labels))
        family.add_metric(values, metric.value)


class HttpMetrics:
    """Counts requests by route, method and status, refused ones too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("handler", "method", "status")
        self._requests = Counter("http_requests", "HTTP requests", labels, registry=registry)
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From the head of a request to the end of its response",
            ("handler", "method"),
            buckets=_SECONDS,
            registry=registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts one request; what clients may choose freely never becomes a label."""
        handler = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(handler, method, str(status)).inc()
        self._seconds.labels(handler, method).observe(seconds)


def install_metrics(app: FastAPI, llm: HasMetrics) -> HttpMetrics:
    """Adds /metrics to an app."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(llm))
    ProcessCollector(registry=registry)

    # Not a coroutine: the engine's counters are read between two of its steps.
    @app.get("/metrics", include_in_schema=False)
    def metrics_page() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return HttpMetrics(registry)
