"""Whatever the OpenAPI document permits, and much that it does not, is answered without a failure of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

OPERATIONS = (
    "GET /healthz", "GET /metrics", "GET /readyz", "POST /v1/chat/completions", "POST /v1/completions",
    "GET /v1/models", "GET /v1/models/{model}", "GET /v1/personas", "POST /v1/personas", "GET /v1/personas/{name}",
    "DELETE /v1/personas/{name}",
)  # fmt: skip
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


EXAMPLES = 15  # of each operation and kind; every one is a request to a real server
Operations = dict[str, Any]


@pytest.fixture
def operations(
    make_service: Callable[..., Any], served: Callable[..., Any], persona_file: Callable[..., Path]
) -> Iterator[Operations]:
    """Name -> operation of the document that a server gives out."""
    service = make_service([persona_file("calm")], max_tokens=3, max_body=20_000)
    with served(service) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        yield {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


def ask(operation: Any, mode: schemathesis.GenerationMode, **known: object) -> list[int]:
    """Send examples of an operation, with `known` fields in their bodies, and check each response; the statuses."""
    statuses = []

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = case.body | known
        statuses.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    send()
    return statuses


@pytest.mark.parametrize("label", OPERATIONS)
def test_requests_as_the_document_says(operations: Operations, label: str) -> None:
    assert sorted(operations) == sorted(OPERATIONS)
    assert ask(operations[label], schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
def test_requests_as_the_document_forbids(operations: Operations, label: str) -> None:
    assert set(ask(operations[label], schemathesis.GenerationMode.NEGATIVE)) <= {400, 413}


@pytest.mark.parametrize("label", ["POST /v1/chat/completions", "POST /v1/completions"])
def test_random_options_of_answers_that_are_written(operations: Operations, label: str) -> None:
    known: dict[str, object] = {"model": "tiny:calm", "persona": None, "max_tokens": None, "n": None, "strength": 0.5}
    if "chat" in label:
        known |= {"messages": [{"role": "user", "content": "Hello?"}], "max_completion_tokens": 2}
    else:
        known |= {"prompt": "Hello?", "max_tokens": 2}
    statuses = ask(operations[label], schemathesis.GenerationMode.POSITIVE, **known)
    assert set(statuses) <= {200, 400}
    assert 200 in statuses
