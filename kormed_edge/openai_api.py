"""OpenAI's endpoints: chat completions, raw completions, models."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from kormed_edge.api_errors import DOCUMENTED, as_api_error
from kormed_edge.audit_api import parameters_of, prompt_of
from kormed_edge.engine import Engine
from kormed_edge.openai_requests import ChatRequest, CompletionRequest
from kormed_edge.openai_shapes import ChatShape, CompletionShape, Shape, usage_of
from kormed_edge.request import Piece, Request
from kormed_edge.service import Attended, EventStream, Service

STREAMED: dict[int | str, dict[str, Any]] = {
    **DOCUMENTED,
    200: {"description": "The answer", "content": {"text/event-stream": {}}},
}


def openai_router(service: Service) -> APIRouter:
    """The endpoints under /v1 that OpenAI's clients know."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(service.require_open)])
    since = int(time.time())

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": since, "owned_by": "kormed"}

    @router.get("/models", responses=DOCUMENTED)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(name) for name in service.names]}

    @router.get("/models/{name:path}", responses=DOCUMENTED)
    async def model(name: str) -> dict[str, Any]:
        return entry(service.adapter_of(name) or service.model)

    @router.post("/chat/completions", response_class=JSONResponse, responses=STREAMED)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        adapter, tops = service.adapter_of(body.model), body.tops

        def make(engine: Engine) -> Request:
            schema = body.response_format.as_schema() if body.response_format else None
            return Request(
                tuple(engine.encode_messages(body.conversation())),
                body.limit or service.max_new_tokens,
                body.sampling(schema),
                body.stops,
                tops,
                adapter,
            )

        shape = ChatShape(
            adapter or service.model,
            service.fingerprint_of(adapter),
            with_usage=body.with_usage,
            with_logprobs=tops is not None,
        )
        prompt = prompt_of([message.as_message() for message in body.messages])
        answering = await service.start(
            http, make, prompt=prompt, parameters=parameters_of(body), adapter=adapter
        )
        return await _respond(answering, shape, stream=bool(body.stream))

    @router.post("/completions", response_class=JSONResponse, responses=STREAMED)
    async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
        adapter = service.adapter_of(body.model)

        def make(engine: Engine) -> Request:
            prompt = body.prompt
            return Request(
                tuple(engine.encode(prompt) if isinstance(prompt, str) else prompt),
                body.max_tokens or service.max_new_tokens,
                body.sampling(),
                body.stops,
                body.logprobs,
                adapter,
            )

        shape = CompletionShape(
            adapter or service.model,
            service.fingerprint_of(adapter),
            with_usage=body.with_usage,
            with_logprobs=body.logprobs is not None,
        )
        answering = await service.start(
            http, make, prompt=body.prompt, parameters=parameters_of(body), adapter=adapter
        )
        return await _respond(answering, shape, stream=bool(body.stream))

    return router


async def _respond(answering: Attended, shape: Shape, *, stream: bool) -> Response:
    if stream:
        return await event_stream(answering, lambda first: _chunks(first, answering, shape))
    with closing(answering):
        piece = await answering.whole()
    return JSONResponse(shape.whole(piece, usage_of(answering.generation)))


async def _chunks(first: Piece, answering: Attended, shape: Shape) -> AsyncIterator[Any]:
    for chunk in (*shape.opening(), *shape.chunks(first)):
        yield chunk
    async for piece in answering:
        for chunk in shape.chunks(piece):
            yield chunk
    for chunk in shape.closing(usage_of(answering.generation)):
        yield chunk


async def event_stream(
    answering: Attended, chunks: Callable[[Piece], AsyncIterator[Any]]
) -> EventStream:
    """A response of `chunks`, begun when there is a first piece: an error before it has a status
    of its own, and one after it is an event."""
    try:
        first = await anext(answering)
    except BaseException:
        answering.close()
        raise
    return EventStream(answering, _events(chunks(first)))


async def _events(chunks: AsyncIterator[Any]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except Exception as error:
        refused = as_api_error(error)
        yield _event(refused.body)
        if refused.status == 500:
            raise


def _event(chunk: Any) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
