"""What every endpoint needs: the engine with its names, and an answer that is attended to.

An answer that nobody waits for gives its slot back, and one that takes too long is ended.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from starlette.datastructures import State
from starlette.types import Receive, Scope, Send

from kormed_edge.api_errors import ApiError
from kormed_edge.audit import Prompt
from kormed_edge.audit_api import CLIENT_GONE, Audited, Handle
from kormed_edge.calibration import Calibration
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineBusyError
from kormed_edge.generation import AsyncGeneration
from kormed_edge.request import Piece, Request, joined
from kormed_edge.served_adapters import ServedAdapter
from kormed_edge.suppression import Suppression

if TYPE_CHECKING:
    from kormed_edge.guidelines import Guidelines

Submit = Callable[[Request], AsyncGeneration]


class Attended(AsyncIterator[Piece]):
    """The pieces of an answer, for as long as its client is there and its time lasts.

    Raises `ApiError`: 503 when the time is over before the first piece, 499 when the client went.
    Later, the end of the time ends the answer with "length". `close` it.
    """

    def __init__(
        self, request: Request, submit: Submit, generation: AsyncGeneration, http: HttpRequest,
        deadline: float | None, audit: Handle,
    ) -> None:  # fmt: skip
        """`generation` is what `submit` made of `request`."""
        self.request, self.generation, self.audit = request, generation, audit
        self._submit, self._deadline = submit, deadline
        self._spoke = self._late = False
        self._watch = asyncio.create_task(self._cancel_when_gone(http))

    async def __anext__(self) -> Piece:
        """Returns when the audit log has what it must have before the piece is sent."""
        try:
            piece = await self._next()
        except StopAsyncIteration:
            raise
        except BaseException as error:
            self.audit.failed(error)
            raise
        await self.audit.heard(piece, self.generation)
        return piece

    async def _next(self) -> Piece:
        try:
            async with asyncio.timeout_at(self._deadline):
                piece = await anext(self.generation)
        except TimeoutError:
            self._end_late()
            return await self._next()
        self._spoke = True
        if piece.finish_reason != "cancelled":
            return piece
        if not self._late:
            raise ApiError(CLIENT_GONE, "the client went away")
        return replace(piece, finish_reason="length")

    def _end_late(self) -> None:
        self.generation.cancel()
        if not self._spoke:
            raise ApiError(503, "no answer began in time", code="timeout", retry=True)
        # What was said so far still comes, and its end within a step.
        self._late, self._deadline = True, None

    async def replace(self, request: Request) -> bool:
        """Ask anew, in place of all that was said; False when the queue is full, and nothing is
        changed."""
        try:
            generation = await asyncio.to_thread(self._submit, request)
        except EngineBusyError:
            return False
        self.generation.close()
        self.request, self.generation = request, generation
        self.audit.begin_anew()
        if self._watch.done():  # the client left meanwhile
            generation.cancel()
        return True

    async def whole(self) -> Piece:
        """All pieces as one."""
        return joined([piece async for piece in self])

    async def _cancel_when_gone(self, http: HttpRequest) -> None:
        with suppress(OSError):
            while (await http.receive())["type"] != "http.disconnect":
                pass
        self.generation.cancel()

    def close(self) -> None:
        """Give the slot back, if it is still held."""
        self._watch.cancel()
        self.generation.close()
        self.audit.close()


class EventStream(StreamingResponse):
    """Server-sent events of an answer, which is closed however the response ends."""

    def __init__(self, answering: Attended, events: AsyncIterator[str]) -> None:
        # nginx would hold events back otherwise.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.close()


class Service:
    """The engine of an app, and under which names and limits it answers."""

    def __init__(
        self, state: State, *, model: str, sha256: str, max_new_tokens: int, request_seconds: float,
        audited: Audited, calibration: Calibration | None = None,
        adapters: Mapping[str, ServedAdapter] = {}, default_adapter: str | None = None,
        guidelines: "Guidelines | None" = None, suppression: Suppression | None = None,
    ) -> None:  # fmt: skip
        """`state` has `engine`, None until it is loaded, and `draining`. `default_adapter` answers
        requests that name no model."""
        self.calibration = calibration
        self.adapters, self.default_adapter = adapters, default_adapter
        self.guidelines, self.suppression = guidelines, suppression
        self.audited = audited
        self.model, self.sha256 = model, sha256
        self.max_new_tokens = max_new_tokens
        self._state, self._seconds = state, request_seconds

    @property
    def engine(self) -> Engine:
        """`ApiError` 503 until it is loaded."""
        engine: Engine | None = self._state.engine
        if engine is None:
            raise ApiError(503, "the model is loading", code="loading", retry=True)
        if not engine.is_open:
            raise ApiError(503, "the model was unloaded", code="unavailable", retry=True)
        return engine

    async def require_open(self) -> None:
        """`ApiError` 503 when no request can be taken: the model loads, or the service stops."""
        if self._state.draining:
            raise ApiError(503, "the service is stopping", code="draining", retry=True)
        _ = self.engine

    @property
    def names(self) -> tuple[str, ...]:
        """Models that a request may name: the base and its adapters.

        First what answers a request that names none: clients that must name one take the first.
        """
        first = self.default_adapter or self.model
        names = (self.model, *self.engine.adapters)
        return (first, *(name for name in names if name != first))

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a request's model stands for; `ApiError` 404 for an unknown one."""
        if name is None:
            return self.default_adapter
        if name == self.model:
            return None
        if name in self.engine.adapters:
            return name
        known = ", ".join(self.names)
        raise ApiError(
            404, f"no model {name}; there is {known}", code="model_not_found", param="model"
        )

    def calibration_of(self, adapter: str | None) -> Calibration | None:
        """How sure it may be: an adapter makes another model, with a calibration of its own."""
        if adapter is None:
            return self.calibration
        served = self.adapters.get(adapter)
        return served.calibration if served else None

    def identity_of(self, adapter: str | None) -> dict[str, Any]:
        """What answers: the name that clients see, and the SHA-256 of its one file or two."""
        served = self.adapters.get(adapter) if adapter else None
        return {
            "model": adapter or self.model,
            "adapter": adapter,
            "sha256": self.sha256,
            "adapter_sha256": served.sha256 if served else None,
        }

    def fingerprint_of(self, adapter: str | None) -> str:
        """OpenAI's `system_fingerprint`: the beginning of the SHA-256 of each file."""
        known = self.identity_of(adapter)
        digests = (known["sha256"], known["adapter_sha256"])
        return "-".join(digest[:12] for digest in digests if digest)

    async def start(
        self, http: HttpRequest, make: Callable[[Engine], Request], *, prompt: Prompt,
        parameters: Mapping[str, Any], adapter: str | None, judged: bool = False,
    ) -> Attended:  # fmt: skip
        """Put the request that `make` makes in the queue, once the audit log has it.

        `make` runs in a thread, where it may tokenize for milliseconds.
        """
        engine, loop = self.engine, asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        audit = await self.audited.begin(
            http, prompt, parameters=parameters, adapter=adapter, judged=judged
        )

        def submit(request: Request) -> AsyncGeneration:
            return engine.submit_async(request, loop)

        def begin() -> tuple[Request, AsyncGeneration]:
            request = make(engine)
            return request, submit(request)

        try:
            request, generation = await asyncio.to_thread(begin)
        except BaseException as error:
            audit.failed(error)
            audit.close()
            raise
        return Attended(request, submit, generation, http, deadline, audit)
