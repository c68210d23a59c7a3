"""Every exception as OpenAI's error object."""

from __future__ import annotations

import json
import logging

import pytest

from personae.errors import (
    ArtefactError,
    BusyError,
    DataError,
    MaskMismatchError,
    ModelError,
    OptionError,
    PersonaInUseError,
    UnknownPersonaError,
)
from personae.serving.refusals import Refusal, body_of, refusal_of, response_of


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (OptionError("x"), 400, "invalid_request_error"),
        (DataError("x"), 400, "invalid_request_error"),
        (ArtefactError("x"), 400, "invalid_request_error"),
        (MaskMismatchError("x"), 400, "invalid_request_error"),
        (ModelError("x"), 400, "invalid_request_error"),
        (UnknownPersonaError("x"), 404, "not_found_error"),
        (PersonaInUseError("x"), 409, "invalid_request_error"),
        (BusyError("x"), 429, "rate_limit_error"),
        (Refusal(401, "x"), 401, "authentication_error"),
        (Refusal(507, "x"), 507, "server_error"),
    ],
)
def test_errors_of_the_user_say_what_is_wrong(
    error: Exception, status: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = refusal_of(error)
    assert refusal.status == status
    assert body_of(refusal) == {
        "error": {"message": "x", "type": kind, "param": refusal.param, "code": refusal.code}
    }  # fmt: skip
    assert not caplog.records


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), MemoryError("secret"), KeyError("secret"), OSError("secret")]
)
def test_defects_are_logged_and_not_told(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "personae.serving"):
        refusal = refusal_of(error)
    assert refusal.status == 500
    assert "secret" not in refusal.message
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error


def test_any_message_can_be_sent() -> None:
    response = response_of(Refusal(400, 'half a pair \ud800, "quotes", \0', headers={"Retry-After": "1"}))
    assert json.loads(bytes(response.body))["error"]["message"].startswith("half a pair \ud800")
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/json"
