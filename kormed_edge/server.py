"""The service: OpenAI's API, the domain's own and the clinician's page over one engine."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from kormed_edge import __version__
from kormed_edge.api_errors import DOCUMENTED, add_error_handlers
from kormed_edge.ask_api import ask_router
from kormed_edge.audit_api import Audited, feedback_router
from kormed_edge.calibration import Calibration
from kormed_edge.engine import Engine
from kormed_edge.guidelines import Guidelines
from kormed_edge.guidelines_api import guidelines_router
from kormed_edge.openai_api import openai_router
from kormed_edge.page_api import page_router, status_router
from kormed_edge.served_adapters import ServedAdapter
from kormed_edge.service import Service
from kormed_edge.suppression import Suppression


def create_app(
    engine: Engine | None,
    *,
    model: str,
    sha256: str,
    max_new_tokens: int,
    request_seconds: float = 300.0,
    verified: bool | None = None,
    audited: Audited | None = None,
    calibration: Calibration | None = None,
    adapters: Mapping[str, ServedAdapter] = {},
    default_adapter: str | None = None,
    guidelines: Guidelines | None = None,
    suppression: Suppression | None = None,
) -> FastAPI:
    """The API over an engine. `model` is the name that clients see; an adapter of the engine is a
    model of its own name, and `default_adapter` answers requests that name none. `verified` says
    whether the files were held against a manifest; `calibration` is the model's own, as each of
    `adapters` has its own. With `guidelines` answers of /v1/ask cite their passages.
    `suppression` keeps other scripts out of them; other endpoints sample as their clients ask.

    `app.state.engine` may be None until the model is loaded, and `app.state.draining` is set to
    stop: /readyz and new requests are then answered with 503. An answer that has not begun after
    `request_seconds` is refused with 503, and one that has is cut.
    """
    app = FastAPI(title="kormed-edge", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine, app.state.draining = engine, False
    service = Service(
        app.state,
        model=model,
        sha256=sha256,
        max_new_tokens=max_new_tokens,
        request_seconds=request_seconds,
        audited=audited or Audited(None, model_sha256=sha256),
        calibration=calibration,
        adapters=adapters,
        default_adapter=default_adapter,
        guidelines=guidelines,
        suppression=suppression,
    )
    add_error_handlers(app)
    app.include_router(openai_router(service))
    app.include_router(ask_router(service))
    app.include_router(feedback_router(service.audited))
    app.include_router(guidelines_router(guidelines))
    app.include_router(status_router(service, verified=verified))
    app.include_router(page_router())

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        # The page asks this before it has a key: its switch for guidelines is there from the start.
        identity = service.identity_of(service.default_adapter)
        return {"status": "ok", **identity, "guidelines": guidelines is not None}

    @app.get("/readyz", responses={503: DOCUMENTED[503]})
    async def ready() -> dict[str, Any]:
        await service.require_open()
        return await health()

    return app
