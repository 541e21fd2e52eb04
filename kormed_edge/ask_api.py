"""The domain's own endpoint: a question in, an answer with its option and its doubts out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, field_validator

from kormed_edge.answers import read_tolerant
from kormed_edge.api_errors import DOCUMENTED
from kormed_edge.audit_api import parameters_of
from kormed_edge.calibration import LOW_CONFIDENCE, Calibration, level_of
from kormed_edge.engine import Engine, among_each_other
from kormed_edge.errors import EngineError
from kormed_edge.openai_api import event_stream
from kormed_edge.openai_requests import ApiModel, ModelName, Text
from kormed_edge.phi import PERSONAL_DATA, find_phi
from kormed_edge.prompts import NOTICE, question_messages
from kormed_edge.records import format_question, split_options
from kormed_edge.request import Piece, Request, TokenLogprob
from kormed_edge.safety import find_guidance, find_warnings
from kormed_edge.service import Service, joined

MAX_OPTIONS = 64
MAX_SCORED = 9
"""Options whose probabilities are told: those that begin with a digit of their own."""

Option = Annotated[Text, Field(min_length=1, max_length=2048)]


class Question(ApiModel):
    """`options` are those of a multiple choice; without them they are looked for in the text."""

    question: Annotated[Text, Field(min_length=1)]
    options: list[Option] | None = Field(default=None, min_length=2, max_length=MAX_OPTIONS)
    model: ModelName | None = None
    stream: bool | None = None

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is empty")
        return question

    @property
    def text(self) -> str:
        """The question as the model was taught to read one."""
        if self.options is None:
            return self.question
        return format_question(self.question.strip(), self.choices)

    @property
    def choices(self) -> list[str]:
        if self.options is not None:
            return [" ".join(option.split()) for option in self.options]
        return split_options(self.question)[1][:MAX_OPTIONS]


class Doubt(BaseModel):
    """A warning, or guidance, in Korean and English."""

    code: str
    ko: str
    en: str


class Words(BaseModel):
    """One thing said in Korean and English."""

    ko: str
    en: str


class AskAnswer(BaseModel):
    """`option` counts from 1; probabilities are among the options; `confidence` is that of the
    option answered, or, if `calibrated`, that a free answer is right, and `confidence_words` says
    how high it is; `guidance` says whom to call first. They are null where there is nothing to
    tell. `calibrated` says that of answers with this confidence about this share was right on the
    model's validation split; otherwise it is the model's own opinion."""

    answer: str
    finish_reason: str
    option: int | None
    option_probabilities: list[float] | None
    confidence: float | None
    confidence_words: Words | None
    calibrated: bool
    warnings: list[Doubt]
    guidance: Doubt | None
    model: str
    adapter: str | None
    sha256: str
    notice: str
    request_id: str


def ask_router(service: Service) -> APIRouter:
    """POST /v1/ask. Streamed, it sends {"delta": text} events, the first with any guidance, and at
    last the whole answer."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(service.require_open)])
    streamed = {"description": "The answer", "content": {"text/event-stream": {}}}

    @router.post("/ask", response_model=AskAnswer, responses={**DOCUMENTED, 200: streamed})
    async def ask(body: Question, http: HttpRequest) -> Response:
        adapter = service.adapter_of(body.model)
        choices = await asyncio.to_thread(lambda: body.choices)
        found = await asyncio.to_thread(find_guidance, body.text)
        guidance = asdict(found) if found else None
        answering = await service.start(
            http,
            lambda engine: _request(engine, body.text, len(choices), service, adapter),
            prompt=body.text,
            parameters=parameters_of(body),
            adapter=adapter,
            judged=True,
        )
        personal = await asyncio.to_thread(find_phi, body.text)

        async def result(piece: Piece) -> dict[str, Any]:
            options, known = answering.generation.options, service.calibration_of(adapter)
            judged = await asyncio.to_thread(appraise, piece, choices, options, known)
            if personal:
                judged["warnings"].append(asdict(PERSONAL_DATA))
            await answering.audit.end(
                option=judged["option"],
                confidence=judged["confidence"],
                warnings=[warning["code"] for warning in judged["warnings"]],
            )
            identity = {"model": adapter or service.model, "adapter": adapter}
            told = {"guidance": guidance, "sha256": service.sha256, "notice": NOTICE}
            return {**judged, **identity, **told, "request_id": answering.audit.request_id}

        async def chunks(first: Piece) -> AsyncIterator[Any]:
            pieces = [first]
            yield {"delta": first.text} | ({"guidance": guidance} if guidance else {})
            async for piece in answering:
                pieces.append(piece)
                if piece.text:
                    yield {"delta": piece.text}
            yield await result(joined(pieces))

        if body.stream:
            return await event_stream(answering, chunks)
        with closing(answering):
            return JSONResponse(await result(await answering.whole()))

    return router


def _request(
    engine: Engine, text: str, options: int, service: Service, adapter: str | None
) -> Request:
    return Request(
        tuple(engine.encode_messages(question_messages(text))),
        service.max_new_tokens,
        adapter=adapter,
        options=_option_tokens(engine, options),
        # How sure a free answer is stands in the probabilities of its tokens alone.
        logprobs=None if options or service.calibration_of(adapter) is None else 0,
    )


def _option_tokens(engine: Engine, options: int) -> tuple[int, ...]:
    """First tokens of the options' numbers; none where they cannot tell the options apart."""
    if not 2 <= options <= MAX_SCORED:
        return ()
    try:
        return engine.option_tokens([str(i) for i in range(1, options + 1)])
    except EngineError:
        return ()


def appraise(
    piece: Piece,
    choices: Sequence[str],
    scored: Sequence[TokenLogprob],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """What an answer says, how sure it is, and what to be wary of.

    Without a calibration a free answer has no confidence, and an option the probability that the
    model gives it.
    """
    option = read_tolerant(piece.text, choices).option if choices else None
    own = among_each_other(scored)
    scaled = calibration.of_options(own) if calibration else None
    probabilities = list(scaled or own) or None
    confidence = probabilities[option - 1] if probabilities and option else None
    if calibration and not choices:
        confidence = calibration.of_text([token.logprob for token in piece.logprobs])
    threshold = calibration.threshold if calibration else LOW_CONFIDENCE
    warnings = find_warnings(
        piece.text,
        unfinished=piece.finish_reason == "length",
        has_options=bool(choices),
        option=option,
        confidence=confidence,
        threshold=threshold,
    )
    level = None if confidence is None else level_of(confidence, threshold)
    return {
        "answer": piece.text,
        "finish_reason": piece.finish_reason,
        "option": option,
        "option_probabilities": probabilities,
        "confidence": confidence,
        "confidence_words": level._asdict() if level else None,
        "calibrated": confidence is not None and (scaled is not None or not choices),
        "warnings": [asdict(warning) for warning in warnings],
    }
