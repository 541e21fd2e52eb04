"""What one client can take: the size of a request, the time to send it, requests a minute."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kormed_edge.api_keys import SCOPE_KEY
from kormed_edge.refusal import refusal

BODY_SECONDS = 30.0
"""How long a client may take to send a request's body."""
MINUTE = 60.0
REJECT = "kormed.reject"
"""Where an ASGI scope says which limit a request met, if its status does not tell."""


class BodyLimit:
    """ASGI middleware that reads a request's whole body before anything else sees it.

    413 for a body longer than `most` bytes, by its Content-Length or as it comes in; 408 for one
    that is not there after `seconds`, however it trickles.
    """

    def __init__(self, app: ASGIApp, *, most: int, seconds: float = BODY_SECONDS) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TooLongError:
            return await self._too_long(scope, receive, send)
        except TimeoutError:
            return await self._too_slow(scope, receive, send)
        except ConnectionResetError:
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and int(lengths[0]) > self._most:
            raise TooLongError
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                raise TooLongError
        return bytes(body)

    async def _too_long(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the request body is longer than {self._most:,} bytes, the limit (--max-body)"
        # The connection stays: closing it on an unread body would lose this answer.
        answer = refusal(413, message, type="invalid_request_error", code="request_too_large")
        await answer(scope, receive, send)

    async def _too_slow(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the request was not there after {self._seconds:g} s, the limit"
        answer = refusal(
            408, message, type="invalid_request_error", code="request_timeout",
            headers={"Connection": "close"},
        )  # fmt: skip
        await answer(scope, receive, send)


class TooLongError(Exception):
    """A body has more bytes than allowed."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what comes after it: the client's leaving."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


class RateLimit:
    """ASGI middleware: at most `per_minute` requests to the API a minute, else 429.

    A token bucket of that size for every key, or for every address where there are no keys: a
    client that was quiet for a minute may send all at once. `clock` is in seconds and never goes
    back.
    """

    def __init__(
        self, app: ASGIApp, *, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._per_minute, self._clock = app, per_minute, clock
        # The time at which a client's bucket will be full again says all there is to know of it.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait = self.take(_client(scope)) if scope["path"].startswith("/v1/") else 0.0
        if wait:
            scope[REJECT] = "rate"
            message = f"more than {self._per_minute} requests a minute, the limit (--rate)"
            answer = refusal(
                429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait
            )
            return await answer(scope, receive, send)
        await self._app(scope, receive, send)

    def take(self, client: str) -> float:
        """Take a token; 0, or the seconds until there is one."""
        now = self._clock()
        self._forget(now)
        token = MINUTE / self._per_minute
        full = max(now, self._full_at.get(client, now)) + token
        # A thousandth of a token against rounding, so that a bucket of n gives n.
        if full - now > MINUTE + token / 1000:
            return full - now - MINUTE
        self._full_at[client] = full
        self._full_at.move_to_end(client)
        return 0.0

    def _forget(self, now: float) -> None:
        """Drop full buckets from the oldest on, so that no flood of addresses fills the memory."""
        while self._full_at and next(iter(self._full_at.values())) <= now:
            self._full_at.popitem(last=False)


def _client(scope: Scope) -> str:
    if SCOPE_KEY in scope:
        return f"key {scope[SCOPE_KEY]}"
    host: str = scope["client"][0] if scope.get("client") else "unix socket"
    return host
