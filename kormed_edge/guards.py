"""What a request passes on its way to the API, and in which order."""

import asyncio
import ipaddress
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kormed_edge.api_keys import OPEN_PATHS, RequireKey
from kormed_edge.audit_api import RequestIds
from kormed_edge.limits import BODY_SECONDS, BodyLimit, RateLimit
from kormed_edge.metrics import Metered, Metrics, MetricsPage
from kormed_edge.page_api import FILES
from kormed_edge.refusal import refusal

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guards:
    """Who may ask, from where, and how much."""

    keys: Mapping[str, str] | None = None
    """Hashes of API keys by name; None lets anyone ask."""
    origins: Sequence[str] = ()
    """Web origins whose pages may ask (CORS)."""
    max_body: int = 2**20
    body_seconds: float = BODY_SECONDS
    rate: int | None = None
    """Requests a minute of one key or address."""
    local_only: bool = False
    """Answer only to an IP address or localhost as the name of this service."""


def guarded(app: ASGIApp, guards: Guards, metrics: Metrics) -> ASGIApp:
    """An application behind everything that a request meets before it; from the inside out."""
    app = BodyLimit(app, most=guards.max_body, seconds=guards.body_seconds)
    if guards.rate is not None:
        app = RateLimit(app, per_minute=guards.rate)
    app = MetricsPage(app, metrics)
    if guards.keys is not None:
        # The page itself tells nothing, and is where a browser's user enters a key.
        app = RequireKey(app, guards.keys, open_paths=(*OPEN_PATHS, *FILES))
    if guards.local_only:
        app = LocalHost(app)
    if guards.origins:
        # Outside of the keys: a browser asks whether it may ask before it sends one.
        app = CORSMiddleware(
            app, allow_origins=guards.origins, allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Retry-After", "X-Request-Id"),
        )  # fmt: skip
    return Metered(RequestIds(Faults(app)), metrics)


class LocalHost:
    """ASGI middleware: 421 when the Host header is a name other than localhost.

    A page of any web site can let its own name point to 127.0.0.1, and its scripts may then read
    what a service here answers (DNS rebinding). An IP address cannot be made to point elsewhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and _is_local(hosts[0]):
            return await self._app(scope, receive, send)
        message = "call this service by its IP address or as localhost"
        answer = refusal(421, message, type="invalid_request_error", code="wrong_host")
        await answer(scope, receive, send)


def _is_local(host: str) -> bool:
    """Whether "NAME", "NAME:PORT" or "[ADDRESS]:PORT" is localhost or an IP address."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True


class Faults:
    """ASGI middleware for what should not happen: 500, and a log of where but not of what.

    The text of an exception, and a traceback that ends in it, can hold what a patient was asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except asyncio.CancelledError:  # the time to drain is over
            answer = refusal(
                503, "the service is stopping", type="service_unavailable", code="draining"
            )
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            LOG.error("%s in %s, line %d", type(error).__name__, where.filename, where.lineno or 0)
            answer = refusal(
                500, "the service failed; its log says where", type="server_error", code="internal"
            )
        else:
            return
        if not started:
            await answer(scope, receive, send)
        # An answer that was begun is left unfinished, and the server closes the connection.
