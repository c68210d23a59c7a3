"""A process around the application: the socket, the signals, and the last requests."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from personae.errors import OptionError

__all__ = ["bound", "configured", "run", "url_of"]


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody can connect until the server listens. Port 0 takes a free one.

    Errors: `OptionError` when the address is taken, not this machine's, or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OptionError(f"--host {host} is no address of this machine: {error.strerror}.") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise OptionError(f"cannot serve at {host} port {port}: {error.strerror}. Choose another --port.") from error
    return made


def url_of(made: socket.socket) -> str:
    """Where a bound socket is found."""
    host, port = made.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configured(app: FastAPI, drain: int) -> uvicorn.Config:
    """How uvicorn runs the application; it writes nothing itself but what goes wrong."""
    return uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, http="h11", ws="none", lifespan="on",
        timeout_graceful_shutdown=drain,
    )  # fmt: skip


def run(app: FastAPI, made: socket.socket, *, drain: int, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what has been asked, for `drain` seconds at most.

    started: told the URL once connections are taken. A second SIGINT does not wait. For the main thread.
    """
    url = url_of(made)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started(url)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if hang_up := getattr(app.state, "hang_up", None):  # of the page; else every open one is waited for
                hang_up()
            await super().shutdown(sockets)

    # uvicorn raises the signal again when all is done, for whoever had a handler before it.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        Server(configured(app, drain)).run(sockets=[made])
    except KeyboardInterrupt:  # that was Ctrl-C: an end like any other
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        made.close()
