from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from guideline_files import write

from kormed_edge.api_errors import add_error_handlers
from kormed_edge.guidelines import Guidelines
from kormed_edge.guidelines_api import guidelines_router

TEXT = "심정지 환자에게 에피네프린 1 mg을 3~5분마다 정맥 투여한다."


def client(guidelines: Guidelines | None) -> TestClient:
    app = FastAPI()
    app.include_router(guidelines_router(guidelines))
    add_error_handlers(app)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def guidelines(tmp_path: Path) -> Iterator[Guidelines]:
    path = tmp_path / "guidelines.db"
    with Guidelines(path, write=True) as index:
        index.add(write(tmp_path, "소생.txt", TEXT))
    with Guidelines(path) as index:
        yield index


def test_documents_are_told_without_paths(guidelines: Guidelines) -> None:
    body = client(guidelines).get("/v1/guidelines").json()
    [document] = body["documents"]
    added = guidelines.documents()[0].added
    assert body["on"] is True
    assert document == {"name": "소생.txt", "added": added, "passages": 1}


def test_passage_can_be_opened(guidelines: Guidelines) -> None:
    [found] = guidelines.search("심정지에서 에피네프린을 투여하는 간격은?")
    body = client(guidelines).get(f"/v1/guidelines/passages/{found.id}").json()
    assert body == {
        "id": found.id, "document": "소생.txt", "page": None, "heading": "", "text": TEXT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("id", "status"),
    [("99", 404), ("0", 422), ("x", 422), (str(2**63), 422), (str(2**63 - 1), 404)],
)
def test_unknown_passage_is_an_error(id: str, status: int, guidelines: Guidelines) -> None:
    assert client(guidelines).get(f"/v1/guidelines/passages/{id}").status_code == status


def test_without_guidelines_they_are_off() -> None:
    off = client(None)
    assert off.get("/v1/guidelines").json() == {"on": False, "documents": []}
    answer = off.get("/v1/guidelines/passages/1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "guidelines_off")


def test_broken_index_is_unavailable_and_tells_nothing(guidelines: Guidelines) -> None:
    guidelines.path.write_bytes(b"x" * 40_000)
    for path in ("/v1/guidelines", "/v1/guidelines/passages/1"):
        answer = client(guidelines).get(path)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "guidelines_unavailable"
        assert str(guidelines.path) not in answer.text
