"""One connection of the service, and how long a slow or silent client may hold it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s"
)
BUSY_BODY = (
    b'{"error": {"message": "too many connections", "type": "service_unavailable", "param": null, '
    b'"code": "too_many_connections"}}'
)


@dataclass(frozen=True)
class Bounds:
    """What a connection may take."""

    connections: int = 512
    """At once, of all clients."""
    header_seconds: float = 10.0
    """From the connection, or the first byte of a next request, to the end of the headers."""
    read_seconds: float = 30.0
    """How long a client may read nothing of an answer that waits for it."""


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1, which waits for ever for headers and for clients that do not read."""

    def __init__(self, *, bounds: Bounds, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._bounds = bounds
        self._header_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            transport.write(BUSY % (len(BUSY_BODY), BUSY_BODY))
            transport.close()
        else:
            self._time_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_headers()

    def _time_headers(self) -> None:
        """Let the clock run while no request is under way; more bytes do not turn it back.

        It also ends a body that goes on and on after the request was refused.
        """
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        elif not under_way and self._header_timer is None:
            seconds = self._bounds.header_seconds
            self._header_timer = self.loop.call_later(seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._bounds.read_seconds
        self._read_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait for a client that does not read
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
