"""The clinician's page: its files, and what it asks the service besides answers."""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from kormed_edge import __version__
from kormed_edge.api_errors import DOCUMENTED
from kormed_edge.service import Service

FOLDER = Path(__file__).parent / "page"
HTML, SCRIPT = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
FILES = {
    "/": ("index.html", HTML),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", SCRIPT),
    "/page/ask.js": ("ask.js", SCRIPT),
    "/page/dialogs.js": ("dialogs.js", SCRIPT),
    "/page/elements.js": ("elements.js", SCRIPT),
    "/page/feedback.js": ("feedback.js", SCRIPT),
    "/page/guidelines.js": ("guidelines.js", SCRIPT),
    "/page/options.js": ("options.js", SCRIPT),
    "/page/turn.js": ("turn.js", SCRIPT),
    "/page/words.js": ("words.js", SCRIPT),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Name and media type of the file at each path."""
HEADERS = {
    # With trusted types a browser refuses text as markup even where a script would let it in.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for anew every time, so that no browser keeps an old page over an update.
    "Cache-Control": "no-cache",
}


class Status(BaseModel):
    """What answers a request that names no model, and how much there is to do; `waiting` counts
    requests without a slot.

    `verified` says whether the files were held against their manifest; null if that is unknown.
    `feedback` says whether there is an audit log that POST /v1/feedback writes to, `calibrated`
    whether what answers has a calibration, `guidelines` whether answers cite the hospital's own.
    """

    model: str
    adapter: str | None
    version: str
    sha256: str
    adapter_sha256: str | None
    verified: bool | None
    slots: int
    busy: int
    waiting: int
    feedback: bool
    calibrated: bool
    guidelines: bool


def page_router() -> APIRouter:
    """GET the page and its files; they need no engine."""
    router = APIRouter()
    for path, (name, media_type) in FILES.items():
        answer = _file((FOLDER / name).read_bytes(), media_type)
        router.add_route(path, answer, include_in_schema=False)
    return router


def _file(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers={**headers, "Content-Type": media_type})

    return answer


def status_router(service: Service, *, verified: bool | None) -> APIRouter:
    """GET /v1/status."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(service.require_open)])

    @router.get("/status", response_model=Status, responses=DOCUMENTED)
    async def status() -> Status:
        now, adapter = service.engine.status(), service.default_adapter
        return Status(
            **service.identity_of(adapter), version=__version__, verified=verified,
            slots=now.slots, busy=now.busy, waiting=now.waiting,
            feedback=service.audited.log is not None,
            calibrated=service.calibration_of(adapter) is not None,
            guidelines=service.guidelines is not None,
        )  # fmt: skip

    return router
