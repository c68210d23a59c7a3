"""The page in a real, headless Chromium: what a person does, what they see, and that nothing leaves the machine."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from personae.runtime.requests import Piece
from personae.serving import Service

pytestmark = pytest.mark.all
playwright = pytest.importorskip("playwright.sync_api")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 60_000  # milliseconds, on however busy a machine
HELLO = "Hello? What would you do on a free Saturday?"
KEY = "sk-the-right-key"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[[str], Any]]:
    """`visit(url)` -> a page there. It may ask nobody but that server, and nothing on it may fail."""
    asked: list[Any] = []
    trouble: list[str] = []
    hosts: set[str] = set()
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})

    def answered(response: Any) -> None:
        if response.status == 404 or response.status >= 500:
            trouble.append(f"{response.status} {response.url}")

    context.on("request", lambda request: asked.append(request))
    context.on("response", answered)
    context.on("weberror", lambda error: trouble.append(str(error.error)))
    context.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))

    def go(url: str) -> Any:
        hosts.add(urlsplit(url).netloc)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("websocket", lambda ws: trouble.append(f"websocket {ws.url}"))
        page.goto(url)
        return page

    yield go
    context.close()
    # What the page's own policy has stopped never left the browser; the test of it has a server that would know.
    sent = [each for each in asked if each.failure != "csp"]
    foreign = [each.url for each in sent if each.url.startswith("http") and urlsplit(each.url).netloc not in hosts]
    assert foreign == []
    assert len(sent) > 1
    assert trouble == []


@pytest.fixture
def service(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Service:
    return make_service([persona_file("calm", "loud", description="Speaks low.")], max_tokens=20)


@pytest.fixture
def page(service: Service, served: Callable[..., Any], visit: Callable[[str], Any]) -> Iterator[Any]:
    with served(service, page=True) as url:
        made = visit(url)
        yield made
        made.close()


def expect(found: Any) -> Any:
    playwright.expect.set_options(timeout=WAIT)  # the page's own default does not reach assertions
    return playwright.expect(found)


def wears(page: Any, label: str) -> None:
    page.get_by_label(label, exact=True).check()


def ask(page: Any, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.keyboard.press("Enter")


def last(page: Any) -> Any:
    return page.locator("#chat .bot.message").last


@pytest.fixture
def held(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine, whose gate closes behind the third token of the first answer."""
    write, seen = engine._write, 0

    def slow(request: Any, listener: Any, ticket: Any) -> None:
        def heard(event: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:
                engine.gate.clear()
            listener(event)

        write(request, heard, ticket)

    monkeypatch.setattr(engine, "_write", slow)
    return engine


# -------------------------------------------------------------------------- chat


def test_pick_a_persona_ask_and_see_the_answer_grow(page: Any, held: Any) -> None:
    wears(page, "calm")
    expect(page.locator("#card")).to_contain_text("Speaks low.")
    expect(page.locator("#card")).to_contain_text("not measured")
    expect(page.locator("#strength")).to_be_visible()
    ask(page, HELLO)
    expect(last(page)).to_contain_text("calm #1 1 2")
    expect(last(page)).not_to_contain_text("tokens in")  # what is there is a part of it
    held.gate.set()
    expect(last(page)).to_contain_text("calm · 20 tokens in")
    expect(last(page)).to_contain_text("18 19")


def test_another_persona_reads_the_conversation_anew(
    page: Any, engine: Any, model: Any, eventually: Callable[..., None]
) -> None:
    wears(page, "calm")
    ask(page, HELLO)
    expect(last(page)).to_contain_text("calm · 20 tokens")
    wears(page, "loud")
    ask(page, "And then?")
    expect(last(page)).to_contain_text("loud · 20 tokens")
    read = model[1].decode(engine.requests[1].tokens)
    assert HELLO in read
    assert "calm #1 1 2 3" in read
    assert "tokens in" not in read
    page.get_by_label("Retry").last.click()  # the same question again, under whoever is chosen now
    eventually(lambda: len(engine.requests) == 3)
    assert engine.requests[2].tokens == engine.requests[1].tokens


def test_stop(page: Any, held: Any, eventually: Callable[..., None]) -> None:
    ask(page, HELLO)
    expect(last(page)).to_contain_text("base 1 2")
    page.locator("#question .stop-button").click()
    eventually(lambda: held.ends == ["cancelled"])
    held.gate.set()
    ask(page, "Again?")
    expect(last(page)).to_contain_text("20 tokens")


def test_a_closed_page_frees_its_place(page: Any, held: Any, eventually: Callable[..., None]) -> None:
    ask(page, HELLO)
    expect(last(page)).to_contain_text("base 1 2")
    page.close()
    eventually(lambda: held.ends == ["cancelled"])


def test_sliders_appear_for_a_blend(page: Any, engine: Any) -> None:
    wears(page, "a blend")
    expect(page.locator("#share-0")).to_be_hidden()
    page.locator("#blend input").click()
    page.get_by_role("option", name="loud").click()
    page.get_by_role("option", name="calm").click()
    page.keyboard.press("Escape")
    expect(page.locator("#share-0")).to_contain_text("loud")
    expect(page.locator("#share-1")).to_contain_text("calm")
    expect(page.locator("#share-2")).to_be_hidden()
    page.locator("#share-0 input[type=number]").fill("0.3")
    page.locator("#share-0 input[type=number]").press("Tab")
    ask(page, HELLO)
    expect(last(page)).to_contain_text("calm=0.5 + loud=0.3 · 20 tokens")
    assert engine.requests[0].look == (("calm #1", 0.5), ("loud #2", 0.3))


def test_what_is_refused_is_said(page: Any, engine: Any) -> None:
    engine.room = 0
    ask(page, HELLO)
    expect(last(page)).to_contain_text("Not answered: the queue is full")


# ------------------------------------------------------------------- side by side


def test_one_question_three_answers(page: Any, engine: Any) -> None:
    page.get_by_role("tab", name="Side by side").click()
    page.locator("#same-question textarea").fill(HELLO)
    page.locator("#ask").click()
    for number, who in enumerate(("base", "calm", "loud")):
        answer = page.locator(f"#answer-{number}")
        expect(answer).to_contain_text(f"{who} · 20 tokens")
        expect(answer).to_contain_text(re.compile(rf"{who}( #\d)? 1 2 3"))
    assert len({request.tokens for request in engine.requests}) == 1
    page.locator("#side-1 input").click()
    page.get_by_role("option", name="loud").click()
    page.locator("#ask").click()
    expect(page.locator("#answer-1")).to_contain_text("loud · 20 tokens")


# ------------------------------------------------------------------------ outside


def test_the_key_is_asked_for(
    make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any, visit: Callable[[str], Any]
) -> None:
    service = make_service([persona_file("calm")], keys=(KEY,), max_tokens=3)
    with served(service, page=True) as url:
        page = visit(url)
        assert "calm" not in page.content()
        page.get_by_label("API key").fill("sk-a-wrong-key")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_contain_text("not known")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Open").click()
        wears(page, "calm")
        ask(page, HELLO)
        expect(last(page)).to_contain_text("calm · 3 tokens")
        assert page.evaluate("fetch('/v1/models').then(r => r.status)") == 401
        page.close()


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, list[Any]]]:
    """Another server on this machine, which nothing should reach: its port, and who came."""
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def wait() -> None:
            with contextlib.suppress(OSError):
                while True:
                    came.append(listening.accept())

        threading.Thread(target=wait, daemon=True).start()
        yield listening.getsockname()[1], came
        listening.shutdown(socket.SHUT_RDWR)
    for connection, _ in came:
        connection.close()


def test_nothing_that_is_written_is_fetched_or_run(
    make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any, engine: Any,
    visit: Callable[[str], Any], elsewhere: tuple[int, list[Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither by an answer, nor by names and descriptions of personas, which others may have uploaded."""
    port, came = elsewhere
    url = f"http://127.0.0.1:{port}/"
    hostile = (
        f"![a]({url}a.png) <img src='{url}b.png' onerror='alert(1)'><script>alert(2)</script>"
        f"<iframe src='{url}c'></iframe><link rel=stylesheet href='{url}d.css'><b onclick='alert(3)'>bold</b> "
        "{{7*7}} ${7*7} <style>@import '" + url + "e.css';</style>"
    )
    write = engine._write

    def answer(request: Any, listener: Any, ticket: Any) -> None:
        write(request, lambda event: listener(Piece(hostile) if isinstance(event, Piece) else event), ticket)

    monkeypatch.setattr(engine, "_write", answer)
    name = "<img src=x onerror=alert(4)>"
    path = persona_file(name, "loud", description=hostile, system_prompt=hostile)
    with served(make_service([path], max_tokens=1), page=True) as here:
        page = visit(here)
        wears(page, name)
        expect(page.locator("#card")).to_contain_text("{{7*7}} ${7*7}")
        expect(page.locator("#card")).to_contain_text("onerror='alert(1)'")
        page.locator("#card summary").click()
        ask(page, HELLO)
        expect(last(page)).to_contain_text("1 tokens in")
        expect(last(page)).to_contain_text("bold")
        last(page).get_by_text("bold").click()
        wears(page, "a blend")
        page.locator("#blend input").click()
        page.get_by_role("option").first.click()
        page.keyboard.press("Escape")
        expect(page.locator("#share-0")).to_contain_text("<img")
        page.get_by_role("tab", name="Side by side").click()
        page.locator("#ask").click()
        for number in range(3):
            expect(page.locator(f"#answer-{number}")).to_contain_text("1 tokens in")
        # What the browser refuses to fetch is no request either.
        page.evaluate("url => fetch(url).catch(() => new Image().src = url)", url)
        page.wait_for_timeout(500)
        page.close()
    assert came == []
