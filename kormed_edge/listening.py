"""Where the service listens, under which certificate, and how it stops."""

import errno
import ipaddress
import signal
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from kormed_edge.connection import BoundedConnection, Bounds
from kormed_edge.errors import ConfigError, KormedError
from kormed_edge.loading import LoadingApp

BACKLOG = 512
KEEP_ALIVE_S = 5
HEADER_BYTES = 16_384
LAST_S = 1
"""For connections to close by themselves once draining is over; then they are cut."""


class ServeError(KormedError):
    """The service cannot listen."""


@dataclass(frozen=True)
class Address:
    """An IP address and port, or a unix socket; with a certificate, TLS."""

    host: str = "127.0.0.1"
    port: int = 8080
    unix_socket: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.unix_socket is not None or self.ip.is_loopback

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The host; a name would have to be looked up, which asks the network."""
        try:
            return ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            raise ConfigError(
                f"--host {self.host} is not an IP address", "an address of this machine",
                "--host 127.0.0.1",
            ) from None  # fmt: skip

    def shown(self, listener: socket.socket) -> str:
        """How a client calls it."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"http{'s' if self.certificate else ''}://{host}:{listener.getsockname()[1]}"


@contextmanager
def listener(address: Address) -> Iterator[socket.socket]:
    """A bound socket; the file of a unix socket is gone afterwards.

    Raises `ServeError` when the address is taken or not this machine's.
    """
    path = address.unix_socket
    if path is not None:
        _remove_stale(path)
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    sock = socket.socket(family if path is None else socket.AF_UNIX)
    try:
        if path is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        where: Any = (str(address.ip), address.port) if path is None else str(path)
        _bind(sock, where)
        if path is not None:
            path.chmod(0o660)  # nobody can connect before: nothing listens yet
        yield sock
    finally:
        sock.close()
        if path is not None and path.is_socket():
            path.unlink()


def _bind(sock: socket.socket, where: Any) -> None:
    try:
        sock.bind(where)
    except OSError as error:
        shown = where if isinstance(where, str) else f"{where[0]} port {where[1]}"
        raise ServeError(
            f"cannot listen on {shown}: {error.strerror}", "a free address of this machine",
            "stop what listens there, or give another --port, --host or --unix-socket",
        ) from None  # fmt: skip


def _remove_stale(path: Path) -> None:
    """Remove what a service left that was killed, and nothing else."""
    if not path.exists():
        return
    if not path.is_socket():
        raise ServeError(f"{path} is not a socket", "a new path", "give another --unix-socket")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise ServeError(
                f"something listens on {path}", "a free one", "stop it, or take another path"
            )
    path.unlink()


def tls_context(address: Address) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, or None for an address without a certificate.

    Raises `ConfigError` for files that do not fit, or a key that everyone can read.
    """
    certificate, key = address.certificate, address.key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o007:
            raise ConfigError(
                f"{key} has mode {mode:03o}", "a key that not everyone can read", f"chmod 600 {key}"
            )
        # Without this, OpenSSL would ask on the terminal for the password of a key that has one.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"no TLS with {certificate} and {key}: {error.strerror or error}",
            "a certificate chain and its key without a password, both PEM",
            f"openssl x509 -noout -in {certificate}; openssl pkey -noout -in {key}",
        ) from None
    return context


class Server(uvicorn.Server):
    """uvicorn, stopped by SIGTERM or SIGINT without haste.

    It goes on listening, with 503 for all that is new, until what is under way has ended or
    `drain_seconds` have passed; the rest is cancelled. A second SIGINT cancels at once.
    """

    def __init__(self, config: uvicorn.Config, service: LoadingApp, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._deadline = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # uvicorn's would raise the signal anew at the end, and the exit code would not be 0.
        hurry = self.should_exit and sig == signal.SIGINT
        seconds = 0.0 if hurry else self._drain_seconds
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self.should_exit = True
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        stopping = await super().on_tick(counter)
        idle = not self.server_state.tasks
        over = time.monotonic() >= self._deadline
        return self._service.failure is not None or (stopping and (idle or over))


def make_server(
    app: ASGIApp, service: LoadingApp, *, tls: ssl.SSLContext | None, drain_seconds: float,
    bounds: Bounds,
) -> Server:  # fmt: skip
    """A server that says nothing of itself, trusts no proxy's headers and logs no request."""
    config = uvicorn.Config(
        app,
        http=partial(BoundedConnection, bounds=bounds),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_S,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    config.load()
    config.ssl = tls
    return Server(config, service, drain_seconds)
