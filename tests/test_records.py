import pytest

from kormed_edge.errors import StageError
from kormed_edge.records import (
    Record,
    format_question,
    read_records,
    split_options,
    write_records,
)

FIVE = ["가", "나", "다", "라", "마"]


@pytest.mark.parametrize("separator", ["\n", " \n", "  \n", "\r\n"])
def test_options_are_split_at_any_of_ai_hubs_separators(separator):
    question = separator.join(["답은?", "1) 가", "2)나", " 3) 다 ", "4) 라", "5) 마"])
    assert split_options(question) == ("답은?", FIVE)


def test_a_stem_keeps_its_own_list_bullets_and_decimals():
    stem = "소견:\n1) 발열\n2) 기침\n- 크레아티닌\n1.5) 는 수치이다. 답은?"
    assert split_options(format_question(stem, FIVE)) == (stem, FIVE)


def test_an_option_may_run_over_several_lines():
    assert split_options("답은?\n1) 가\n  이어서\n2) 나") == ("답은?", ["가 이어서", "나"])


@pytest.mark.parametrize(
    "question", ["설명하시오.", "답은?\n1) 가", "답은?\n2) 나\n3) 다", "답은? 1) 가 2) 나", ""]
)
def test_a_question_without_options_is_all_stem(question):
    assert split_options(question) == (question, [])


def test_options_with_a_gap_are_no_options():
    assert split_options("답은?\n1) 가\n2) 나\n4) 라\n5) 마")[1] == []


def test_a_record_becomes_the_keys_of_a_split_file():
    keys = ["qa_id", "domain", "q_type", "question", "answer"]
    assert list(Record("1", "obgyn", "short_answer", "q", "a").to_dict()) == keys


def test_records_come_back_as_they_were_written(tmp_path):
    records = [Record(str(n), "obgyn", "short_answer", "줄\u2028바꿈\n?", "\x85답") for n in (1, 2)]
    write_records(tmp_path / "a.jsonl", records)
    assert read_records(tmp_path / "a.jsonl") == records


def test_no_records_come_back_as_none(tmp_path):
    write_records(tmp_path / "a.jsonl", [])
    assert read_records(tmp_path / "a.jsonl") == []


def test_a_missing_split_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(StageError, match="make data"):
        read_records(tmp_path / "a.jsonl")


def test_long_gap_in_an_option_is_searched_once():
    """A pattern that tries every end of a gap would take its square: hours here."""
    gap = "가" + " " * 1_000_000 + "나"
    assert split_options(f"어느 것인가?\n1) {gap}\n2) 다 ") == ("어느 것인가?", [gap, "다"])
