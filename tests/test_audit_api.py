import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audit_rows import KEY, QUESTION
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.testclient import TestClient

from kormed_edge.api_errors import ApiError, add_error_handlers
from kormed_edge.api_keys import SCOPE_KEY, RequireKey, hash_key
from kormed_edge.audit import AuditLog
from kormed_edge.audit_api import (
    Audited,
    Handle,
    RequestIds,
    feedback_router,
    parameters_of,
    prompt_of,
)
from kormed_edge.audit_reader import AuditReader, Row
from kormed_edge.errors import EngineBusyError
from kormed_edge.openai_requests import ChatRequest
from kormed_edge.request import Piece


class Speech:
    prompt_tokens, completion_tokens = 40, 3


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db", content_key=KEY)
    yield log
    log.close()


def full(log: AuditLog) -> None:
    """Leave the file no room."""
    log.connection.execute("CREATE TEMP TRIGGER full BEFORE INSERT ON main.entries "
                           "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END")  # fmt: skip


def http(path: str = "/v1/ask", **scope: Any) -> HttpRequest:
    given = {"type": "http", "path": path, "headers": [], "query_string": b"", "method": "POST"}
    return HttpRequest({**given, "server": ("h", 80), "scheme": "http", "root_path": "", **scope})


def requests(log: AuditLog) -> list[Row]:
    with AuditReader(log.path, KEY) as reader:
        reader.verify()
        return list(reader.requests())


async def begin(log: AuditLog | None, *, judged: bool = False) -> Handle:
    audited = Audited(log, model_sha256="ab" * 32, adapters={"v2": "cd" * 32})
    asked = http(**{SCOPE_KEY: "ward-3"})
    return await audited.begin(asked, QUESTION, parameters={"seed": 1}, adapter="v2", judged=judged)


def test_answer_is_in_the_log_before_its_last_piece_is_sent(
    log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer() -> Handle:
        handle = await begin(log)
        assert [request["ended"] for request in requests(log)] == [None]
        await handle.heard(Piece("2) "), Speech())
        await handle.heard(Piece("심전도", "stop"), Speech())
        return handle

    handle = asyncio.run(answer())
    [request] = requests(log)
    handle.close()
    assert caplog.text == ""  # it tried to write no second end
    assert request["request_id"] == handle.request_id
    assert (request["endpoint"], request["principal"]) == ("/v1/ask", "ward-3")
    assert (request["adapter"], request["adapter_sha256"]) == ("v2", "cd" * 32)
    assert (request["prompt"], request["answer"]) == (QUESTION, "2) 심전도")
    assert (request["prompt_tokens"], request["completion_tokens"]) == (40, 3)
    assert (request["finish_reason"], request["parameters"]) == ("stop", {"seed": 1})
    assert 0 <= request["seconds_to_first"] <= request["seconds"]


def test_judged_answer_ends_with_its_verdict(log: AuditLog) -> None:
    async def answer() -> None:
        handle = await begin(log, judged=True)
        await handle.heard(Piece("2) 심전도", "stop"), Speech())
        assert requests(log)[0]["ended"] is None
        await handle.end(option=2, confidence=0.5, warnings=["han_leak"])
        handle.close()

    asyncio.run(answer())
    [request] = requests(log)
    assert (request["option"], request["confidence"]) == (2, 0.5)
    assert request["warnings"] == ["han_leak"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (ApiError(499, "the client went away"), "cancelled"),
        (EngineBusyError("full"), "error:queue_full"),
        (KeyError("secret"), "error:500"),
    ],
)
def test_request_without_an_end_gets_one_when_it_is_closed(
    log: AuditLog, error: BaseException | None, reason: str
) -> None:
    async def leave() -> None:
        with closing(await begin(log)) as handle:
            await handle.heard(Piece("2)"), Speech())
            if error:
                handle.failed(error)

    asyncio.run(leave())
    [request] = requests(log)
    assert request["finish_reason"] == reason
    assert request["answer"] == "2)"


def test_nothing_begins_unlogged(log: AuditLog) -> None:
    full(log)
    with pytest.raises(ApiError) as refused:
        asyncio.run(begin(log))
    assert refused.value.status == 503
    assert refused.value.body["error"]["code"] == "audit_unavailable"
    assert refused.value.headers == {"Retry-After": "5"}


def test_nothing_ends_unlogged(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> None:
        cut, left = await begin(log), await begin(log)
        full(log)
        with pytest.raises(ApiError, match="nothing is answered without it"):
            await cut.heard(Piece("2) 심전도", "stop"), Speech())
        left.close()
        assert f"the end of request {left.request_id} is not in the audit log" in caplog.text

    asyncio.run(answer())


def test_service_without_a_log_has_ids_all_the_same() -> None:
    async def answer() -> str:
        handle = await begin(None)
        await handle.heard(Piece("", "stop"), Speech())
        handle.close()
        return handle.request_id

    assert len(asyncio.run(answer())) == 32


def test_parameters_hold_no_text() -> None:
    body = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "비밀"}], "stop": "비밀", "temperature": 0.5,
         "seed": 3, "model": "비밀", "max_tokens": 9, "stream": True,
         "response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "비밀"}}}}
    )  # fmt: skip
    assert parameters_of(body) == {"temperature": 0.5, "seed": 3, "max_tokens": 9, "stream": True}


def test_prompt_is_the_question_where_there_is_only_one() -> None:
    question, system = ({"role": role, "content": "왜?"} for role in ("user", "system"))
    assert prompt_of([question]) == "왜?"
    assert prompt_of([system]) == [system]
    assert prompt_of([system, question]) == [system, question]


@pytest.fixture
def client(log: AuditLog) -> TestClient:
    """A service with a key that answers /v1/ask with its request's id."""
    audited = Audited(log, model_sha256="ab" * 32)
    return client_of(audited)


def client_of(audited: Audited) -> TestClient:
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(feedback_router(audited))

    @app.post("/v1/ask")
    async def ask(http: HttpRequest) -> str:
        with closing(await audited.begin(http, QUESTION, parameters={})) as handle:
            await handle.heard(Piece("2) 심전도", "stop"), Speech())
        return handle.request_id

    guarded = RequestIds(RequireKey(app, {"ward-3": hash_key("k")}))
    return TestClient(guarded, headers={"Authorization": "Bearer k"})


def test_id_is_in_the_header_of_every_answer(client: TestClient) -> None:
    asked = client.post("/v1/ask")
    assert asked.headers["x-request-id"] == asked.json()
    ids = {client.get(path).headers["x-request-id"] for path in ("/v1/no", "/v1/no", "/v1/ask")}
    assert len(ids) == 3


@pytest.mark.parametrize("verdict", ["위험", "dangerous"])
def test_feedback_is_stored_under_its_key(client: TestClient, log: AuditLog, verdict: str) -> None:
    given = {"request_id": client.post("/v1/ask").json(), "verdict": verdict, "comment": "왜"}
    answer = client.post("/v1/feedback", json=given)
    assert (answer.status_code, answer.json()) == (201, {"id": 1})
    with AuditReader(log.path, KEY) as reader:
        [row] = reader.feedback()
    assert (row["principal"], row["verdict"], row["comment"]) == ("ward-3", "dangerous", "왜")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"request_id": "0" * 32}, 404, "request_not_found"),
        ({"request_id": "x"}, 422, None),
        ({"verdict": "good"}, 422, None),
        ({"comment": "가" * 4001}, 422, None),
        ({"verdict": "맞음", "correction": "1)"}, 400, "feedback_refused"),
    ],
)
def test_wrong_feedback_is_refused(
    client: TestClient, changes: dict[str, str], status: int, code: str | None
) -> None:
    given = {"request_id": client.post("/v1/ask").json(), "verdict": "틀림", **changes}
    answer = client.post("/v1/feedback", json=given)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_feedback_is_not_taken_without_a_log() -> None:
    given = {"request_id": "0" * 32, "verdict": "틀림"}
    answer = client_of(Audited(None, model_sha256="")).post("/v1/feedback", json=given)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "audit_off")
