"""Every error that the service answers with, in the shape that OpenAI's clients read."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from kormed_edge.errors import (
    DecodeError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
)

RETRY_AFTER = 5
"""Seconds after which a client may ask again: about what an answer takes."""
TOO_LONG = "context_length_exceeded"
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What `error_body` makes, for the API's own document."""

    error: ErrorDetail


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 422, 429, 500, 503)
}


class ApiError(Exception):
    """An answer other than the one asked for, with the status that says so."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry: bool = False,
    ) -> None:
        """`retry` says that the same request may succeed later."""
        super().__init__(message)
        kind = _TYPES.get(status, "invalid_request_error")
        self.status = status
        self.body = error_body(message, kind, code=code, param=param)
        self.headers = {"Retry-After": str(RETRY_AFTER)} if retry else {}


def error_body(
    message: str, type: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The JSON body of an error: `{"error": {"message", "type", "param", "code"}}`.

    What a client sent may be quoted in it: half of a surrogate pair, which no response can carry,
    becomes a question mark.
    """
    fields = {"message": message, "type": type, "param": param, "code": code}
    return {"error": {k: v and v.encode(errors="replace").decode() for k, v in fields.items()}}


def as_api_error(error: Exception) -> ApiError:
    """The one place where an exception gets its status; what is unforeseen tells nothing."""
    match error:
        case ApiError():
            return error
        case EngineBusyError():
            return ApiError(429, str(error), code="queue_full", retry=True)
        case EngineError():
            return _of_engine(error)
        case RequestValidationError():
            return _of_validation(error.errors())
        case HTTPException():
            refused = ApiError(error.status_code, str(error.detail))
            refused.headers = dict(error.headers or {})
            return refused
    return ApiError(500, "the service failed; its log says more")


def _of_engine(error: EngineError) -> ApiError:
    """Most are about the request; those about the engine say nothing of its inside."""
    match error:
        case EngineClosedError():
            return ApiError(503, "the model was unloaded", code="unavailable", retry=True)
        case DecodeError():
            return ApiError(500, "the model cannot compute this request")
        case PromptTooLongError():
            return ApiError(400, str(error), code=TOO_LONG)
    return ApiError(400, str(error))


def _of_validation(errors: Sequence[Any]) -> ApiError:
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {errors[0]['ctx']['error']}")
    places = [".".join(map(str, e["loc"][1:])) or None for e in errors]
    said = [f"{place or 'body'}: {e['msg']}" for place, e in zip(places, errors, strict=True)]
    return ApiError(422, "; ".join(said[:3]), param=places[0])


async def _answer(_request: Request, error: Exception) -> JSONResponse:
    refused = as_api_error(error)
    return JSONResponse(refused.body, refused.status, refused.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Have every error of an app answered in this shape."""
    for kind in (ApiError, EngineError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
