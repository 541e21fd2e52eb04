import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guideline_files import write

from kormed_edge import guidelines as module
from kormed_edge.guideline_documents import DocumentError
from kormed_edge.guideline_terms import find_terms
from kormed_edge.guidelines import Guidelines, Passage, relevance
from kormed_edge.guidelines_file import GuidelinesError

RESUSCITATION = "# 심폐소생술\n\n심정지 환자에게 에피네프린 1 mg을 3~5분마다 정맥 투여한다.\n"
APPENDIX = "# 충수염\n\n급성 충수염의 압통은 맥버니점에서 가장 심하다.\n"
QUESTION = "심정지에서 에피네프린을 투여하는 간격은?"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Guidelines]:
    """Two short documents."""
    with Guidelines(tmp_path / "new" / "guidelines.db", write=True) as guidelines:
        guidelines.add(write(tmp_path, "소생.md", RESUSCITATION))
        guidelines.add(write(tmp_path, "충수.md", APPENDIX))
        yield guidelines


def names(found: list[Passage]) -> list[str]:
    return [passage.document for passage in found]


def test_question_finds_the_passage_that_it_is_about(index: Guidelines) -> None:
    [passage] = index.search(QUESTION)
    assert (passage.document, passage.heading, passage.page) == ("소생.md", "심폐소생술", None)
    assert passage.text.endswith("정맥 투여한다.")
    assert index.search("충수염에서 압통이 심한 곳은?")[0].document == "충수.md"


def test_question_that_no_document_is_about_finds_nothing(index: Guidelines) -> None:
    question = "프랑스 혁명에서 가장 심한 기근은 언제인가?"
    assert index.search(question) == []
    assert names(index.search(question, at_least=0)) == ["충수.md"]


@pytest.mark.parametrize(
    "text",
    ["", "?!", '"', "a OR b", "NEAR(심정지 1)", 'terms: "x" *', "'; DROP", "\x00", "각" * 9999],
)
def test_question_is_never_read_as_syntax(text: str, index: Guidelines) -> None:
    index.search(text, at_least=0)
    assert len(index.documents()) == 2


def test_endings_particles_and_compounds_do_not_matter() -> None:
    [asked, written] = find_terms(["충수염을 수술하였다면?", "충수염은 수술한다"])
    assert {"수술", "충수", "수염"} <= set(asked) & set(written)
    assert not {"을", "은", "면"} & set(asked + written)


def test_relevance_is_the_share_of_the_question_times_its_weight() -> None:
    weights = {"희귀": 1.0, "약": 0.5, "환자": 0.5}
    assert relevance(weights, {"희귀", "환자", "다른"}) == 1.5 * 1.5 / 2
    assert relevance(weights, set()) == 0


def test_unchanged_document_is_skipped_and_a_changed_one_replaced(
    index: Guidelines, tmp_path: Path
) -> None:
    index.remove("충수.md")  # so that the old passage has the highest id
    [old] = index.search(QUESTION)
    path = tmp_path / "소생.md"
    assert index.add(path) == "unchanged"
    write(tmp_path, path.name, RESUSCITATION.replace("1 mg", "10 mg"))
    assert index.add(path) == "replaced"
    [new] = index.search(QUESTION)
    assert "10 mg" in new.text
    assert index.passage(old.id) is None
    assert new.id > old.id
    assert len(index.documents()) == 1


def test_removed_document_is_found_no_more(index: Guidelines) -> None:
    index.remove("소생.md")
    assert names(index.search(QUESTION, at_least=0)) == []
    assert [document.name for document in index.documents()] == ["충수.md"]
    with pytest.raises(GuidelinesError, match=r"소생\.md is not in"):
        index.remove("소생.md")


def test_document_that_fails_half_way_leaves_the_old_one(
    index: Guidelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    path = write(tmp_path, "소생.md", RESUSCITATION * 2)
    monkeypatch.setattr(module, "_insert_words", fail)
    with pytest.raises(GuidelinesError, match="disk is full"):
        index.add(path)
    assert names(index.search(QUESTION)) == ["소생.md"]


def test_document_without_text_leaves_the_old_one(index: Guidelines, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="holds no text"):
        index.add(write(tmp_path, "소생.md", "\n"))
    assert names(index.search(QUESTION)) == ["소생.md"]


def test_name_is_the_same_however_it_is_composed(index: Guidelines, tmp_path: Path) -> None:
    decomposed = write(tmp_path, "\u110e\u116e\u11bc\u1109\u116e.md", APPENDIX + "끝.\n")
    assert index.add(decomposed) == "replaced"


def test_file_is_private_and_a_reader_cannot_write(index: Guidelines, tmp_path: Path) -> None:
    assert stat.S_IMODE(index.path.stat().st_mode) == 0o600
    with Guidelines(index.path) as reader, pytest.raises(GuidelinesError, match="readonly"):
        reader.add(write(tmp_path, "new.txt", "새 지침"))


def test_reader_sees_what_is_added_beside_it(index: Guidelines, tmp_path: Path) -> None:
    with Guidelines(index.path) as reader:
        index.add(write(tmp_path, "천식.txt", "천식 발작에는 살부타몰을 흡입한다."))
        assert names(reader.search("천식 발작에 흡입하는 약은?")) == ["천식.txt"]


def test_many_threads_may_search(index: Guidelines) -> None:
    with Guidelines(index.path) as reader, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.search, [QUESTION] * 40))
    assert found == [found[0]] * 40
    assert names(found[0]) == ["소생.md"]


def test_index_of_another_analysis_is_refused_until_it_is_cut_anew(
    index: Guidelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.close()
    monkeypatch.setattr(module, "analysis", lambda: "terms 2")
    monkeypatch.setattr(module, "find_terms", lambda texts: [["같은"] for _ in texts])
    with pytest.raises(GuidelinesError, match="kormed guidelines reindex"):
        Guidelines(index.path)
    Guidelines(index.path, write=True).close()
    with Guidelines(index.path) as reader:
        assert len(reader.search("?", at_least=0)) == 2


def test_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuidelinesError, match="does not exist"):
        Guidelines(tmp_path / "none.db")
    with pytest.raises(GuidelinesError, match="not a database"):
        Guidelines(write(tmp_path, "text.db", "x" * 999))
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE other (x)")
    other.close()
    for writing in (False, True):
        with pytest.raises(GuidelinesError, match="no index of guidelines"):
            Guidelines(tmp_path / "other.db", write=writing)
