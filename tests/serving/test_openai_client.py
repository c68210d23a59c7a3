"""The real `openai` client against a real server with the real engine: what it reads is what the model says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from personae.runtime import PersonaModel
from personae.runtime.engine import Engine

HELLO: list[Any] = [{"role": "user", "content": "Hello? What would you do on a free Saturday?"}]
KEY = "sk-the-right-key"
LOOKS: dict[str, dict[str, float]] = {
    "base": {}, "calm": {"calm": 1.0}, "loud": {"loud": 1.0}, "blend": {"calm": 0.5, "loud": 0.25}
}  # fmt: skip


@pytest.fixture
def said(model: Any, make_artefact: Callable[..., Any]) -> dict[str, str]:
    """What each look says to HELLO, from a PersonaModel of its own, greedily."""
    alone = PersonaModel(*model)
    alone.add_personas(make_artefact("calm", "loud"))
    texts = {}
    for name, look in LOOKS.items():
        if look:
            alone.set_persona(look)
        texts[name] = alone.chat(HELLO, max_new_tokens=12)
        alone.disable_persona()
    assert len(set(texts.values())) == 4
    return texts


@pytest.fixture
def url(
    actor: PersonaModel, make_service: Callable[..., Any], served: Callable[..., Any], persona_file: Callable[..., Path]
) -> Iterator[str]:
    with Engine(actor, max_batch=8, max_queue=64) as engine:
        service = make_service([persona_file("calm", "loud")], engine=engine, keys=(KEY,))
        with served(service) as found:
            yield f"{found}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120) as made:
        yield made


def asked(name: str) -> dict[str, Any]:
    """How a client asks for a look: by model id, or in `extra_body`."""
    if len(LOOKS[name]) > 1:
        return {"model": "tiny", "extra_body": {"persona": LOOKS[name]}}
    return {"model": "tiny" if name == "base" else f"tiny:{name}"}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:auto", "tiny:calm", "tiny:loud"]
    assert client.models.retrieve("tiny:calm").id == "tiny:calm"


@pytest.mark.parametrize("name", LOOKS)
def test_chat_whole_and_streamed(client: openai.OpenAI, said: dict[str, str], name: str) -> None:
    common: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 12, **asked(name)}
    whole = client.chat.completions.create(**common)
    assert (whole.choices[0].message.content or "").strip() == said[name]
    assert whole.usage is not None
    stream = client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.strip() == said[name]
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_many_personas_at_once(url: str, said: dict[str, str]) -> None:
    """Rows of one batch wear different personas: nobody hears another's."""

    async def ask(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        name = sorted(LOOKS)[number % 4]
        common: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 12, **asked(name)}
        if number % 3:
            text = (await client.chat.completions.create(**common)).choices[0].message.content or ""
        else:
            stream = await client.chat.completions.create(**common, stream=True)
            text = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices])
        return name, text.strip()

    async def use() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(24)))

    for name, text in asyncio.run(use()):
        assert text == said[name]


def test_sampling(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny:calm", "messages": HELLO, "max_tokens": 12}
    texts = [client.chat.completions.create(**common, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    several = client.chat.completions.create(**common, seed=1, n=2)
    assert [choice.message.content for choice in several.choices] == [texts[0], texts[2]]


def test_stop_and_length(client: openai.OpenAI, said: dict[str, str]) -> None:
    common: Any = {"model": "tiny:calm", "messages": HELLO, "temperature": 0}
    short = client.chat.completions.create(**common, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    middle = said["calm"][3:5]
    cut = client.chat.completions.create(**common, max_tokens=12, stop=[middle])
    assert cut.choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(**common, max_tokens=12).choices[0].message.content or ""
    assert cut.choices[0].message.content == whole[: whole.index(middle)]


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny:calm", messages=HELLO, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content
    for score in scores.content:
        assert score.logprob == max(top.logprob for top in score.top_logprobs)  # greedy: the likeliest
        assert len(score.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in score.top_logprobs) <= 1 + 1e-6


def test_completions(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny:loud", "temperature": 0, "max_tokens": 4}
    one = client.completions.create(**common, prompt="Would you")
    two = client.completions.create(**common, prompt="I would stay")
    both = client.completions.create(**common, prompt=["Would you", "I would stay"], logprobs=2)
    assert [choice.text for choice in both.choices] == [one.choices[0].text, two.choices[0].text]
    assert both.choices[1].logprobs is not None
    assert len(both.choices[1].logprobs.tokens or []) == 4
    streamed = client.completions.create(**common, prompt="Would you", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_headers_and_what_openai_does_not_know(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny:auto", messages=[{"role": "user", "content": "calm"}], max_tokens=1
    )
    assert raw.headers["x-persona"] == "calm"
    answer = raw.parse()
    assert answer.persona == "calm"  # type: ignore[attr-defined]
    assert answer._request_id == raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=HELLO, max_tokens=1, extra_body={"persona": "loud", "strength": 0.5}
    ) as response:
        assert response.headers["x-persona"] == "loud=0.5"


def test_errors_are_the_clients_own(client: openai.OpenAI, url: str) -> None:
    common: Any = {"messages": HELLO, "max_tokens": 1}
    with pytest.raises(openai.NotFoundError, match="there are: calm, loud") as caught:
        client.chat.completions.create(model="tiny:nobody", **common)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", **common, tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.value.param == "tools"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="sk-a-wrong-key", max_retries=0).models.list()
