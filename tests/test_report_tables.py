from report_run import choice, essay, phrase

from eval.report_tables import (
    domain_rows,
    problem_counts,
    record_counts,
    score_rows,
    type_groups,
)
from eval.scores import score_arm

WHOLE = score_arm([choice(1, "2) 나"), phrase(2, "휴식"), essay(3, "모르겠습니다")])
CHOICE = score_arm([choice(1, "1) 가")])


def test_table_4_has_the_types_in_the_papers_order_and_their_plain_mean_last():
    groups = type_groups({"base": WHOLE}, "ko")
    assert [group.label.en for group in groups] == [
        "multiple choice", "short answer", "descriptive",
        "overall (plain mean of the three types)",
    ]  # fmt: skip
    last = {row.label.en: row.cells[0]["value"] for row in groups[-1].rows}
    assert last["ROUGE-1"] == 2 / 3


def test_only_the_type_that_has_a_score_shows_it():
    rows = [[row.metric for row in group.rows] for group in type_groups({"base": WHOLE}, "ko")]
    rouge = ["rouge_ko_1", "rouge_ko_2", "rouge_ko_L"]
    assert rows == [
        [*rouge, "accuracy"], [*rouge, "exact_match", "char_f1"], rouge, rouge,
    ]  # fmt: skip


def test_an_arm_that_lacks_a_type_has_an_empty_cell_there():
    groups = type_groups({"base": WHOLE, "adapter": CHOICE}, "paper")
    assert [row.metric for row in groups[0].rows][-1] == "accuracy"
    assert [cell["value"] for cell in groups[0].rows[-1].cells] == [1.0, 0.0]
    assert groups[1].rows[0].cells[1] is None
    assert groups[1].rows[0].n == "1"


def test_numbers_of_items_are_given_for_each_arm_where_they_differ():
    rows = {row.metric: row for row in score_rows({"base": WHOLE, "adapter": CHOICE})}
    assert rows["accuracy"].n == "1"
    assert rows["rouge_ko_L"].n == "3 / 1"
    assert "ece" not in rows


def test_a_department_is_there_if_an_arm_has_it():
    assert [row.label.ko for row in domain_rows({"base": CHOICE}, "accuracy")] == ["내과"]


def test_records_are_counted_by_type_and_department_in_every_split():
    ward = {"multiple_choice": 4, "short_answer": 1, "descriptive": 0}
    splits = {
        "train": {"by_domain": {"obgyn": ward, "emergency": ward}},
        "test": {"by_domain": {"obgyn": ward}},
    }
    names, rows = record_counts({"splits": splits})
    assert [name.ko for name in names] == ["학습", "평가"]
    assert {row.label.ko: row.counts for row in rows} == {
        "객관식": [8, 4, 12], "단답형": [2, 1, 3], "산부인과": [5, 5, 10], "응급의학과": [5, 0, 5],
    }  # fmt: skip


def test_problems_are_counted_by_key_most_frequent_first():
    problems = [{"key": "answer"}, {"key": ""}, {"key": ""}]
    assert list(problem_counts(problems).items()) == [("", 2), ("answer", 1)]
