import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from serving import ready
from starlette.testclient import TestClient

from kormed_edge.errors import EngineError
from kormed_edge.loading import LoadingApp


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a loading model waits for."""
    event = threading.Event()
    yield event
    event.set()


def finish(app: LoadingApp, gate: threading.Event) -> None:
    gate.set()
    app._thread.join()


def test_while_the_model_loads_it_lives_but_is_not_ready(gate: threading.Event) -> None:
    app = LoadingApp(lambda: ready()() if gate.wait() else FastAPI())
    app.start()
    client = TestClient(app)
    assert app.loading
    assert client.get("/healthz").json() == {"status": "loading"}
    for path in ("/readyz", "/v1/ask"):
        refused = client.get(path)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert refused.json()["error"]["message"] == "the model is loading"
    finish(app, gate)
    assert not app.loading
    assert client.get("/readyz").json() == {"detail": "Not Found"}  # the application's own


def test_draining_that_begins_while_loading_reaches_the_api(gate: threading.Event) -> None:
    app = LoadingApp(lambda: ready()() if gate.wait() else FastAPI())
    app.start()
    app.drain()
    assert "is stopping" in TestClient(app).get("/readyz").text
    finish(app, gate)
    assert app.app is not None
    assert app.app.state.draining


def test_a_model_that_cannot_be_loaded_is_the_service_s_failure() -> None:
    error = EngineError("no such model")

    def load() -> FastAPI:
        raise error

    app = LoadingApp(load)
    app.start()
    app._thread.join()
    assert app.failure is error
