from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.predictions import (
    Prediction,
    append_predictions,
    collect,
    file_name,
    make_prediction,
    rank_file,
    read_predictions,
    remaining,
)
from kormed_edge.errors import EvalError
from kormed_edge.records import Record

RECORDS = [Record(f"q{i}", "obgyn", "short_answer", f"용어 {i}은?", "모의병") for i in range(4)]


def predictions(records: list[Record], output: str = "모의병") -> Iterator[Prediction]:
    return (make_prediction(record, output, "stop", 3, 0.12345678) for record in records)


def ids(records: list[Record]) -> list[str]:
    return [record.qa_id for record in records]


def test_an_arm_s_file_has_a_portable_name() -> None:
    assert file_name("gguf:Q4_K_M") == "gguf-Q4_K_M.jsonl"
    assert file_name("adapter") == "adapter.jsonl"


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    assert list(append_predictions(path, predictions(RECORDS[:1]))) == [1]
    assert list(append_predictions(path, predictions(RECORDS[1:3]))) == [1, 2]
    assert read_predictions(path) == list(predictions(RECORDS[:3]))
    assert read_predictions(path)[0] == {
        "qa_id": "q0", "domain": "obgyn", "q_type": "short_answer", "question": "용어 0은?",
        "answer": "모의병", "output": "모의병", "finish_reason": "stop", "n_tokens": 3,
        "seconds": 0.1235,
    }  # fmt: skip


def test_every_line_is_on_disk_before_the_next_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    for count in append_predictions(path, predictions(RECORDS)):
        assert len(read_predictions(path)) == count


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_by_a_kill_is_answered_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    list(append_predictions(path, predictions(RECORDS[:3])))
    path.write_bytes(path.read_bytes()[:-cut])
    assert ids(remaining(path, RECORDS)) == ["q2", "q3"]
    list(append_predictions(path, predictions(RECORDS[2:])))
    assert read_predictions(path) == list(predictions(RECORDS))


def test_a_file_of_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    path.write_bytes('{"qa_id": "가'.encode()[:-1])
    assert ids(remaining(path, RECORDS)) == ids(RECORDS)
    assert path.read_bytes() == b""


def test_no_file_means_that_nothing_is_answered(tmp_path: Path) -> None:
    assert read_predictions(tmp_path / "none.jsonl") == []
    assert remaining(tmp_path / "none.jsonl", RECORDS) == RECORDS


@pytest.mark.parametrize("odd", ["앞\u2028뒤", "앞\u0085뒤", "앞\r\n뒤", "\x1c", '"\\'])
def test_odd_characters_survive(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    list(append_predictions(path, predictions(RECORDS, odd)))
    assert remaining(path, RECORDS) == []
    assert [p["output"] for p in read_predictions(path)] == [odd] * 4


@pytest.mark.parametrize("line", [b"{broken}\n", b'{"output": "\xff"}\n'])
def test_a_damaged_line_is_an_error_with_the_file_s_name(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    path.write_bytes(line)
    with pytest.raises(EvalError, match=r"base\.jsonl"):
        read_predictions(path)


def append(path: Path, records: list[Record], output: str = "모의병") -> None:
    list(append_predictions(path, predictions(records, output)))


def test_what_ranks_wrote_becomes_one_file_in_the_records_order(tmp_path: Path) -> None:
    path = tmp_path / "gguf-Q4_K_M.jsonl"
    assert rank_file(path, 1).name == "gguf-Q4_K_M.rank1.jsonl"
    append(path, RECORDS[3:])
    append(rank_file(path, 0), RECORDS[2:3])
    append(rank_file(path, 1), RECORDS[:2][::-1])
    append(tmp_path / "gguf-Q8_0.rank0.jsonl", RECORDS[:1], "다른 모델")
    collect(path, RECORDS)
    assert read_predictions(path) == list(predictions(RECORDS))
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "gguf-Q8_0.rank0.jsonl"]


def test_ranks_that_a_kill_stopped_lose_their_cut_line_only(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    for rank, mine in enumerate((RECORDS[:2], RECORDS[2:])):
        append(rank_file(path, rank), mine)
        rank_file(path, rank).write_bytes(rank_file(path, rank).read_bytes()[:-9])
    collect(path, RECORDS)
    assert ids(remaining(path, RECORDS)) == ["q1", "q3"]


def test_collecting_that_a_kill_stopped_keeps_every_item_once(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    append(path, RECORDS)
    append(rank_file(path, 1), RECORDS[1:3])
    (tmp_path / "base.jsonl.tmp").write_text("half a li")
    collect(path, RECORDS)
    assert read_predictions(path) == list(predictions(RECORDS))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_prediction_of_no_record_is_kept_at_the_end(tmp_path: Path) -> None:
    append(tmp_path / "base.jsonl", RECORDS)
    collect(tmp_path / "base.jsonl", RECORDS[2:])
    found = [p["qa_id"] for p in read_predictions(tmp_path / "base.jsonl")]
    assert found == ["q2", "q3", "q0", "q1"]
