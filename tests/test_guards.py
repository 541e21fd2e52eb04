import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from kormed_edge.api_keys import hash_key
from kormed_edge.guards import Faults, Guards, guarded
from kormed_edge.metrics import Metrics

KEYS = {"ward": hash_key("secret")}
KEY = {"Authorization": "Bearer secret"}
PATIENT = "홍길동 환자의 질문"


def behind(guards: Guards, metrics: Metrics | None = None) -> TestClient:
    """An API of two paths behind what guards a service."""
    app = FastAPI()

    @app.get("/readyz")
    @app.post("/v1/ask")
    def ask() -> str:
        return "answer"

    return TestClient(guarded(app, guards, metrics or Metrics()))


def test_keys_come_before_everything_but_health_and_cors() -> None:
    metrics = Metrics()
    client = behind(Guards(keys=KEYS, rate=1, max_body=4), metrics)
    assert client.post("/v1/ask", content="12345").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/ask", content="12345", headers=KEY).status_code == 413
    assert client.post("/v1/ask", headers=KEY).status_code == 429
    text = client.get("/metrics", headers=KEY).text
    for reason, count in (("key", 2), ("size", 1), ("rate", 1)):
        assert f'kormed_rejects_total{{reason="{reason}"}} {count}.0' in text


def test_no_origin_may_ask_unless_named() -> None:
    asks = {"Origin": "https://ward.example", "Access-Control-Request-Method": "POST"}
    silent = behind(Guards()).options("/v1/ask", headers=asks)
    assert not [name for name in silent.headers if name.startswith("access-control")]
    named = behind(Guards(keys=KEYS, origins=("https://ward.example",)))
    assert named.options("/v1/ask", headers=asks).status_code == 200
    answer = named.post("/v1/ask", headers={**KEY, "Origin": "https://ward.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://ward.example"
    other = named.options("/v1/ask", headers={**asks, "Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


async def fail(*_: Any) -> None:
    raise ValueError(PATIENT)


def test_a_fault_is_logged_by_its_place_and_not_by_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = TestClient(Faults(fail)).get("/")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "ValueError in" in caplog.text
    assert "test_guards.py, line" in caplog.text
    assert PATIENT not in caplog.text + answer.text


async def never(*_: Any) -> None:
    raise asyncio.CancelledError


def test_a_request_that_is_cancelled_at_the_end_of_draining_is_told_so() -> None:
    answer = TestClient(Faults(never)).get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
