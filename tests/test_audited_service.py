"""The service and its audit log together."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_rows import KEY
from fastapi.testclient import TestClient
from guideline_files import write
from scripted_model import ANSWER
from serving import kormed_serve
from test_ask_api import SUPPRESSION, Drifting
from test_server import ADAPTERS, ENDPOINTS, Endless, adapted, leave, serve

from kormed_edge.audit import AuditLog
from kormed_edge.audit_api import Audited
from kormed_edge.audit_reader import AuditReader, Row
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineBusyError
from kormed_edge.guidelines import Guidelines

SHA = "ab" * 32
PROMPTS = dict(zip(ENDPOINTS, ("가장 먼저 할 검사는?", "질문", "질문"), strict=True))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db", content_key=KEY)
    yield log
    log.close()


@pytest.fixture(scope="module")
def engine(scripted_gguf: Path) -> Iterator[Engine]:
    with Engine(scripted_gguf, context=512, threads=1) as engine:
        yield engine


def app(engine: Any, log: AuditLog) -> Any:
    return serve(engine, audited=Audited(log, model_sha256=SHA))


def post(engine: Any, log: AuditLog, path: str, **body: Any) -> Any:
    return TestClient(app(engine, log)).post(path, json={**ENDPOINTS[path], **body})


def requests(log: AuditLog) -> list[Row]:
    with AuditReader(log.path, KEY) as reader:
        reader.verify()
        return list(reader.requests())


def refuse(log: AuditLog, event: str) -> None:
    """Have the log refuse rows of an event, as a full disk does."""
    log.connection.execute(
        f"CREATE TEMP TRIGGER full BEFORE INSERT ON main.entries WHEN NEW.event = '{event}' "
        "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    )


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
def test_every_answer_has_its_row(engine: Engine, log: AuditLog, path: str, stream: bool) -> None:
    assert post(engine, log, path, stream=stream).status_code == 200
    [request] = requests(log)
    assert (request["endpoint"], request["finish_reason"]) == (path, "stop")
    assert request["prompt"] == PROMPTS[path]
    assert request["answer"].startswith(ANSWER) is (path != "/v1/completions")
    assert request["prompt_tokens"] > 0
    assert request["parameters"] == {"stream": stream}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_row_names_the_default_adapter(log: AuditLog, path: str) -> None:
    digests = {name: adapter.sha256 for name, adapter in ADAPTERS.items()}
    client = adapted(audited=Audited(log, model_sha256=SHA, adapters=digests))
    for model in (None, "tiny"):
        client.post(path, json={**ENDPOINTS[path], "model": model})
    found = [(row["adapter"], row["adapter_sha256"]) for row in requests(log)]
    assert found == [("v2", "22" * 32), (None, None)]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", [(), ("심",)])
def test_client_that_goes_away_leaves_an_end(
    log: AuditLog, path: str, stream: bool, said: tuple[str, ...]
) -> None:
    body = {**ENDPOINTS[path], "stream": stream}
    asyncio.run(leave(app(Endless(*said), log), path, body))
    [request] = requests(log)
    assert request["finish_reason"] == "cancelled"
    assert request["answer"] in ("", "심")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_refused_request_says_why_in_its_row(log: AuditLog, path: str) -> None:
    assert post(Endless(fault=EngineBusyError("full")), log, path).status_code == 429
    assert [request["finish_reason"] for request in requests(log)] == ["error:queue_full"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("event", ["began", "ended"])
def test_nothing_is_answered_unlogged(
    engine: Engine, log: AuditLog, path: str, stream: bool, event: str
) -> None:
    refuse(log, event)
    answer = post(engine, log, path, stream=stream)
    assert "audit_unavailable" in answer.text
    assert 'finish_reason": "stop' not in answer.text
    assert answer.status_code == (200 if stream and event == "ended" else 503)


def test_personal_number_warns_and_is_masked(engine: Engine, log: AuditLog) -> None:
    body = post(engine, log, "/v1/ask", question="환자 900101-1234567 의 검사는?").json()
    assert "personal_data" in [warning["code"] for warning in body["warnings"]]
    [request] = requests(log)
    assert request["prompt"] == "환자 [주민등록번호] 의 검사는?"
    assert "personal_data" in request["warnings"]
    assert request["request_id"] == body["request_id"]


def test_feedback_finds_the_answer(engine: Engine, log: AuditLog) -> None:
    id = post(engine, log, "/v1/ask").json()["request_id"]
    given = {"request_id": id, "verdict": "틀림", "correction": "1) 심초음파"}
    assert TestClient(app(engine, log)).post("/v1/feedback", json=given).status_code == 201


def test_killed_service_has_logged_what_it_answered(scripted_gguf: Path, tmp_path: Path) -> None:
    options = ("--model", scripted_gguf, "--allow-unverified", "--context", 512, "--threads", 1,
               "--audit", tmp_path / "audit.db", "--audit-retention", 30)  # fmt: skip
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        answer = service.client.post("/v1/ask", json=ENDPOINTS["/v1/ask"])
        service.process.kill()
        service.process.wait()
    with AuditReader(tmp_path / "audit.db") as reader:
        reader.verify()
        [request] = reader.requests()
    assert answer.headers["x-request-id"] == request["request_id"] == answer.json()["request_id"]
    assert request["ended"] is not None
    assert len(request["model_sha256"]) == 64


def test_log_has_the_passages_ids_and_that_an_answer_was_written_anew(
    log: AuditLog, tmp_path: Path
) -> None:
    with Guidelines(tmp_path / "g.db", write=True) as index:
        index.add(write(tmp_path, "소생.txt", "심정지에 에피네프린 1 mg을 준다."))
        settings = {"guidelines": index, "suppression": SUPPRESSION}
        audited = Audited(log, model_sha256=SHA)
        client = TestClient(serve(Drifting("1 mg", "毫克"), audited=audited, **settings))
        body = client.post("/v1/ask", json={"question": "심정지에 주는 에피네프린은?"}).json()
    [request] = requests(log)
    assert request["parameters"] == {"passages": [body["passages"][0]["id"]]}
    assert request["answer"] == body["answer"] == "심전도"
    assert request["warnings"] == ["not_cited", "regenerated"]
