import json

from kormed_edge.records import Record, format_question
from train.reading import Problem, Reading
from train.splits import Overlap, Splits
from train.stats import describe, draw_distribution

QUESTION = format_question("답은?", ["가", "나", "다"])
TRAIN = [
    Record("1", "obgyn", "multiple_choice", QUESTION, "2) 나"),
    Record("2", "internal_medicine", "multiple_choice", QUESTION, "2) 나"),
    *(Record(str(n), "obgyn", "short_answer", "가" * n, "답") for n in range(3, 23)),
]
TEST = [Record("30", "obgyn", "multiple_choice", QUESTION, "3) 다")]
READING = Reading(
    dropped=[Problem("a.json", "answer", "is empty")],
    repaired=[Problem("b.json", "answer", "option number added")],
    skipped={"source text files": 8},
)


def stats():
    overlap = [Overlap("exact", 1.0, "train", "1", "test", "30")]
    return describe(Splits(TRAIN, [], TEST), READING, overlap)


def test_counts_are_by_split_department_and_type():
    assert stats()["records"] == 23
    assert stats()["splits"]["train"] == {
        "records": 22,
        "by_domain": {
            "internal_medicine": {"multiple_choice": 1, "short_answer": 0, "descriptive": 0},
            "obgyn": {"multiple_choice": 1, "short_answer": 20, "descriptive": 0},
        },
    }
    assert stats()["splits"]["valid"] == {"records": 0, "by_domain": {}}


def test_lengths_are_median_95th_percentile_and_longest():
    lengths = stats()["lengths"]
    assert list(lengths) == ["multiple_choice", "short_answer"]
    assert lengths["short_answer"]["question"] == {"median": 12.5, "p95": 21, "max": 22}


def test_positions_of_right_answers_are_counted():
    assert stats()["options"]["train"] == {"per_question": {"3": 2}, "answer_position": {"2": 2}}
    assert stats()["options"]["test"]["answer_position"] == {"3": 1}


def test_what_was_dropped_repaired_skipped_and_shared_is_listed():
    found = json.loads(json.dumps(stats()))
    assert found["dropped"] == [{"file": "a.json", "key": "answer", "what": "is empty"}]
    assert found["repaired"][0]["what"] == "option number added"
    assert found["skipped"] == {"source text files": 8}
    assert found["overlap"][0]["second_id"] == "30"


def test_the_figure_is_a_png_and_the_same_every_time(tmp_path):
    # A missing glyph is a warning, and warnings are errors.
    for name in ("a.png", "b.png"):
        draw_distribution(stats(), tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"Software" not in first
    assert first == (tmp_path / "b.png").read_bytes()
