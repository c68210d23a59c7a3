"""What the server counts, in Prometheus' form.

A persona's own name is a label, a blend is 'blend': strengths are free numbers, and each would be a series of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from personae.runtime.look import Look, named
from personae.runtime.requests import End

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NOW = frozenset({"queued", "running", "cohorts", "kept_tokens"})  # figures of the engine that go up and down


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    statistics: gives the engine's counters, a dataclass of numbers and mappings of them. loaded: gives the number of
    personas in memory.
    """

    def __init__(self, statistics: Callable[[], Any], loaded: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("answers", "Answers by how they ended.", "persona", "outcome")
        self._tokens = self._counter("tokens", "Tokens read and written.", "persona", "kind")
        self._responses = self._counter("http_responses", "Responses by method and status.", "method", "status")
        self._first = self._seconds("time_to_first_token_seconds", "From submission to the first token.", "persona")
        self._queued = self._seconds("queue_seconds", "From submission to the first step.")
        self._total = self._seconds("answer_seconds", "From submission to the last token.", "persona")
        self._registry.register(_Resident(statistics, loaded))

    def ended(self, look: Look, end: End | BaseException) -> None:
        """An answer of the engine is over, or failed."""
        persona = label(look)
        if isinstance(end, BaseException):
            self._requests.labels(persona, "failed").inc()
            return
        self._requests.labels(persona, "cancelled" if end.reason == "cancelled" else "done").inc()
        self._tokens.labels(persona, "prompt").inc(end.prompt_tokens)
        self._tokens.labels(persona, "reused").inc(end.reused_tokens)
        self._tokens.labels(persona, "completion").inc(end.completion_tokens)
        self._queued.observe(end.queued)
        if end.first_token is not None:
            self._first.labels(persona).observe(end.first_token)
        if end.reason != "cancelled":
            self._total.labels(persona).observe(end.total)

    def responded(self, method: str, status: int) -> None:
        """A response went out."""
        known = method if method in {"GET", "POST", "DELETE", "HEAD", "OPTIONS"} else "other"
        self._responses.labels(known, str(status)).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"personae_{name}", text, labels, registry=self._registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"personae_{name}", text, labels, buckets=_SECONDS, registry=self._registry)

    def page(self) -> bytes:
        """All of it, for `/metrics`."""
        return generate_latest(self._registry)


def label(look: Look) -> str:
    """'base', the persona's name, or 'blend'."""
    return "blend" if len(look) > 1 else look[0][0] if look else named(look)


class _Resident(Collector):
    """Reads the engine's own counters when somebody asks."""

    def __init__(self, statistics: Callable[[], Any], loaded: Callable[[], int]) -> None:
        self._statistics, self._loaded = statistics, loaded

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Each figure of the engine as personae_engine_NAME, and the personas in memory."""
        yield GaugeMetricFamily("personae_loaded_personas", "Personas whose masks are in memory.", self._loaded())
        figures = self._statistics()
        for field in dataclasses.fields(figures):
            name, text, value = (
                f"personae_engine_{field.name}",
                f"The engine's '{field.name}'.",
                getattr(figures, field.name),
            )
            if isinstance(value, Mapping):
                family = CounterMetricFamily(name, text, labels=["kind"])
                for kind in sorted(value):
                    family.add_metric([kind], value[kind])
                yield family
            else:
                yield (GaugeMetricFamily if field.name in _NOW else CounterMetricFamily)(name, text, value)
