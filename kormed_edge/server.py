"""The service: an OpenAI-compatible API over the engine, on the loopback by default."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from kormed_edge import __version__
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineError
from kormed_edge.prompts import NOTICE, SYSTEM_PROMPT, Message, question_messages
from kormed_edge.request import Piece

Tokens = Annotated[int, Field(gt=0, le=4096)]


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=32_768)


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    max_tokens: Tokens | None = None
    stream: bool = False


class Question(BaseModel):
    model: str | None = None
    question: str = Field(min_length=1, max_length=32_768)


def create_app(engine: Engine, *, model: str, sha256: str, max_new_tokens: int) -> FastAPI:
    """The API over a loaded engine. `model` is the name that clients see; an adapter of the engine
    is a model of its own name."""
    app = FastAPI(title="kormed-edge", version=__version__, docs_url=None, redoc_url=None)

    @app.exception_handler(EngineError)
    def engine_error(_request: Request, error: EngineError) -> JSONResponse:
        body = {"error": {"message": str(error), "type": "invalid_request_error", "code": None}}
        return JSONResponse(body, status_code=400)

    def adapter_of(name: str | None) -> str | None:
        if name in (None, model):
            return None
        if name in engine.adapters:
            return name
        known = ", ".join([model, *engine.adapters])
        error = {"message": f"no model {name}; there is {known}", "type": "invalid_request_error"}
        raise HTTPException(404, {**error, "code": "model_not_found"})

    @app.exception_handler(HTTPException)
    def refused(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code)

    @app.get("/healthz")
    @app.get("/readyz")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": model, "sha256": sha256}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        names = (model, *engine.adapters)
        entries = [{"id": name, "object": "model", "owned_by": "kormed"} for name in names]
        return {"object": "list", "data": entries}

    @app.post("/v1/ask")
    def ask(question: Question) -> dict[str, str]:
        adapter = adapter_of(question.model)
        ids = engine.encode_messages(question_messages(question.question))
        answer = engine.answer(ids, max_tokens=max_new_tokens, adapter=adapter)
        return {
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "model": adapter or model,
            "sha256": sha256,
            "notice": NOTICE,
        }

    @app.post("/v1/chat/completions", response_model=None)
    def chat(request: ChatRequest) -> Response | dict[str, Any]:
        adapter = adapter_of(request.model)
        ids = engine.encode_messages(_with_system(request.messages))
        limit = request.max_tokens or max_new_tokens
        name = adapter or model
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if request.stream:
            events = _events(engine.stream(ids, max_tokens=limit, adapter=adapter), head)
            return StreamingResponse(events, media_type="text/event-stream")
        answer = engine.answer(ids, max_tokens=limit, adapter=adapter)
        message = {"role": "assistant", "content": answer.text}
        return {
            **head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            },
        }

    return app


def _with_system(messages: list[ChatMessage]) -> list[Message]:
    """The conversation, with the prompt that the model was trained under unless it brings one."""
    given: list[Message] = [{"role": m.role, "content": m.content} for m in messages]
    if given[0]["role"] == "system":
        return given
    return [{"role": "system", "content": SYSTEM_PROMPT}, *given]


def _events(pieces: Iterator[Piece], head: dict[str, Any]) -> Iterator[str]:
    for piece in pieces:
        delta = {"content": piece.text} if piece.text else {}
        choice = {"index": 0, "delta": delta, "finish_reason": piece.finish_reason}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"
