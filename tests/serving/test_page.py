"""The mounted page without a browser: what gradio is told and what it lets out, and the calls a browser would make."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Mount, Route

from personae.runtime import PersonaModel
from personae.runtime.engine import Engine
from personae.serving import Folder, Service, create_app
from personae.serving.page_answers import BLEND, mode_of
from personae.serving.page_door import Door

HELLO = "Hello? What would you do on a free Saturday?"
KEY = "sk-the-right-key"


class OpenPage:
    """What a browser does with the page: it calls the functions behind events, and shows what comes back."""

    def __init__(self, client: httpx.Client, session: str = "one") -> None:
        self.client, self.session = client, session
        self.events = (config := client.get("/config").json())["dependencies"]
        self.parts = {part["id"]: part["props"] for part in config["components"]}
        self.ids = {props.get("elem_id"): number for number, props in self.parts.items()}

    def shown(self, name: str, field: str = "value") -> Any:
        return self.parts[self.ids[name]].get(field)

    def put(self, **values: Any) -> None:
        """Set parts, without the events this would cause."""
        for name, value in values.items():
            self.parts[self.ids[name.replace("_", "-")]]["value"] = value

    def do(self, name: str, kind: str) -> None:
        """An event of a part, and then whatever follows it."""
        self.call(self.event(name, kind))

    def call(self, event: dict[str, Any]) -> None:
        if event["backend_fn"]:
            self._show(event, self._asked(event))
        for then in self.events:
            if then["trigger_after"] == event["id"]:
                self.call(then)

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """What happens first at an event of a part."""
        return next(event for event in self.events if [self.ids[name], kind] in event["targets"])

    def post(self, event: dict[str, Any]) -> httpx.Response:
        """Call the function behind an event."""
        body = {
            "data": [self.parts[number].get("value") for number in event["inputs"]], "event_data": None,
            "fn_index": event["id"], "trigger_id": None, "session_hash": self.session,
        }  # fmt: skip
        path = "/gradio_api/queue/join" if event["queue"] else "/gradio_api/run/predict"
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response

    def _asked(self, event: dict[str, Any]) -> list[Any]:
        response = self.post(event)
        if not event["queue"]:
            return response.json()["data"]  # type: ignore[no-any-return]
        data: list[Any] = []
        for message in self.stream():
            if "output" in message:
                assert message["success"], message["output"].get("error")
                data = self._next(data, message["output"].get("data", []))
        return data

    def stream(self) -> Iterator[dict[str, Any]]:
        """What the server says of all that is asked, up to its end."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield (message := json.loads(line[6:]))
                    if message["msg"] == "close_stream":
                        return

    @staticmethod
    def _next(before: list[Any], data: list[Any]) -> list[Any]:
        """Outputs after a message: whole at first, then as changes [what, where, value]."""
        after = list(before) or list(data)
        for number, changes in enumerate(data if before else []):
            if not (isinstance(changes, list) and all(isinstance(c, list) and len(c) == 3 for c in changes)):
                continue  # the last message of a generator says only that there is no more
            for what, where, value in changes:
                holder, place = after, [number, *where]
                for step in place[:-1]:
                    holder = holder[step]
                if what == "append":
                    holder[place[-1]] += value
                elif what == "replace":
                    holder[place[-1]] = value
                elif what == "add":
                    holder.insert(place[-1], value)
                else:
                    del holder[place[-1]]
        return after

    def _show(self, event: dict[str, Any], data: list[Any]) -> None:
        for number, value in zip(event["outputs"], data, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.parts[number].update(value)
            else:
                self.parts[number]["value"] = value

    def ask(self, question: str, **choices: Any) -> list[str]:
        """Ask in the chat; the parts of the last message."""
        self.put(question=question, **choices)
        self.do("question", "submit")
        return [part["text"] for part in self.shown("chat")[-1]["content"]]


@pytest.fixture
def service(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Service:
    return make_service([persona_file("calm", "loud", description="A <b>voice</b>.")], max_tokens=12)


@pytest.fixture
def client(service: Service, served: Callable[..., Any]) -> Iterator[httpx.Client]:
    with served(service, page=True) as url, httpx.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture
def page(client: httpx.Client) -> OpenPage:
    return OpenPage(client)


# ----------------------------------------------------------------------- mount


def test_the_page_is_whole_and_comes_from_here(client: httpx.Client) -> None:
    html = client.get("/").text
    assert "<title>" in html or '"title":"personae"' in html
    config = client.get("/config").json()
    assert config["title"] == "personae"
    assert not config["analytics_enabled"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not config["run_history"]
    assert config["footer_links"] == config["stylesheets"] == []
    for kind, link in re.findall(r"<(script|link)[^>]*(?:src|href)=\"(https?:[^\"]*)", html):
        raise AssertionError((kind, link))
    assert "http" not in re.sub(r"http://www\.w3\.org|https://www\.w3\.org", "", client.get("/theme.css").text)


def test_nothing_of_the_api_is_shadowed(client: httpx.Client) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/openapi.json").json()["info"]["title"] == "personae"
    for path in ("/v1/nothing", "//v1/models", "/docs", "/v1/models/", "/gradio_api/openapi.json"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"]


def all_routes(app: Any) -> Iterator[Any]:
    for route in app.routes:
        yield from all_routes(route.original_router) if hasattr(route, "original_router") else [route]


def test_no_other_route_of_gradio_is_open(service: Service) -> None:
    """Whatever its next version brings."""
    app = create_app(service, page=True)
    mount = app.routes[-1]
    assert isinstance(mount, Mount)
    door = mount.app
    assert isinstance(door, Door)
    passed: list[str] = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    inner, door._app = door._app, noted

    async def knock() -> int:
        count = 0
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as asking:
            for route in all_routes(inner):
                for method in sorted(route.methods or ()) if isinstance(route, Route) else ():
                    path = re.sub(r"{[^}]*}", "x", route.path)
                    await asking.request(method, path, json={} if method == "POST" else None)
                    count += 1
        return count

    assert asyncio.run(knock()) > 60
    assert sorted(set(passed)) == [
        "/", "/assets/x", "/config", "/favicon.ico", "/gradio_api/app_id", "/gradio_api/cancel",
        "/gradio_api/heartbeat/x", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/queue/join",
        "/gradio_api/reset", "/manifest.json", "/static/x", "/theme.css",
    ]  # fmt: skip


def test_mounting_warns_of_nothing(service: Service) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_app(service, page=True)


def test_the_key_guards_what_the_page_can_do(
    make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any
) -> None:
    service = make_service([persona_file("calm")], keys=(KEY,), max_tokens=3)
    with served(service, page=True) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert "calm" not in client.get("/").text
        for path in ("/config", "/gradio_api/info", "/theme.css"):
            assert client.get(path).status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/login", data={"key": "sk-a-wrong-key"}).status_code == 401
        assert client.post("/login", data={"key": KEY}, follow_redirects=True).status_code == 200
        assert client.get("/v1/models").status_code == 401  # the cookie is for the page alone
        assert OpenPage(client).ask(HELLO, mode=mode_of("calm"))[1].endswith(" 1 2")


# ---------------------------------------------------------------------- asking


def test_a_chat_under_personas_is_read_anew_each_time(page: OpenPage, engine: Any, model: Any) -> None:
    label, first = page.ask(HELLO, mode=mode_of("calm"), strength=0.5)
    assert "calm=0.5" in label
    assert "12 tokens" in label
    assert first.startswith("calm #1=0.5 1 2")
    label, second = page.ask("And then?", mode=BLEND, blend=["calm", "loud"], share_0=0.25, share_1=1)
    assert "calm=0.25 + loud" in label
    assert second.startswith("calm #1=0.25 + loud #2")
    assert engine.requests[1].look == (("calm #1", 0.25), ("loud #2", 1.0))
    read = model[1].decode(engine.requests[1].tokens)
    assert [line for line in (HELLO, first, "And then?", label, "tokens in") if line in read] == [
        HELLO, first, "And then?"
    ]  # fmt: skip
    label, _ = page.ask("At last?", mode="base")
    assert "<b>base</b>" in label
    assert engine.requests[2].look == ()
    assert second in model[1].decode(engine.requests[2].tokens)
    assert len(page.shown("chat")) == 6


def test_by_the_question(page: OpenPage) -> None:
    assert "<b>loud</b>" in page.ask("Be loud!", mode="auto")[0]


def test_what_is_refused_is_said_in_the_chat(page: OpenPage, engine: Any, shelf: Folder) -> None:
    engine.room = 0
    (label,) = page.ask(HELLO)
    assert "Not answered: the queue is full" in label
    engine.room = 9
    assert "no question" in page.ask("  ")[0]
    assert "nobody is in the blend" in page.ask(HELLO, mode=BLEND, blend=[])[0]
    _, text = page.ask("Now?", mode="base")
    assert text.startswith("base")
    assert engine.requests[0].tokens != ()
    assert len(engine.requests) == 1


def test_what_is_no_choice_is_an_error_in_words(page: OpenPage) -> None:
    page.put(question=HELLO, mode=mode_of("<img src=x>"))
    with pytest.raises(AssertionError, match="not in the list of choices"):
        page.do("question", "submit")


def test_the_same_question_side_by_side(page: OpenPage, engine: Any) -> None:
    assert (page.shown("side-1"), page.shown("side-2")) == ("calm", "loud")
    page.do("ask", "click")
    texts = [page.shown(f"answer-{number}") for number in range(3)]
    for text, who in zip(texts, ("base", "calm", "loud"), strict=True):
        label, said = text.split("\n\n")
        assert f"<b>{who}</b>" in label
        assert re.match(rf"{who}( #\d)? 1 2 3", said)
    assert len({request.tokens for request in engine.requests}) == 1
    assert len({request.options for request in engine.requests}) == 1  # also the seed
    page.put(side_1=None, same_question="Hello?")
    page.do("same-question", "submit")
    assert "choose one above" in page.shown("answer-1")
    assert page.shown("answer-2").endswith(" 11")


def test_the_real_engine_says_what_the_model_says(
    actor: PersonaModel, model: Any, make_service: Callable[..., Service], served: Callable[..., Any],
    persona_file: Callable[..., Path], make_artefact: Any,
) -> None:  # fmt: skip
    alone = PersonaModel(*model)
    alone.add_personas(make_artefact("calm", "loud"))
    said = [alone.chat(HELLO, max_new_tokens=12)]
    for name in ("calm", "loud"):
        with alone.persona(name):
            said.append(alone.chat(HELLO, max_new_tokens=12))
    assert len(set(said)) == 3
    with Engine(actor, max_batch=8, max_queue=64) as engine:
        service = make_service([persona_file("calm", "loud")], engine=engine, max_tokens=12)
        with served(service, page=True) as url, httpx.Client(base_url=url, timeout=60) as client:
            page = OpenPage(client)
            page.put(same_question=HELLO)
            page.do("ask", "click")
            for number, text in enumerate(said):
                assert page.shown(f"answer-{number}").partition("\n\n")[2].strip() == text


# --------------------------------------------------------------------- choosing


def test_sliders_appear_for_the_blend_and_keep_their_persona(page: OpenPage) -> None:
    page.put(mode=mode_of("calm"))
    page.do("mode", "change")
    assert page.shown("strength", "visible") is True
    assert "calm" in page.shown("card")
    page.put(mode=BLEND)
    page.do("mode", "change")
    assert (page.shown("strength", "visible"), page.shown("blend", "visible")) == (False, True)
    assert page.shown("share-0", "visible") is False
    page.put(blend=["calm", "loud"])
    page.do("blend", "change")
    assert [page.shown(f"share-{n}", "label") for n in range(2)] == ["calm", "loud"]
    assert [page.shown(f"share-{n}", "visible") for n in range(3)] == [True, True, False]
    page.put(share_0=0.1, share_1=0.9, blend=["loud"])
    page.do("blend", "change")
    assert (page.shown("share-0", "label"), page.shown("share-0")) == ("loud", 0.9)
    page.put(blend=["loud", "calm"])
    page.do("blend", "change")
    assert [page.shown(f"share-{n}") for n in range(2)] == [0.9, 0.5]
    page.put(mode="auto")
    page.do("mode", "change")
    assert not any(page.shown(f"share-{n}", "visible") for n in range(6))
    assert "nearest" in page.shown("card")


def test_cards_say_what_was_measured(page: OpenPage) -> None:
    page.put(mode=mode_of("loud"))
    page.do("mode", "change")
    card = page.shown("card")
    assert "A &lt;b&gt;voice&lt;/b&gt;." in card
    assert "not measured" in card
    assert "20.00 %" in card


def test_personas_come_and_go(page: OpenPage, client: httpx.Client, persona_file: Any, shelf: Folder) -> None:
    load = next(event for event in page.events if any(target[1] == "load" for target in event["targets"]))
    client.post("/v1/personas", files={"file": persona_file("bold").read_bytes()})
    page.call(load)
    assert [name for name, _ in page.shown("mode", "choices")] == [
        "base model", "a blend", "by the question", "bold", "calm", "loud"
    ]  # fmt: skip
    assert page.ask(HELLO, mode=mode_of("bold"))[1].startswith("bold")
    for path in shelf.files():
        path.unlink()
    assert "there is no persona &#x27;bold&#x27;; there are: calm, loud" in page.ask(HELLO)[0]
    page.do("mode", "change")
    assert "there is no persona" in page.shown("card")
    shelf.path.rename(shelf.path.with_name("away"))
    with pytest.raises(AssertionError, match="the folder of personas cannot be used"):
        page.call(load)


def test_no_personas_at_all(make_service: Callable[..., Service], served: Callable[..., Any]) -> None:
    with served(make_service(max_tokens=1), page=True) as url, httpx.Client(base_url=url, timeout=60) as client:
        page = OpenPage(client)
        assert [name for name, _ in page.shown("mode", "choices")] == ["base model"]
        assert page.ask(HELLO)[1] == "base"


# ---------------------------------------------------------------------- leaving


def test_an_answer_nobody_reads_any_more_is_cancelled(
    page: OpenPage, engine: Any, eventually: Callable[..., None]
) -> None:
    engine.gate.clear()
    page.post(page.event("ask", "click"))
    for message in page.stream():
        if message["msg"] == "process_generating":
            break
    eventually(lambda: engine.ends == ["cancelled"] * 3)  # also one that was asked after the page had gone


@pytest.mark.all
@pytest.mark.parametrize("asked", [False, True])
def test_an_open_page_does_not_hold_up_the_end(
    start: Callable[..., Any], persona_file: Callable[..., Path], asked: bool
) -> None:
    """And an answer that is being written is finished."""
    slow = """
import time
from personae.runtime import cohort
old = cohort.forward
cohort.forward = lambda *arguments: (time.sleep(0.02), old(*arguments))[1]
"""
    server = start(persona_file("calm", "loud"), "--page", "--drain-seconds", 1000, "--max-tokens", 40, fault=slow)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        page = OpenPage(client)
        with client.stream("GET", f"/gradio_api/heartbeat/{page.session}") as alive:
            beats = alive.iter_lines()  # kept: without it the connection would be closed
            assert next(beats)
            if asked:
                page.post(page.event("ask", "click"))
                messages = page.stream()
                while next(messages)["msg"] != "process_generating":
                    pass
            server.process.send_signal(signal.SIGTERM)
            if asked:
                *_, last, closing = messages
                assert last["success"]
                assert closing["msg"] == "close_stream"
            assert server.process.wait(60) == 0
    assert not any("Traceback" in line for line in server.said), server.said
