from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from guideline_files import write

from kormed_edge.cli import main
from kormed_edge.guidelines import Guidelines
from kormed_edge.guidelines_file import default_path

TEXT = "심정지 환자에게 에피네프린 1 mg을 3~5분마다 정맥 투여한다."
QUESTION = "심정지에서 에피네프린을 투여하는 간격은?"


def guidelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["guidelines", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, "소생.txt", TEXT)


def test_added_document_is_listed_found_and_removed(file: Path, own_home: Path) -> None:
    assert guidelines("add", file).stdout == "added 소생.txt\n"
    assert default_path() == own_home / "guidelines.db"
    assert guidelines("add", file).stdout == "unchanged 소생.txt\n"
    assert guidelines("list").stdout.startswith("소생.txt  1  ")
    assert f"[1] 소생.txt (6.26)\n{TEXT}\n" in guidelines("search", QUESTION).stdout
    assert guidelines("remove", "소생.txt").stdout == "removed 소생.txt\n"
    assert guidelines("list").stdout == ""


def test_one_bad_file_loses_no_other(file: Path, tmp_path: Path) -> None:
    bad = write(tmp_path, "bad.pdf", "no PDF")
    last = write(tmp_path, "last.txt", TEXT)
    result = guidelines("add", file, bad, last)
    assert result.exit_code == 1
    assert result.stdout == "added 소생.txt\nadded last.txt\n"
    assert "refused: bad.pdf is damaged" in result.stderr
    assert "2 added, 1 refused" in result.stderr


def test_nothing_relevant_is_said(file: Path) -> None:
    guidelines("add", file)
    result = guidelines("search", "대한민국의 수도는?")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing relevant was found" in result.stderr


def test_two_files_of_one_name_are_refused_before_any_is_added(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    result = guidelines("add", file, write(tmp_path / "other", file.name, TEXT))
    assert result.exit_code == 2
    assert "2 files are named 소생.txt" in result.stderr
    assert not default_path().exists()


@pytest.mark.parametrize("words", [("list",), ("search", "x"), ("remove", "x"), ("reindex",)])
def test_missing_index_is_named_with_its_remedy(words: tuple[str, ...], tmp_path: Path) -> None:
    result = guidelines(*words, "--index", tmp_path / "none.db")
    assert result.exit_code == 1
    assert "none.db does not exist" in result.stderr
    assert "kormed guidelines add FILES" in result.stderr
    assert not (tmp_path / "none.db").exists()


def test_reindex_needs_no_files(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "g.db"
    guidelines("add", file, "--index", index)
    file.unlink()
    monkeypatch.setattr("kormed_edge.guidelines.analysis", lambda: "terms 2")
    assert guidelines("search", QUESTION, "--index", index).exit_code == 1
    assert guidelines("reindex", "--index", index).stdout == "1 documents\n"
    with Guidelines(index) as reader:
        assert len(reader.search(QUESTION)) == 1
