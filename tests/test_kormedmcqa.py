import csv
import sys
from types import SimpleNamespace

import pytest
from aihub_tree import OPTIONS, short_row, write_json, write_jsonl

from kormed_edge.errors import DataError
from kormed_edge.records import Record
from train.kormedmcqa import FEWSHOT, HUB_ID, read_kormedmcqa
from train.source import read_source


def exam_row(**changes):
    row = {"subject": "nurse", "question": "지어낸 문항의 답은?", "answer": 3}
    return {**row, **dict(zip("ABCDE", OPTIONS, strict=True)), **changes}


EXPECTED = Record(
    "nurse-1",
    "nurse",
    "multiple_choice",
    "지어낸 문항의 답은?\n1) 가상열\n2) 모의병\n3) 예시증\n4) 가정통\n5) 견본염",
    "3) 예시증",
)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that serves one row for each split of each subject."""

    def load_dataset(hub_id, subject):
        assert hub_id == HUB_ID
        splits = ("train", "dev", "test", "fewshot")
        return {s: [exam_row(subject=subject, question=f"{s} 답은?")] for s in splits}

    module = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_row_becomes_a_record_of_ai_hubs_form(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [exam_row()])
    reading = read_kormedmcqa(str(tmp_path / "a.jsonl"))
    assert (reading.records, reading.origins) == ([EXPECTED], [None])


def test_csv_and_parquet_give_the_same_record(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, exam_row())
        writer.writeheader()
        writer.writerow(exam_row())
    parquet.write_table(pyarrow.Table.from_pylist([exam_row()]), tmp_path / "a.parquet")
    assert read_source(tmp_path / "a.csv").records == [EXPECTED]
    assert read_source(tmp_path / "a.parquet").records == [EXPECTED]


@pytest.mark.parametrize(
    ("changes", "qa_id"),
    [
        ({"row_id": "n_7"}, "n_7"),
        ({"year": 2020, "period": 1, "q_number": 8}, "nurse-2020-1-8"),
        ({"year": 2020}, "nurse-1"),
        ({"year": "", "period": "", "q_number": ""}, "nurse-1"),
    ],
)
def test_the_id_comes_from_what_the_row_has(tmp_path, changes, qa_id):
    write_jsonl(tmp_path / "a.jsonl", [exam_row(**changes)])
    assert read_source(tmp_path / "a.jsonl").records[0].qa_id == qa_id


def test_line_breaks_inside_an_option_become_spaces(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [exam_row(C="예시\u2028증 \n둘")])
    assert read_source(tmp_path / "a.jsonl").records[0].answer == "3) 예시 증 둘"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"subject": "vet"}, "subject: 'vet' is unknown"),
        ({"question": " "}, "question: is empty"),
        ({"D": None}, "D: is missing"),
        ({"E": 5}, "E: is 5, not a string"),
        ({"answer": 6}, "answer: is 6, not one of 1 to 5"),
        ({"answer": "C"}, "answer: is 'C', not one of 1 to 5"),
        ({"answer": True}, "answer: is True, not one of 1 to 5"),
    ],
)
def test_a_bad_row_is_named_or_dropped(tmp_path, changes, problem):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [exam_row(), exam_row(**changes)])
    with pytest.raises(DataError, match=f"a.jsonl:2: {problem}"):
        read_source(path)
    assert len(read_source(path, "drop").records) == 1


def test_a_line_that_is_not_json_is_one_problem(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [exam_row(), 3])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n")
    dropped = read_source(tmp_path / "a.jsonl", "drop").dropped
    assert [str(problem)[:28] for problem in dropped] == [
        "a.jsonl:2: holds a int, not ",
        "a.jsonl:3: not JSON: Expecti",
    ]


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_source(tmp_path / "a.parquet")


@pytest.mark.usefixtures("hub")
def test_the_hub_gives_all_subjects_without_the_fewshot_rows():
    reading = read_source(HUB_ID)
    assert len(reading.records) == 12
    assert reading.origins == ["training", "training", "validation"] * 4
    assert reading.skipped == {FEWSHOT: 4}


def test_a_hub_that_cannot_be_reached_names_the_way_out(hub):
    def load_dataset(*_):
        raise ConnectionError("no network")

    hub.load_dataset = load_dataset
    with pytest.raises(DataError, match=r"cannot be fetched: no network(.|\n)*pass the jsonl"):
        read_source(HUB_ID)


def test_without_the_package_datasets_the_remedy_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'kormed-edge\[train\]'"):
        read_source(HUB_ID)


def test_a_missing_source_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"none does not exist(.|\n)*a folder or zip of AI Hub"):
        read_source(tmp_path / "none")


def test_a_folder_and_a_komedqa_file_go_to_the_aihub_reader(tmp_path):
    write_json(tmp_path / "f" / "a.json", short_row(5))
    write_jsonl(tmp_path / "k.jsonl", [short_row(6)])
    assert read_source(tmp_path / "f").records[0].qa_id == "5"
    assert read_source(str(tmp_path / "k.jsonl")).records[0].qa_id == "6"


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", '{"x": 1}'), ("a.jsonl", ""), ("a.txt", "")]
)
def test_a_file_of_no_known_kind_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="Expected: a folder or zip of AI Hub 71875"):
        read_source(tmp_path / name)
