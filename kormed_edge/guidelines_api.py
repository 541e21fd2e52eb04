"""Where the service meets the guidelines: their endpoints."""

import asyncio
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel

from kormed_edge.api_errors import DOCUMENTED, ApiError
from kormed_edge.guidelines import Guidelines, Passage
from kormed_edge.guidelines_file import GuidelinesError


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
