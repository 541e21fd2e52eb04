from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from guideline_files import write

from kormed_edge.api_errors import add_error_handlers
from kormed_edge.errors import PromptTooLongError
from kormed_edge.guidelines import Guidelines, Passage
from kormed_edge.guidelines_api import cite, cited_numbers, guidelines_router

TEXT = "심정지 환자에게 에피네프린 1 mg을 3~5분마다 정맥 투여한다."
SHORT = Passage(3, "소생.pdf", 12, "약물 › 용량", "에피네프린 1 mg [7]")
LONG = Passage(4, "긴.txt", None, "", "가" * 300)


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


def test_passages_are_numbered_with_their_place() -> None:
    text, taken = cite("용량은?", [SHORT], count=len, budget=1000)
    assert taken == [SHORT]
    assert "\n\n[1] (소생.pdf, 12쪽 — 약물 › 용량)\n에피네프린 1 mg (7)\n\n질문:\n용량은?" in text


def test_passage_that_does_not_fit_leaves_its_place_to_the_next() -> None:
    text, taken = cite("용량은?", [LONG, SHORT], count=len, budget=300)
    assert taken == [SHORT]
    assert "[1] (소생.pdf" in text
    assert len(text) <= 300


def test_without_a_passage_the_question_is_as_it_was() -> None:
    def refuse(_text: str) -> int:
        raise PromptTooLongError("too long")

    assert cite("용량은?", [], count=len, budget=0) == ("용량은?", [])
    assert cite("용량은?", [SHORT], count=refuse, budget=1000) == ("용량은?", [])


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("1 mg이다 [2]. 정맥 [1][2].", [2, 1]),
        ("둘 다 [1, 3]", [1, 3]),
        ("지어낸 것 [4] [0] [99]", []),
        ("번호가 없다 (1)", []),
    ],
)
def test_only_numbers_of_passages_count_as_cited(answer: str, numbers: list[int]) -> None:
    assert cited_numbers(answer, 3) == numbers
