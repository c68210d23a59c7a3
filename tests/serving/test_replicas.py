"""Two server processes on one folder behind a round-robin: clients cannot tell that there are two."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from personae.serving import Folder

pytestmark = pytest.mark.all  # each starts whole processes

CHAT = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 8, "temperature": 0}


class RoundRobin:
    """Passes each connection on to the next server: as simple as a balancer can be."""

    def __init__(self, ports: list[int]) -> None:
        self.counts = dict.fromkeys(ports, 0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._ready.wait()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = min(self.counts, key=lambda each: self.counts[each])
        self.counts[port] += 1
        behind, to_behind = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(self._pass(reader, to_behind), self._pass(behind, writer), return_exceptions=True)
        finally:
            for each in (writer, to_behind):
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@pytest.fixture
def both(start: Callable[..., Any], shelf: Folder) -> Iterator[tuple[httpx.Client, RoundRobin]]:
    """A client of two servers in turn (every request is a connection of its own), and what stands between."""
    servers = [start("--folder", shelf.path) for _ in range(2)]
    balancer = RoundRobin([int(server.url.rsplit(":", 1)[1]) for server in servers])
    with httpx.Client(
        base_url=f"http://127.0.0.1:{balancer.port}", headers={"Connection": "close"}, timeout=60
    ) as client:
        yield client, balancer
    balancer.close()


def test_two_servers_are_one(
    both: tuple[httpx.Client, RoundRobin], persona_file: Callable[..., Path], shelf: Folder
) -> None:
    client, balancer = both

    def says(model: str) -> list[Any]:
        """What either server answers."""
        responses = [client.post("/v1/chat/completions", json=CHAT | {"model": model}) for _ in range(2)]
        return [
            r.json()["choices"][0]["message"]["content"] if r.status_code == 200 else r.status_code for r in responses
        ]

    def names() -> list[list[str]]:
        return [[persona["id"] for persona in client.get("/v1/personas").json()["data"]] for _ in range(2)]

    assert says("tiny:calm") == [404, 404]
    upload = {"file": persona_file("calm", "loud").read_bytes()}
    assert client.post("/v1/personas", files=upload).status_code == 201
    (one, other), (base, _) = says("tiny:calm"), says("tiny")  # the other server has never heard of it
    assert one == other != base
    assert names() == [["calm", "loud"]] * 2
    assert [client.post("/v1/personas", files=upload).status_code for _ in range(2)] == [409, 409]

    assert client.delete("/v1/personas/calm").status_code == 200
    assert names() == [["loud"]] * 2
    assert says("tiny:calm") == [404, 404]  # also where its masks were in memory
    assert isinstance(says("tiny:loud")[0], str)

    changed = {"file": persona_file("calm", seed=1).read_bytes()}
    assert client.post("/v1/personas", files=changed).status_code == 201
    new = says("tiny:calm")
    assert new[0] == new[1]
    assert new[0] not in {one, base}  # of the same name, and never the old one's masks or caches
    assert client.get("/readyz").status_code == 200
    assert set(balancer.counts.values()) <= {sum(balancer.counts.values()) // 2, -(-sum(balancer.counts.values()) // 2)}
    assert not list(shelf.path.rglob("*.tmp"))
