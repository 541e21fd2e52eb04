import json
from pathlib import Path
from typing import Any

import pytest
from acceptance_run import ANSWER, prediction, record
from bundle_run import jsonl

from eval.acceptance import hash_text
from eval.acceptance_items import SealedSet, read_set, read_site_records
from kormed_edge.bundle_evidence import hash_record
from kormed_edge.errors import EvalError
from kormed_edge.records import Record, write_records


def hashed(number: int) -> dict[str, Any]:
    return {
        "qa_id_sha256": hash_text(f"17{number:03}"),
        "record_sha256": hash_record(record(number)),
        "output_sha256": hash_text(ANSWER),
    }


def read(path: Path, rows: list[dict[str, Any]], records: list[Record] | None = None) -> SealedSet:
    path.write_bytes(jsonl(rows))
    return read_set(path, name="test", source="s", open_texts=True, records=records or [])


def test_whole_items_need_no_records(tmp_path: Path) -> None:
    found = read(tmp_path / "set.jsonl", [prediction(1), prediction(2)])
    assert [item.record for item in found.items] == [record(1), record(2)]
    assert (found.total, found.hashed, found.missing) == (2, 0, 0)


def test_hashed_items_are_found_again_in_the_sites_own_records(tmp_path: Path) -> None:
    found = read(tmp_path / "set.jsonl", [hashed(1), hashed(2)], [record(2), record(9)])
    assert [(item.record, item.sealed) for item in found.items] == [(record(2), None)]
    assert (found.total, found.hashed, found.missing) == (2, 2, 1)


def test_a_record_that_differs_by_a_letter_is_another(tmp_path: Path) -> None:
    other = Record(**{**record(1).to_dict(), "answer": "3) 심전도."})
    assert read(tmp_path / "set.jsonl", [hashed(1)], [other]).missing == 1


def test_an_item_that_another_set_asks_counts_once(tmp_path: Path) -> None:
    found = read(tmp_path / "set.jsonl", [prediction(1), prediction(2)])
    assert [item.record for item in found.without([record(1)]).items] == [record(2)]


@pytest.mark.parametrize("text", ["", "[]\n", "{\n", '{"record_sha256": 1}\n'])
def test_a_file_that_is_no_acceptance_set_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(EvalError, match=r"set\.jsonl"):
        read_set(path, name="own-1", source="site", open_texts=False, records=[])


def test_an_answer_that_can_not_be_scored_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="17001: 2 times"):
        read(tmp_path / "set.jsonl", [prediction(1), prediction(1)])


def test_records_are_those_of_kormed_data(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    write_records(path, [record(1)])
    assert read_site_records(path) == [record(1)]
    path.write_text(json.dumps({"id": 1}) + "\n")
    with pytest.raises(EvalError, match=r"test\.jsonl"):
        read_site_records(path)
