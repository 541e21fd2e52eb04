"""Where the service meets the guidelines: their endpoints, and a question with its passages."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel

from kormed_edge.api_errors import DOCUMENTED, ApiError
from kormed_edge.errors import PromptTooLongError
from kormed_edge.guidelines import Guidelines, Passage
from kormed_edge.guidelines_file import GuidelinesError
from kormed_edge.prompts import cited_question

NOTHING_RELEVANT_KO = "등록된 병원 지침에서 이 질문과 관련된 구절을 찾지 못했습니다."
NOTHING_RELEVANT_EN = "Nothing in the hospital's guidelines was found to be about this question."
_CITATION = re.compile(r"\[([1-9][0-9]?(?:\s*,\s*[1-9][0-9]?)*)\]")


class DocumentShape(BaseModel):
    """`added` is UTC."""

    name: str
    added: str
    passages: int


class GuidelinesShape(BaseModel):
    """Whether questions are answered with guidelines, and the documents of the index."""

    on: bool
    documents: list[DocumentShape]


class PassageShape(BaseModel):
    """A passage as the page shows it; `page` counts from 1, null where a document has none."""

    id: int
    document: str
    page: int | None
    heading: str
    text: str

    @classmethod
    def of(cls, passage: Passage) -> "PassageShape":
        return cls.model_validate(passage, from_attributes=True)


def guidelines_router(guidelines: Guidelines | None) -> APIRouter:
    """GET /v1/guidelines and /v1/guidelines/passages/{id}; they need no engine."""
    router = APIRouter(prefix="/v1/guidelines")

    @router.get("", response_model=GuidelinesShape, responses=DOCUMENTED)
    async def documents() -> GuidelinesShape:
        if guidelines is None:
            return GuidelinesShape(on=False, documents=[])
        try:
            found = await asyncio.to_thread(guidelines.documents)
        except GuidelinesError as error:
            raise unavailable() from error
        shown = [DocumentShape.model_validate(one, from_attributes=True) for one in found]
        return GuidelinesShape(on=True, documents=shown)

    @router.get("/passages/{id}", response_model=PassageShape, responses=DOCUMENTED)
    async def passage(id: Annotated[int, InPath(ge=1, lt=2**63)]) -> PassageShape:
        if guidelines is None:
            raise ApiError(404, "this service has no guidelines", code="guidelines_off")
        try:
            found = await asyncio.to_thread(guidelines.passage, id)
        except GuidelinesError as error:
            raise unavailable() from error
        if found is None:
            message = "no such passage: its document was removed or replaced"
            raise ApiError(404, message, code="passage_not_found", param="id")
        return PassageShape.of(found)

    return router


def unavailable() -> ApiError:
    """It does not say why: the path and state of the disk are nobody's business."""
    message = "the guidelines cannot be read"
    return ApiError(503, message, code="guidelines_unavailable", retry=True)


def cite(
    question: str, passages: Sequence[Passage], *, count: Callable[[str], int], budget: int
) -> tuple[str, list[Passage]]:
    """The text to ask, and the passages that it numbers [1]..[k].

    Passages come in as long as the whole text has at most `budget` tokens; one that is too long
    leaves its place to the next. Without any, the text is the question itself. `count` gives the
    tokens of a text, and may raise `PromptTooLongError`.
    """
    taken: list[Passage] = []
    text = question
    for passage in passages:
        longer = cited_question(question, [_shown(one) for one in [*taken, passage]])
        if _fits(longer, count, budget):
            taken.append(passage)
            text = longer
    return text, taken


def _fits(text: str, count: Callable[[str], int], budget: int) -> bool:
    try:
        return count(text) <= budget
    except PromptTooLongError:
        return False


def _shown(passage: Passage) -> str:
    page = f", {passage.page}쪽" if passage.page else ""
    heading = f" — {passage.heading}" if passage.heading else ""
    return f"({passage.document}{page}{heading})\n{passage.text}"


def cited_numbers(answer: str, passages: int) -> list[int]:
    """The numbers that an answer cites, [1] or [1, 3], in their order and once each.

    Numbers without a passage are left out: they are invented.
    """
    found = [int(n) for group in _CITATION.findall(answer) for n in group.split(",")]
    return [number for number in dict.fromkeys(found) if number <= passages]
