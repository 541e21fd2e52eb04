"""Where the service meets its audit log: the hook that requests pass, and POST /v1/feedback."""

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kormed_edge.api_errors import DOCUMENTED, ApiError, as_api_error
from kormed_edge.api_keys import SCOPE_KEY
from kormed_edge.audit import AuditLog, Began, Ended, Prompt
from kormed_edge.audit_file import AuditError
from kormed_edge.feedback import (
    MAX_COMMENT,
    MAX_CORRECTION,
    Feedback,
    FeedbackError,
    UnknownRequestError,
    give,
    parse_verdict,
)
from kormed_edge.openai_requests import ApiModel
from kormed_edge.request import Piece

LOG = logging.getLogger(__name__)
LOCAL = "local"
"""The principal of a service without keys."""
CLIENT_GONE = 499
"""What nginx logs for a client that went away."""
REQUEST_ID = "kormed.request_id"
"""Where a request's id stands in an ASGI scope."""
_NUMBERS = (
    "temperature", "top_p", "min_p", "repeat_penalty", "seed", "max_tokens",
    "max_completion_tokens", "top_logprobs", "logprobs", "stream",
)  # fmt: skip
"""What is told of a request's parameters: none of them can hold a text."""


class Counted(Protocol):
    """What a generation tells of itself."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class RequestIds:
    """ASGI middleware: an id for every request, in its scope and as X-Request-Id of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        id = scope[REQUEST_ID] = uuid.uuid4().hex

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, with_id)


class Handle:
    """One request under audit. Whatever happens to it, `close` it."""

    def __init__(self, log: AuditLog | None, request_id: str, *, judged: bool) -> None:
        """`judged` says that `end` is called with a verdict; else the last piece ends it."""
        self.request_id = request_id
        self._log, self._judged = log, judged
        self._began = time.monotonic()
        self._first: float | None = None
        self._texts: list[str] = []
        self._finish, self._ended = "cancelled", False
        self._generation: Counted | None = None

    async def heard(self, piece: Piece, generation: Counted) -> None:
        """Note a piece before it is sent; the last one waits until its row is on the disk."""
        if piece.text and self._first is None:
            self._first = time.monotonic() - self._began
        self._texts.append(piece.text)
        self._generation = generation
        if piece.finish_reason is not None:
            self._finish = piece.finish_reason
            if not self._judged:
                await self.end()

    def begin_anew(self) -> None:
        """Forget what was said: another answer takes its place."""
        self._texts.clear()

    async def end(
        self, *, option: int | None = None, confidence: float | None = None,
        warnings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Write how it ended; `ApiError` 503 if that cannot be. Once is enough."""
        await asyncio.to_thread(self._write, option, confidence, warnings)

    def failed(self, error: BaseException) -> None:
        """Note why there is no answer, or no whole one; `close` writes it."""
        if not isinstance(error, Exception):
            return  # the task was cancelled
        refused = as_api_error(error)
        if refused.status != CLIENT_GONE:
            self._finish = f"error:{refused.body['error']['code'] or refused.status}"

    def close(self) -> None:
        """Write the end of what never reached one: its client went, or it failed.

        In the calling thread, because a cancelled task may wait for nothing more. Raises nothing:
        there is nobody to tell, and the row of its beginning is there.
        """
        try:
            self._write(None, None, ())
        except ApiError:
            LOG.error("the end of request %s is not in the audit log", self.request_id)

    def _write(self, option: int | None, confidence: float | None, warnings: Sequence[str]) -> None:
        if self._ended or self._log is None:
            return
        self._ended = True
        outcome = Ended(
            self.request_id,
            "".join(self._texts),
            self._finish,
            self._generation.prompt_tokens if self._generation else None,
            self._generation.completion_tokens if self._generation else None,
            self._first,
            time.monotonic() - self._began,
            option,
            confidence,
            tuple(warnings),
        )
        try:
            self._log.ended(outcome)
        except AuditError as error:
            raise unavailable() from error


class Audited:
    """The hook: `begin` before the engine gets a request. Without a log it only gives ids."""

    def __init__(
        self, log: AuditLog | None, *, model_sha256: str, adapters: Mapping[str, str] | None = None
    ) -> None:
        """`adapters` are their files' SHA-256 by name."""
        self.log = log
        self._model, self._adapters = model_sha256, adapters or {}

    async def begin(
        self, http: HttpRequest, prompt: Prompt, *, parameters: Mapping[str, Any],
        adapter: str | None = None, judged: bool = False,
    ) -> Handle:  # fmt: skip
        """Returns when the row is on the disk; `ApiError` 503 `audit_unavailable` if it cannot."""
        handle = Handle(self.log, request_id_of(http), judged=judged)
        if self.log is None:
            return handle
        began = Began(
            handle.request_id,
            http.url.path,
            principal_of(http),
            self._model,
            prompt,
            adapter,
            self._adapters.get(adapter) if adapter else None,
            parameters,
        )
        try:
            await asyncio.to_thread(self.log.began, began)
        except AuditError as error:
            raise unavailable() from error
        return handle


def request_id_of(http: HttpRequest) -> str:
    id: str = http.scope.setdefault(REQUEST_ID, uuid.uuid4().hex)
    return id


def principal_of(http: HttpRequest) -> str:
    name: str = http.scope.get(SCOPE_KEY, LOCAL)
    return name


def unavailable() -> ApiError:
    """It does not say why: the path and state of the disk are nobody's business."""
    message = "the audit log cannot be written, and nothing is answered without it"
    return ApiError(503, message, code="audit_unavailable", retry=True)


def parameters_of(body: BaseModel) -> dict[str, Any]:
    """What a request asks of the sampling, without its texts."""
    given = {name: getattr(body, name, None) for name in _NUMBERS}
    return {name: value for name, value in given.items() if value is not None}


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """The question of a conversation that is one and no more; else its messages."""
    [first, *rest] = messages
    if not rest and first["role"] == "user":
        question: str = first["content"]
        return question
    return [dict(message) for message in messages]


class GivenFeedback(ApiModel):
    """`verdict` is correct, wrong or dangerous, or its Korean name."""

    request_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    verdict: Literal["correct", "wrong", "dangerous", "맞음", "틀림", "위험"]
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""
    correction: Annotated[str, Field(max_length=MAX_CORRECTION)] = ""


class StoredFeedback(BaseModel):
    """`id` is null where the log was allowed to lose the row, and did."""

    id: int | None


def feedback_router(audited: Audited) -> APIRouter:
    """POST /v1/feedback: what a clinician says of an answer, by the request_id it came with."""
    router = APIRouter(prefix="/v1")

    @router.post("/feedback", status_code=201, responses=DOCUMENTED)
    async def feedback(body: GivenFeedback, http: HttpRequest) -> StoredFeedback:
        if audited.log is None:
            raise ApiError(404, "this service keeps no audit log", code="audit_off")
        verdict = parse_verdict(body.verdict)
        given = Feedback(
            body.request_id, verdict, principal_of(http), body.comment, body.correction
        )
        try:
            return StoredFeedback(id=await asyncio.to_thread(give, audited.log, given))
        except UnknownRequestError as error:
            raise ApiError(404, str(error), code="request_not_found", param="request_id") from None
        except FeedbackError as error:
            raise ApiError(400, str(error), code="feedback_refused") from None
        except AuditError as error:
            raise unavailable() from error

    return router
