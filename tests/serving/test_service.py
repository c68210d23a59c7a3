"""From a request of the API to requests of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personae.errors import BusyError, DataError, OptionError, UnknownPersonaError
from personae.runtime import PersonaModel
from personae.runtime.generation import prompt_tokens
from personae.runtime.requests import Request
from personae.serving import Service
from personae.serving.refusals import Refusal
from personae.serving.schemas import ChatRequest, CompletionRequest
from personae.serving.service import Answering

HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def service(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Service:
    files = [
        persona_file("calm", metadata={"prompts": ["What do you do on a quiet evening?"]}),
        persona_file("loud", metadata={"prompts": ["How do you fill a stadium with song?"]}),
        persona_file("x:y z"),
    ]
    return make_service(files, max_tokens=50)


def begin(service: Service, asked: ChatRequest | CompletionRequest) -> tuple[Answering, list[Request]]:
    """Begin and read to the end: what it is, and the requests that the engine got."""

    async def use() -> Answering:
        answering = await service.begin(asked)
        async for _ in answering.writing.events():
            pass
        return answering

    before = len(service.engine.requests)  # type: ignore[attr-defined]
    answering = asyncio.run(use())
    return answering, service.engine.requests[before:]  # type: ignore[attr-defined]


def chat(service: Service, **change: Any) -> tuple[Answering, list[Request]]:
    return begin(service, ChatRequest.model_validate({"model": "tiny", "messages": HELLO, "max_tokens": 2, **change}))


def complete(service: Service, prompt: object, **change: Any) -> list[Request]:
    return begin(service, CompletionRequest.model_validate({"model": "tiny", "prompt": prompt, **change}))[1]


# -------------------------------------------------------------------- personas


@pytest.mark.parametrize(
    ("change", "look"),
    [
        ({}, ()),
        ({"persona": "base"}, ()),
        ({"persona": ""}, ()),
        ({"model": "tiny:base"}, ()),
        ({"model": "tiny:calm"}, (("calm", 1.0),)),
        ({"model": "tiny:x:y z"}, (("x:y z", 1.0),)),
        ({"persona": "calm"}, (("calm", 1.0),)),
        ({"persona": "calm", "model": "tiny:calm"}, (("calm", 1.0),)),
        ({"persona": "calm", "strength": 0.5}, (("calm", 0.5),)),
        ({"model": "tiny:calm", "strength": 1.5}, (("calm", 1.5),)),
        ({"persona": "calm", "strength": 0}, ()),
        ({"persona": {"loud": 0.25, "calm": 0.5}}, (("calm", 0.5), ("loud", 0.25))),
        ({"persona": {"loud": 0.25, "calm": 0}}, (("loud", 0.25),)),
        ({"persona": {}}, ()),
    ],
)
def test_which_persona_is_meant(service: Service, change: dict[str, Any], look: tuple[tuple[str, float], ...]) -> None:
    answering, (request,) = chat(service, **change)
    assert answering.look == look
    assert answering.chosen is None
    assert [(name.rpartition(" #")[0], strength) for name, strength in request.look] == list(look)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"model": "gpt-4"}, Refusal, "no model 'gpt-4'; there are: tiny, tiny:auto, tiny:calm, tiny:loud, tiny:x:y z"),
        ({"model": "tiny:"}, Refusal, "no model 'tiny:'"),
        ({"model": "calm"}, Refusal, "no model 'calm'"),
        ({"model": "tiny:calmer"}, UnknownPersonaError, "no persona 'calmer'; there are: calm, loud, x:y z"),
        ({"persona": "calmer", "strength": 0}, UnknownPersonaError, "'calmer'"),  # never the base model by mistake
        ({"persona": {"calm": 1, "calmer": 0}}, UnknownPersonaError, "'calmer'"),
        ({"persona": "../../etc/passwd"}, UnknownPersonaError, "no persona"),
        ({"model": "tiny:calm", "persona": "loud"}, Refusal, "another persona"),
        ({"model": "tiny:calm", "persona": {"calm": 1.0}}, Refusal, "another persona"),
        ({"strength": 0.5}, Refusal, "no persona"),
        ({"persona": "base", "strength": 0.5}, Refusal, "no persona"),
        ({"persona": {"calm": 2, "loud": 1}}, OptionError, "strength"),
    ],
)
def test_personas_that_are_not_meant_well(service: Service, change: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        chat(service, **change)
    assert said in str(caught.value)


def test_auto_goes_by_the_last_message_of_the_user(service: Service) -> None:
    history = [
        {"role": "user", "content": "a song for the stadium"},
        {"role": "assistant", "content": "stadium stadium"},
        {"role": "user", "content": "and on a quiet evening?"},
    ]
    answering, (request,) = chat(service, persona="auto", messages=history)
    assert answering.persona == "calm"
    assert request.look[0][0].startswith("calm #")
    assert answering.chosen is not None
    assert answering.chosen.score > 0
    answering, _ = chat(service, model="tiny:auto", messages=history[:1], strength=0.5)
    assert answering.look == (("loud", 0.5),)
    answering, _ = chat(service, persona="auto", messages=[{"role": "user", "content": "xylophone"}])
    assert answering.persona == "base"
    assert answering.chosen is not None
    assert answering.chosen.persona is None
    (request,) = complete(service, "stadium", persona="auto")
    assert request.look[0][0].startswith("loud #")
    tokens = service._tokenizer("a quiet evening")["input_ids"]
    (request,) = complete(service, tokens, persona="auto")
    assert request.look[0][0].startswith("calm #")


def test_auto_knows_what_came_to_the_folder(service: Service, persona_file: Callable[..., Path], shelf: Any) -> None:
    sail = {"persona": "auto", "messages": [{"role": "user", "content": "hoist the mainsail"}]}
    assert chat(service, **sail)[0].persona == "base"
    persona_file("sailor", description="Hoists the mainsail.").rename(shelf.path / "s.persona")
    assert chat(service, **sail)[0].persona == "sailor"
    (shelf.path / "s.persona").unlink()
    assert chat(service, **sail)[0].persona == "base"


def test_model_ids(service: Service, make_service: Callable[..., Service]) -> None:
    assert service.models() == ["tiny", "tiny:auto", "tiny:calm", "tiny:loud", "tiny:x:y z"]
    assert make_service([], folder=None).models() == ["tiny"]


# ------------------------------------------------------------ tokens and options


def test_the_prompt_is_that_of_chat(service: Service, model: Any) -> None:
    history = [{"role": "developer", "content": "Be kind."}, *HELLO, {"role": "assistant", "content": "Hi."}, *HELLO]
    _, (request,) = chat(service, messages=history)
    same = [{"role": "system", "content": "Be kind."}, *history[1:]]
    assert list(request.tokens) == prompt_tokens(model[1], same)


def test_options_and_openais_defaults(service: Service) -> None:
    _, (request,) = chat(service, max_tokens=None)
    assert (request.options.temperature, request.options.top_p, request.options.seed) == (1.0, 1.0, None)
    assert request.options.max_new_tokens == 50  # the server's own limit
    assert request.logprobs is None
    _, requests = chat(
        service, n=3, seed=2**63 - 1, temperature=0.5, top_p=0.25, stop=["a", "b"], logprobs=True, max_tokens=7
    )
    assert [request.options.seed for request in requests] == [2**63 - 1, 0, 1]
    assert {request.options.stop for request in requests} == {("a", "b")}
    assert {request.options.temperature for request in requests} == {0.5}
    assert {request.options.max_new_tokens for request in requests} == {7}
    assert {request.logprobs for request in requests} == {0}
    assert [request.options.max_new_tokens for request in complete(service, "x")] == [16]


def test_every_prompt_has_its_choices(service: Service, model: Any) -> None:
    requests = complete(service, ["one", "two"], n=2, seed=5, max_tokens=1)
    words = [tuple(model[1](word)["input_ids"]) for word in ("one", "one", "two", "two")]
    assert [request.tokens for request in requests] == words
    assert [request.options.seed for request in requests] == [5, 6, 5, 6]
    assert [request.tokens for request in complete(service, [[1, 2], [3]], max_tokens=1)] == [(1, 2), (3,)]


@pytest.mark.parametrize(
    ("prompt", "change", "said"),
    [
        ([], {}, "ask for 1 to 32"),
        (["x"] * 33, {}, "ask for 1 to 32"),
        (["x"] * 17, {"n": 2}, "is 34: ask for 1 to 32"),
        ("", {}, "empty"),
        ([[1], []], {}, "empty"),
        ([1, 100_000], {}, "token 100000 is none of the model's"),
        ("x", {"max_tokens": 51}, "writes at most 50"),
        ([1] * 512, {"max_tokens": 1}, "context"),
        ([1] * 480, {"max_tokens": 40}, "context is 512"),
    ],
)
def test_prompts_that_do_not_fit(service: Service, prompt: object, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        complete(service, prompt, **change)
    assert caught.value.status == 400


def test_too_many_prompts_are_refused_before_any_is_encoded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object) -> Any:
        raise AssertionError("a prompt is encoded")

    monkeypatch.setattr(service, "_prompts", encode)
    with pytest.raises(Refusal, match="is 33: ask for 1 to 32"):
        complete(service, ["x"] * 33)


def test_an_answer_of_no_stated_length_takes_the_room_there_is(service: Service) -> None:
    (request,) = complete(service, [1] * 508)
    assert request.options.max_new_tokens == 4
    with pytest.raises(Refusal, match="context"):
        complete(service, [1] * 512)


def test_the_room_is_what_the_engine_gives_a_row(
    make_service: Callable[..., Service], tiny_model: Callable[..., Any]
) -> None:
    """Beyond 64 tokens a row of this model would depend on the rows beside it."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    phi = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    service = make_service(model=PersonaModel(*phi))
    (request,) = complete(service, [1] * 60)
    assert request.options.max_new_tokens == 4
    with pytest.raises(Refusal, match="context is 64") as caught:
        complete(service, [1] * 60, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("roles", [["assistant"], ["user", "system", "user"], ["system"]])
def test_conversations_that_nobody_can_answer(service: Service, roles: list[str]) -> None:
    with pytest.raises(DataError):
        chat(service, messages=[{"role": role, "content": "x"} for role in roles])


def test_nothing_is_held_after_an_error(service: Service, engine: Any) -> None:
    nobody = {"persona": {"calm": 1, "nobody": 1}}
    for change in ({"max_tokens": 51}, nobody, {"messages": [{"role": "system", "content": "x"}]}):
        with pytest.raises((Refusal, UnknownPersonaError, DataError)):
            chat(service, **{"persona": "calm", **change})

    async def use() -> None:
        asked = ChatRequest.model_validate({"model": "tiny:calm", "messages": HELLO, "n": 2})
        engine.room = 1
        engine.gate.clear()
        with pytest.raises(BusyError):
            await service.begin(asked)
        async with asyncio.timeout(60):
            while service.registry.uses("calm"):
                await asyncio.sleep(0.002)

    asyncio.run(use())
    assert engine.ends == ["cancelled"]


def test_a_service_needs_a_tokenizer(model: Any, engine: Any) -> None:
    bare = PersonaModel(model[0])
    with pytest.raises(OptionError, match="tokenizer"):
        Service(bare, engine, None, None)  # type: ignore[arg-type]
