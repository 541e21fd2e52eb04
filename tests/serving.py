"""A server in a thread around any application, and the service as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from kormed_edge.connection import Bounds
from kormed_edge.listening import Address, Server, listener, make_server, tls_context
from kormed_edge.loading import LoadingApp

TRIES, PAUSE_S = 600, 0.05
"""How often a process that starts is asked, and the pause between two times."""


class NoEngine:
    def close(self) -> None: ...


def ready(app: FastAPI | None = None) -> Callable[[], FastAPI]:
    """A `load` that has nothing to load."""
    app = app or FastAPI()
    app.state.engine = NoEngine()
    return lambda: app


@dataclass
class Running:
    server: Server
    service: LoadingApp
    where: Any
    thread: threading.Thread
    ended: list[BaseException | None] = field(default_factory=list)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        self.server.handle_exit(sig, None)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self.where, str) else socket.AF_INET)
        sock.settimeout(30)
        try:
            sock.connect(self.where)
        except OSError:
            sock.close()
            raise
        return sock

    def say(self, text: str) -> bytes:
        """What a connection brings back until it is closed from the other side."""
        with self.connect() as sock:
            sock.sendall(text.encode())
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    with suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def running(
    service: LoadingApp, app: ASGIApp | None = None, address: Address | None = None,
    drain_seconds: float = 30.0, bounds: Bounds | None = None,
) -> Iterator[Running]:  # fmt: skip
    """A service on a free port, or on `address`, in a thread of its own."""
    address = address or Address(port=0)
    server = make_server(
        app or service, service, tls=tls_context(address), drain_seconds=drain_seconds,
        bounds=bounds or Bounds(),
    )  # fmt: skip
    with listener(address) as sock:
        sock.listen()  # a client may connect before the server's thread has come so far
        thread = threading.Thread(target=server.run, args=([sock],))
        it = Running(server, service, sock.getsockname(), thread)
        service.start()
        thread.start()
        try:
            yield it
        finally:
            it.stop(signal.SIGINT)
            it.stop(signal.SIGINT)
            thread.join()


@dataclass
class Process:
    process: "subprocess.Popen[str]"
    path: Path
    client: httpx.Client

    def status(self, path: str) -> int | None:
        """The status of a GET; None while nothing listens."""
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.path)):
                return None
        return self.client.get(path).status_code

    def wait_for(self, path: str, status: int) -> None:
        for _ in range(TRIES):
            if self.process.poll() is not None or self.status(path) == status:
                break
            sleep(PAUSE_S)
        assert self.process.poll() is None, self.process.communicate()[1]
        assert self.status(path) == status

    def wait_until_ready(self) -> None:
        self.wait_for("/readyz", 200)


@contextmanager
def kormed_serve(folder: Path, *options: object, before: tuple[str, ...] = ()) -> Iterator[Process]:
    """`kormed serve` on a unix socket; `before` is what runs it."""
    path = folder / "s.sock"
    command = [*before, sys.executable, "-m", "kormed_edge.cli", "serve", "--unix-socket", path]
    process = subprocess.Popen(
        [str(word) for word in (*command, *options)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    transport = httpx.HTTPTransport(uds=str(path), limits=httpx.Limits())
    with httpx.Client(transport=transport, base_url="http://kormed", timeout=60) as client:
        try:
            yield Process(process, path, client)
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
