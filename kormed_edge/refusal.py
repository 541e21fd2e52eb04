"""A request that is turned away before it reaches the API, with OpenAI's error body."""

from math import ceil

from starlette.responses import JSONResponse

from kormed_edge.api_errors import error_body


def refusal(
    status: int, message: str, *, type: str, code: str, retry_after: float | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """An ASGI response; `retry_after` is in seconds and becomes a whole number of them."""
    given = dict(headers or {})
    if retry_after is not None:
        given["Retry-After"] = str(max(1, ceil(retry_after)))
    return JSONResponse(error_body(message, type, code=code), status_code=status, headers=given)
