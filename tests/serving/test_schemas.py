"""What a request may hold: fields of OpenAI and ours, and nothing that would be passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from personae.serving.schemas import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "Hello?"}]
CHAT = {"model": "tiny", "messages": MESSAGES}


def refused(body: dict[str, Any], kind: type[Any] = ChatRequest) -> str:
    """Message and place of the first error."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    first = caught.value.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def test_what_openai_clients_send_by_themselves() -> None:
    body = {
        **CHAT, "temperature": 0, "top_p": 1, "n": 2, "stop": "x", "seed": -5, "stream": True, "tools": [],
        "user": "me", "stream_options": {"include_usage": True}, "max_tokens": 7, "response_format": {"type": "text"},
        "store": False, "presence_penalty": 0.0, "logit_bias": {}, "tool_choice": "auto", "metadata": {"a": "b"},
        "functions": None,
    }  # fmt: skip
    asked = ChatRequest.model_validate(body)
    assert asked.stop == ["x"]
    assert asked.length == 7
    assert asked.with_usage
    assert asked.scores is None
    assert ChatRequest.model_validate({**CHAT, "logprobs": True}).scores == 0
    assert ChatRequest.model_validate({**CHAT, "logprobs": True, "top_logprobs": 3}).scores == 3
    assert ChatRequest.model_validate({**CHAT, "max_completion_tokens": 3, "max_tokens": 3}).length == 3
    assert all(value is None for name, value in ChatRequest.model_validate(CHAT) if name not in CHAT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("presence_penalty", 0.5), ("frequency_penalty", -1), ("logit_bias", {"5": 1}), ("functions", [{}]),
        ("modalities", ["text", "audio"]), ("audio", {"voice": "x"}), ("reasoning_effort", "high"), ("top_k", 5),
        ("web_search_options", {"x": 1}), ("service_tier", "flex"), ("tool_choice", "required"),
        ("prediction", {"x": 1}), ("repetition_penalty", 1.1), ("verbosity", "low"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: object) -> None:
    assert f"'{field}' is not supported" in refused({**CHAT, field: value})


@pytest.mark.parametrize("field", ["echo", "suffix", "best_of"])
def test_completions_refuse_what_they_do_not_do(field: str) -> None:
    said = refused({"model": "tiny", "prompt": "x", field: 2}, CompletionRequest)
    assert f"'{field}' is not supported" in said


@given(st.text(min_size=1, max_size=12), st.one_of(st.integers(1, 9), st.text(min_size=1), st.just([1])))
def test_no_unknown_field_is_passed_over(field: str, value: object) -> None:
    body = {**CHAT, field + "?": value}
    assert "is not supported" in refused(body) or "surrogate" in refused(body)
    inside = {"model": "tiny", "messages": [{**MESSAGES[0], field + "?": value}]}
    assert "is not supported" in refused(inside) or "surrogate" in refused(inside)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "'image_url': only text",
        ),
        ({"messages": [{"role": "user", "content": [3]}]}, "part 0 is of type None"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages.0.content"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 33}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stream_options": {"include_usage": True}}, "'stream_options' is for streams"),
        ({"top_logprobs": 2}, "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"persona": 3}, "persona"),
        ({"persona": {"calm": "much"}}, "persona"),
        ({"persona": {"calm": float("inf")}}, "persona"),
        ({"persona": {"calm": -1}}, "persona"),
        ({"persona": {str(n): 0.01 for n in range(17)}}, "persona"),
        ({"persona": {"calm": 0.5}, "strength": 0.5}, "a blend holds its own strengths"),
        ({"strength": -0.1}, "strength"),
        ({"strength": 11}, "strength"),
        ({"user": "\ud800"}, "surrogate"),
    ],
)
def test_values_out_of_range(change: dict[str, Any], said: str) -> None:
    assert said in refused({**CHAT, **change})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (ChatRequest, {"messages": [0] * 9}),
        (ChatRequest, {"messages": [{}] * 9}),
        (ChatRequest, {"stop": [0] * 9}),
        (ChatRequest, {"persona": {str(n): -1 for n in range(99)}}),
        (CompletionRequest, {"prompt": [-1] * 9}),
        (CompletionRequest, {"prompt": [[-1] * 9] * 9}),
        (CompletionRequest, {"prompt": ["x", *[None] * 9]}),
    ],
)
def test_a_long_wrong_list_is_not_more_errors_than_a_short_one(kind: type[Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({**CHAT, **change} if kind is ChatRequest else {"model": "tiny", **change})
    assert caught.value.error_count() <= 4  # one of each type that the field may have, or each part of a message


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    asked = ChatRequest.model_validate({"model": "tiny", "messages": [{"role": "developer", "content": parts}]})
    assert asked.messages[0].content == "One two"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([], [])],
)
def test_prompts_in_all_four_forms(prompt: object, prompts: object) -> None:
    asked = CompletionRequest.model_validate({"model": "tiny", "prompt": prompt})
    assert asked.prompts == prompts
    assert asked.length is None
    assert asked.usual == 16


@pytest.mark.parametrize("prompt", [None, 3, [1, "a"], [-1], [[1], "a"], [2**31], {"a": 1}])
def test_prompts_of_no_form(prompt: object) -> None:
    assert refused({"model": "tiny", "prompt": prompt}, CompletionRequest).startswith("prompt")
