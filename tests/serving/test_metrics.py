"""What is counted, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from personae.runtime.requests import End
from personae.serving.metrics import Metrics, label


@dataclass(frozen=True)
class Figures:
    queued: int = 2
    running: int = 3
    switch_seconds: float = 1.5
    outcomes: Mapping[str, int] = field(default_factory=lambda: {"stop": 4, "failed": 1})


def read(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of label names) -> value."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_answers_of_each_persona() -> None:
    metrics = Metrics(Figures, lambda: 5)
    calm, blend = (("calm", 0.5),), (("calm", 0.5), ("loud", 0.123))
    metrics.ended(calm, End("stop", 10, 4, 3, 0.2, 0.3, 2.0))
    metrics.ended(calm, End("length", 10, 6, 0, 0.0, 0.02, 0.2))
    metrics.ended(calm, End("cancelled", 10, 0, 0, 0.7, None, 0.7))
    metrics.ended(blend, RuntimeError("x"))
    metrics.ended((), End("stop", 1, 1, 0, 0.0, 0.1, 0.1))
    metrics.responded("POST", 200)
    metrics.responded("BREW", 405)
    found = read(metrics.page().decode())
    assert found["personae_answers_total", "done", "calm"] == 2
    assert found["personae_answers_total", "cancelled", "calm"] == 1
    assert found["personae_answers_total", "failed", "blend"] == 1
    assert found["personae_answers_total", "done", "base"] == 1
    assert found["personae_tokens_total", "completion", "calm"] == 10
    assert found["personae_tokens_total", "prompt", "calm"] == 30
    assert found["personae_tokens_total", "reused", "calm"] == 3
    assert found["personae_time_to_first_token_seconds_bucket", "0.025", "calm"] == 1
    assert found["personae_time_to_first_token_seconds_bucket", "0.5", "calm"] == 2
    assert found["personae_time_to_first_token_seconds_count", "calm"] == 2  # the cancelled one had none
    assert found["personae_answer_seconds_sum", "calm"] == 2.2
    assert found["personae_queue_seconds_count",] == 4
    assert found["personae_http_responses_total", "POST", "200"] == 1
    assert found["personae_http_responses_total", "other", "405"] == 1
    assert found["personae_engine_queued",] == 2
    assert found["personae_engine_switch_seconds_total",] == 1.5
    assert found["personae_engine_outcomes_total", "stop"] == 4
    assert found["personae_loaded_personas",] == 5


def test_strengths_make_no_series_of_their_own() -> None:
    assert {label((("calm", n / 7),)) for n in range(1, 9)} == {"calm"}
    assert {label((("calm", n / 7), ("loud", 0.5))) for n in range(1, 7)} == {"blend"}
    assert label(()) == "base"


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(Figures, lambda: 0), Metrics(Figures, lambda: 0)
    one.responded("GET", 200)
    assert ("personae_http_responses_total", "GET", "200") not in read(other.page().decode())


def test_over_the_wire(client: httpx.Client, eventually: Callable[..., None]) -> None:
    asked = {"model": "tiny:calm", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = read(response.text)
    assert found["personae_tokens_total", "completion", "calm"] == 3
    assert found["personae_http_responses_total", "POST", "200"] == 1
    assert found["personae_engine_steps_total",] == 7
    assert ("personae_answers_total", "done", "calm #1") not in found
