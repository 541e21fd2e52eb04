"""The domain's own endpoint: a question in, an answer with its option and its doubts out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from kormed_edge.api_errors import DOCUMENTED, ApiError
from kormed_edge.appraisal import appraise
from kormed_edge.ask_shapes import AskAnswer, Question
from kormed_edge.asking import Asked, consult
from kormed_edge.audit_api import parameters_of
from kormed_edge.engine import Engine
from kormed_edge.guidelines_api import unavailable
from kormed_edge.guidelines_file import GuidelinesError
from kormed_edge.openai_api import event_stream
from kormed_edge.phi import find_phi
from kormed_edge.prompts import NOTICE
from kormed_edge.request import Piece, Request, joined
from kormed_edge.safety import drifts, find_guidance
from kormed_edge.service import Attended, Service


def ask_router(service: Service) -> APIRouter:
    """POST /v1/ask. Streamed, it sends {"delta": text} events and at last the whole answer. The
    first event has the request's id, guidance, and the passages of the guidelines; one with
    "replaced" says that what was said so far is taken back, and another answer follows."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(service.require_open)])
    streamed = {"description": "The answer", "content": {"text/event-stream": {}}}

    @router.post("/ask", response_model=AskAnswer, responses={**DOCUMENTED, 200: streamed})
    async def ask(body: Question, http: HttpRequest) -> Response:
        adapter = service.adapter_of(body.model)
        asked = await asyncio.to_thread(_prepare, body, service)
        calibration = service.calibration_of(adapter)
        found = [passage.id for passage in asked.passages or ()]

        def make(engine: Engine) -> Request:
            return asked.request(
                engine,
                max_new_tokens=service.max_new_tokens,
                adapter=adapter,
                calibrated=calibration is not None,
                suppression=service.suppression,
            )

        guidance = await asyncio.to_thread(find_guidance, body.text)
        answering = await service.start(
            http,
            make,
            prompt=body.text,
            parameters=parameters_of(body)
            | ({} if asked.passages is None else {"passages": found}),
            adapter=adapter,
            judged=True,
        )
        personal = bool(await asyncio.to_thread(find_phi, body.text))
        telling = _Telling(
            service, answering, asked, asdict(guidance) if guidance else None, personal
        )
        if body.stream:
            return await event_stream(answering, telling.events)
        with closing(answering):
            events = [event async for event in telling.events(await anext(answering))]
        return JSONResponse(events[-1])

    return router


def _prepare(body: Question, service: Service) -> Asked:
    """The question with its passages; `ApiError` where they are asked for and cannot be had."""
    if body.guidelines and service.guidelines is None:
        message = "this service has no guidelines"
        raise ApiError(400, message, code="guidelines_off", param="guidelines")
    if service.guidelines is None or body.guidelines is False:
        return Asked(body.text, body.choices)
    try:
        return consult(
            service.guidelines, body.text, body.choices, service.engine, service.max_new_tokens
        )
    except GuidelinesError as error:
        raise unavailable() from error


@dataclass
class _Telling:
    """One answer while it is told."""

    service: Service
    answering: Attended
    asked: Asked
    guidance: dict[str, Any] | None
    personal: bool
    regenerated: bool = False

    async def events(self, first: Piece) -> AsyncIterator[dict[str, Any]]:
        """Deltas, the first with what is known before the answer, and at last the whole."""
        said: list[Piece] = []
        opening = self._opening()
        async for piece in self._pieces(first):
            if piece is None:
                said.clear()
                yield {"delta": "", "replaced": True, **opening}
            else:
                said.append(piece)
                if piece.text or opening:
                    yield {"delta": piece.text, **opening}
            opening = {}
        yield await self._whole(joined(said))

    def _opening(self) -> dict[str, Any]:
        known = {"guidance": self.guidance, **self.asked.opening()}
        told = {name: value for name, value in known.items() if value is not None}
        return {"request_id": self.answering.audit.request_id, **told}

    async def _pieces(self, first: Piece) -> AsyncIterator[Piece | None]:
        """The pieces; None where they begin anew, because the first answer drifted."""
        piece: Piece | None = first
        while piece is not None:
            if not self.regenerated and self._drifts(piece) and await self._ask_again():
                self.regenerated = True
                yield None
            else:
                yield piece
            piece = await anext(self.answering, None)

    def _drifts(self, piece: Piece) -> bool:
        suppresses = self.service.suppression is not None
        return suppresses and drifts(piece.text)

    async def _ask_again(self) -> bool:
        suppression, request = self.service.suppression, self.answering.request
        banned = suppression.strict if suppression else frozenset()
        sampling = replace(request.sampling, banned=banned)
        return await self.answering.replace(replace(request, sampling=sampling))

    async def _whole(self, piece: Piece) -> dict[str, Any]:
        """The answer with what to think of it, when the audit log has its end."""
        service, adapter = self.service, self.answering.request.adapter
        judged = await asyncio.to_thread(
            appraise, piece, self.asked, self.answering.generation.options,
            service.calibration_of(adapter), personal=self.personal,
        )  # fmt: skip
        await self.answering.audit.end(
            option=judged["option"],
            confidence=judged["confidence"],
            warnings=self._codes(judged),
        )
        told = {"regenerated": self.regenerated, "guidance": self.guidance, "notice": NOTICE}
        return {
            **judged,
            **service.identity_of(adapter),
            **told,
            "request_id": self.answering.audit.request_id,
        }

    def _codes(self, judged: dict[str, Any]) -> list[str]:
        notes = [judged["guidelines_note"]] if judged["guidelines_note"] else []
        codes: list[str] = [warning["code"] for warning in (*judged["warnings"], *notes)]
        return [*codes, *(["regenerated"] if self.regenerated else [])]
