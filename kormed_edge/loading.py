"""An API that listens before there is a model to answer with."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kormed_edge.page_api import FILES, page_router
from kormed_edge.refusal import refusal

if TYPE_CHECKING:
    from fastapi import FastAPI

AGAIN_S = 5.0
"""When to ask again while the model loads."""


class LoadingApp:
    """An ASGI application that is the API once `load`, in a thread, has made it; until then, 503.

    The clinician's page is there from the start, and says that the model loads.
    What `load` raises is kept as `failure`.
    """

    def __init__(self, load: "Callable[[], FastAPI]") -> None:
        self.app: FastAPI | None = None
        self.failure: BaseException | None = None
        self.draining = False
        self._load, self._page = load, page_router()
        # A daemon, because nothing can stop llama.cpp while it loads.
        self._thread = threading.Thread(target=self._live, name="kormed-load", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def _live(self) -> None:
        try:
            app = self._load()
        except BaseException as error:
            self.failure = error
        else:
            self.app = app
            app.state.draining = self.draining  # after it can be found, or a signal could be missed

    @property
    def loading(self) -> bool:
        return self._thread.is_alive()

    def drain(self) -> None:
        """Answer what is under way and 503 to all that comes."""
        self.draining = True
        if self.app is not None:
            self.app.state.draining = True

    def close(self) -> None:
        """Free the model."""
        if self.app is not None:
            self.app.state.engine.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app or self._while_loading(scope["path"]))(scope, receive, send)

    def _while_loading(self, path: str) -> ASGIApp:
        if path == "/healthz":
            return JSONResponse({"status": "loading"})
        if path in FILES:
            return self._page
        code = "draining" if self.draining else "loading"
        message = "the service is stopping" if self.draining else "the model is loading"
        return refusal(503, message, type="service_unavailable", code=code, retry_after=AGAIN_S)
