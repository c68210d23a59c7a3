"""A tiny served model, `.persona` files for it, an engine whose steps the test decides, and servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from personae.errors import BusyError
from personae.models import find_targets, fingerprint
from personae.runtime import PersonaModel
from personae.runtime.look import named
from personae.runtime.requests import End, Listener, Piece, Request, TokenScore
from personae.serving import Folder, Registry, Service, Settings, create_app
from personae.serving.run import configured
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

PATIENCE = 60.0  # seconds until a test gives up waiting for another thread, on however busy a machine


def eventually(happened: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], object]], None]:
    return eventually


# ------------------------------------------------------------------ personas


@pytest.fixture(scope="session")
def model(tiny_model: Callable[..., Any]) -> Any:
    """(model, tokenizer) of a tiny Llama; whoever wears a persona on it takes it off again."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def make_artefact(model: Any) -> Callable[..., Artefact]:
    """`make("calm", "loud", description=…, share=0.2, metadata=…, fingerprint=…)` for the tiny Llama."""
    targets = find_targets(model[0])
    own = fingerprint(targets)

    def make(*names: str, share: float = 0.2, seed: int = 0, metadata: Any = None, **texts: Any) -> Artefact:
        identity = ModelIdentity(
            id="tiny", fingerprint=texts.pop("fingerprint", own), architecture="LlamaForCausalLM", dtype="float32",
            targets={t.name: t.shape for t in targets},
        )  # fmt: skip
        made = {}
        for name in names:
            random = np.random.default_rng([seed, *name.encode()])
            masks = {t.name: Mask.from_dropped(random.random(t.shape) < share) for t in targets}
            made[name] = Subnetwork(name, masks, Provenance(method="random", sparsity=share), **texts)
        return Artefact(identity, made, metadata or {})

    return make


@pytest.fixture
def persona_file(tmp_path: Path, make_artefact: Callable[..., Artefact]) -> Callable[..., Path]:
    """`persona_file("calm", "loud", …)` -> the path of a new file that holds them."""

    def write(*names: str, **options: Any) -> Path:
        path = tmp_path / f"made-{len(list(tmp_path.glob('made-*')))}.persona"
        make_artefact(*names, **options).save(path)
        return path

    return write


@pytest.fixture
def shelf(tmp_path: Path) -> Folder:
    """An empty folder for personas."""
    return Folder(tmp_path / "personas")


@pytest.fixture
def actor(model: Any) -> Iterator[PersonaModel]:
    """The tiny Llama, ready to wear personas."""
    made = PersonaModel(*model)
    yield made
    made.disable_persona()


# -------------------------------------------------------------------- engine


@dataclass(eq=False)
class FakeTicket:
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


@dataclass(frozen=True)
class Stats:
    queued: int = 0
    running: int = 0
    steps: int = 7
    switch_seconds: float = 0.5


class FakeEngine:
    """Writes the look's name and then numbers, a piece a token: 'calm', ' 1', ' 2', …; waits while `gate` is closed.

    room: so many answers at a time, then `BusyError`. failure: raised instead of the second token.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.room = 1000
        self.pause = 0.0  # seconds a token
        self.failure: BaseException | None = None
        self.requests: list[Request] = []
        self.ends: list[str] = []
        self.running = 0
        self.closed = False
        self._lock = threading.Lock()

    def submit(self, request: Request, listener: Listener) -> FakeTicket:
        ticket = FakeTicket()
        with self._lock:
            if self.running >= self.room or self.closed:
                raise BusyError("the queue is full: try again later.")
            self.running += 1
            self.requests.append(request)
        threading.Thread(target=self._write, args=(request, listener, ticket), daemon=True).start()
        return ticket

    def _write(self, request: Request, listener: Listener, ticket: FakeTicket) -> None:
        written = 0

        def over(reason: Any) -> None:
            with self._lock:
                self.running -= 1
                self.ends.append(reason)
            listener(End(reason, len(request.tokens), written, 3, 0.01, 0.02 if written else None, 0.03))

        while written < request.options.max_new_tokens:
            while not self.gate.wait(0.002):
                if ticket.cancelled.is_set():
                    return over("cancelled")
            if ticket.cancelled.is_set():
                return over("cancelled")
            time.sleep(self.pause)
            if self.failure is not None and written == 1:
                with self._lock:
                    self.running -= 1
                return listener(self.failure)
            text = f" {written}" if written else named(request.look)
            scores = ()
            if request.logprobs is not None:
                top = tuple((token, b"t%d" % token, -1.0 - token) for token in range(request.logprobs))
                scores = (TokenScore(9, text.encode(), float("-inf") if written == 1 else -0.5, top),)
            written += 1
            listener(Piece(text, scores))
        return over("length")

    def stats(self) -> Stats:
        return Stats(running=self.running)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        self.closed = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


# ------------------------------------------------------------------- servers


@pytest.fixture
def make_service(actor: PersonaModel, engine: FakeEngine, shelf: Folder) -> Callable[..., Service]:
    """`make_service(files=…, settings…)`: a service over the tiny Llama, the fake engine and the folder."""

    def make(
        files: Any = (), *, folder: Folder | None = shelf, model: PersonaModel = actor, **settings: Any
    ) -> Service:
        writer = settings.pop("engine", engine)
        most = settings.pop("most", None)
        return Service(model, writer, Registry(model, files, folder, most=most), Settings("tiny", **settings))

    return make


@contextlib.contextmanager
def served(service: Service, **options: Any) -> Iterator[str]:
    """A real server on a free port of loopback, in a thread; its URL."""
    config = configured(create_app(service, **options), 5)
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(name="served")
def _served() -> Callable[..., contextlib.AbstractContextManager[str]]:
    return served


@pytest.fixture
def client(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Iterator[httpx.Client]:
    """A client of a server that knows the persona 'calm' from the start and has an empty folder."""
    with served(make_service([persona_file("calm")])) as url, httpx.Client(base_url=url, timeout=PATIENCE) as made:
        yield made


# ----------------------------------------------------------------- processes

# `personae serve` without the rest of the command line. The second argument is run first, to prepare a fault.
ONLY_SERVE = """
import sys
exec(sys.argv.pop(1))
import typer
from personae.cli.console import errors_exit_with_2
from personae.cli.serve import serve
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(serve)
with errors_exit_with_2():
    app()
"""


@dataclass
class Process:
    """A server in a process of its own, and what it prints."""

    process: subprocess.Popen[str]
    said: list[str]
    url: str = ""

    def end(self, sent: int) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(sent)
        return self.process.wait(PATIENCE)


@pytest.fixture
def model_folder(tmp_path: Path, model: Any) -> Path:
    """The tiny Llama on the disk."""
    folder = tmp_path / "tiny"
    for part in model:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def start(model_folder: Path) -> Iterator[Callable[..., Process]]:
    """`start("--folder", path, fault="code")`: a server process that takes requests; ended with the test."""
    running: list[Process] = []

    def begin(*words: object, fault: str = "") -> Process:
        command = [sys.executable, "-c", ONLY_SERVE, fault, "--model", str(model_folder), "--port", "0", "--no-page"]
        child = subprocess.Popen(
            [*command, *map(str, words)], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        made = Process(child, [])
        running.append(made)
        assert child.stderr is not None
        for line in child.stderr:
            made.said.append(line)
            found = re.search(r"at (http://\S+)/v1", line)
            if found:
                made.url = found[1]
                threading.Thread(target=lambda: made.said.extend(child.stderr or ()), daemon=True).start()
                return made
        raise AssertionError(f"the server ended with {child.wait()}: {''.join(made.said)}")

    yield begin
    for each in running:
        each.process.kill()
        each.process.wait()
        for pipe in (each.process.stdout, each.process.stderr):
            assert pipe is not None
            with contextlib.suppress(ValueError):
                pipe.close()
