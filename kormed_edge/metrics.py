"""What the service counts and measures, for Prometheus; never what was asked or answered."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kormed_edge.generation import Job
from kormed_edge.limits import REJECT
from kormed_edge.request import EngineStatus

PATH = "/metrics"
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS_PER_S = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500)
REASONS = {
    400: "invalid", 401: "key", 404: "not found", 405: "not found", 408: "slow", 413: "size",
    415: "invalid", 422: "invalid", 429: "queue", 503: "unavailable", 504: "time",
}  # fmt: skip
GONE = "gone"
"""The status of a request whose client left before there was one."""


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.paths = {PATH, "/healthz", "/readyz"}
        """What may become a label; other paths are counted together, or anyone could make more."""
        registry = self.registry
        self._requests = Counter(
            "kormed_requests", "HTTP requests ended.", ("endpoint", "status"), registry=registry
        )
        self._rejects = Counter(
            "kormed_rejects", "HTTP requests turned away.", ("reason",), registry=registry
        )
        self._in_flight = Gauge(
            "kormed_requests_in_flight", "HTTP requests under way.", registry=registry
        )
        self._tokens = Counter(
            "kormed_tokens", "Tokens of ended requests; cached ones are of the prompt.",
            ("kind",), registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "kormed_time_to_first_token_seconds", "From the arrival to the first token.",
            buckets=FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self._speed = Histogram(
            "kormed_decode_tokens_per_second", "Of one request, after its first token.",
            buckets=TOKENS_PER_S, registry=registry,
        )  # fmt: skip
        self._model = Info(
            "kormed_model", "What answers requests that name no model.", registry=registry
        )

    def watch(
        self, status: Callable[[], EngineStatus], *, model: str, sha256: str,
        adapter_sha256: str | None = None,
    ) -> None:  # fmt: skip
        """Ask a loaded engine for its slots, queue and cache whenever the metrics are read.

        `model` is the name of what answers requests that name none; `adapter_sha256` is for one
        that is an adapter.
        """
        adapter = {"adapter_sha256": adapter_sha256} if adapter_sha256 else {}
        self._model.info({"name": model, "sha256": sha256, **adapter})
        self.registry.register(EngineCollector(status))

    def note(self, job: Job) -> None:
        """Count a request of the engine that has ended; called in the engine's thread."""
        self._tokens.labels("prompt").inc(len(job.request.ids))
        self._tokens.labels("cached").inc(job.cached_tokens)
        self._tokens.labels("completion").inc(job.completion_tokens)
        if job.first_token is None:
            return
        self._first_token.observe(job.first_token - job.submitted)
        if job.ended is not None and job.ended > job.first_token and job.completion_tokens > 1:
            self._speed.observe((job.completion_tokens - 1) / (job.ended - job.first_token))

    def began(self) -> None:
        self._in_flight.inc()

    def ended(self, path: str, status: int | None, reason: str | None) -> None:
        """Count an HTTP request; `status` None when the client left, `reason` why it was refused,
        if its status does not tell."""
        self._in_flight.dec()
        endpoint = path if path in self.paths else "other"
        self._requests.labels(endpoint, str(status or GONE)).inc()
        if reason := reason or REASONS.get(status or 0):
            self._rejects.labels(reason).inc()

    def exposition(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """What an engine is doing, at the moment that the metrics are read."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        for name, meaning, value in (
            ("kormed_slots", "Requests that can be answered at once.", now.slots),
            ("kormed_slots_busy", "Requests that are being answered.", now.busy),
            ("kormed_queue", "Requests that wait for a slot.", now.waiting),
            ("kormed_kv_tokens", "Tokens whose keys and values are held.", now.kv_used),
            ("kormed_kv_tokens_limit", "Tokens that can be held.", now.kv_size),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)


class Metered:
    """ASGI middleware that counts every request, the refused ones too: put it outside of all."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status: int | None = None

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.began()
        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.ended(scope["path"], status, scope.get(REJECT))


class MetricsPage:
    """ASGI middleware that answers `/metrics` itself, also while the model loads."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            headers = {"Content-Type": CONTENT_TYPE_LATEST}
            app = Response(self._metrics.exposition(), headers=headers)
        await app(scope, receive, send)
