import json
from typing import Any, ClassVar

import pytest

from eval.report_words import HINTS, LABELS
from eval.scores import correct_option, find_problems, score_arm, score_item
from kormed_edge.errors import EvalError

QUESTION = "가장 적절한 검사는?\n1) 심전도\n2) 흉부 엑스선\n3) 초음파\n4) 뇌파\n5) 내시경"


def prediction(qa_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "qa_id": qa_id,
        "domain": "emergency",
        "q_type": "multiple_choice",
        "question": QUESTION,
        "answer": "3) 초음파",
        "output": "3) 초음파",
        "finish_reason": "stop",
        "n_tokens": 5,
        "seconds": 0.1,
    }
    return row | changes


def short(qa_id: str, **changes: Any) -> dict[str, Any]:
    row = {"q_type": "short_answer", "question": "병명은?", "answer": "천식", "output": "천식이다"}
    return prediction(qa_id, **(row | changes))


def descriptive(qa_id: str, **changes: Any) -> dict[str, Any]:
    text = "기관지가 수축한다."
    row = {"q_type": "descriptive", "question": "설명하시오.", "answer": text, "output": text}
    return prediction(qa_id, **(row | changes))


def test_multiple_choice_item() -> None:
    item = score_item(prediction("a", output="정답은 3번입니다"))
    assert (item.option, item.reason) == (3, "stated")
    assert item.values["accuracy"] is True
    assert item.values["accuracy_strict"] is False
    assert item.values["unread"] is False
    assert "exact_match" not in item.values


def test_unread_is_wrong_and_counted() -> None:
    item = score_item(prediction("a", output="2번 또는 3번"))
    assert (item.option, item.values["accuracy"], item.values["unread"]) == (None, False, True)


def test_short_answer_item() -> None:
    values = score_item(short("a")).values
    assert (values["exact_match"], values["char_f1"]) == (True, 1.0)
    assert "accuracy" not in values


def test_the_papers_rouge_stands_beside_the_one_to_trust() -> None:
    values = score_item(prediction("a", output="3) 뇌파")).values
    assert values["rouge_paper_L"] == 1 > values["rouge_ko_L"]


def test_cut_answer_with_chinese() -> None:
    values = score_item(descriptive("a", output="支气管", finish_reason="length")).values
    assert (values["han_leak"], values["missing_end"], values["length"]) == (True, True, 3.0)


def test_correct_option_comes_from_the_reference() -> None:
    assert correct_option(prediction("a", answer="5) 내시경")) == 5
    assert correct_option(prediction("a", answer="6) 없음")) is None


ARM = [
    prediction("a"),
    prediction("b", output="2) 흉부 엑스선", domain="obgyn"),
    prediction("c", output="3"),
    short("d"),
    descriptive("e"),
]


def test_arm_has_n_and_an_interval_beside_every_value() -> None:
    scores = score_arm(ARM)
    accuracy = scores["overall"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (2 / 3, 3)
    assert 0 < accuracy["low"] < 2 / 3 < accuracy["high"] < 1
    assert scores["overall"]["rouge_ko_L"]["n"] == scores["n"] == 5
    json.dumps(scores, allow_nan=False)


def test_groups_hold_only_what_they_have() -> None:
    scores = score_arm(ARM)
    assert set(scores["by_q_type"]) == {"multiple_choice", "short_answer", "descriptive"}
    assert "accuracy" not in scores["by_q_type"]["descriptive"]
    assert scores["by_domain"]["obgyn"]["accuracy"]["value"] == 0
    assert "exact_match" not in scores["by_domain"]["obgyn"]
    assert "pediatrics" not in scores["by_domain"]
    both = scores["by_domain_and_q_type"]["obgyn"]
    assert both["multiple_choice"]["accuracy"] == scores["by_domain"]["obgyn"]["accuracy"]


def test_type_mean_weighs_the_three_types_alike() -> None:
    arm = [*ARM, descriptive("f", output="모른다")]
    scores = score_arm(arm)
    types = [group["rouge_char_L"]["value"] for group in scores["by_q_type"].values()]
    mean = scores["type_mean"]["rouge_char_L"]
    assert mean["value"] == pytest.approx(sum(types) / 3)
    assert (mean["n"], mean["low"] <= mean["value"] <= mean["high"]) == (6, True)
    assert "accuracy" not in scores["type_mean"]


def test_type_mean_needs_all_three_types() -> None:
    assert score_arm(ARM[:4])["type_mean"] == {}


def test_readings_say_how_answers_were_given() -> None:
    assert score_arm(ARM)["readings"] == {"leading_number": 3}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "no predictions"),
        (None, "not a list of predictions"),
        ("text", "not a list of predictions"),
        ([None], "line 1:  Input should be"),
        ([prediction("a"), prediction("a")], "a: 2 times"),
        ([prediction("a", output=None)], "line 1: output"),
        ([prediction("a", finish_reason="error")], "line 1: finish_reason"),
        ([prediction("a", q_type="객관식")], "line 1: q_type"),
        ([prediction("a", seconds=float("nan"))], "line 1: seconds"),
        ([prediction("a", answer="초음파")], "a: the reference answer names none"),
        ([prediction("a", answer=" ")], "line 1: answer"),
        ([prediction("a", output=" ")], "every output is empty"),
        ([{"qa_id": "a"}], "line 1: domain Field required"),
    ],
)
def test_problems_are_named(rows: Any, problem: str) -> None:
    assert find_problems(rows)[0].startswith(problem)


def test_only_the_first_problems_are_listed() -> None:
    problems = find_problems([{}] * 1000)
    assert (len(problems), problems[-1]) == (6, "and 995 more")


def test_bad_predictions_raise_a_kormed_error() -> None:
    with pytest.raises(EvalError, match="a: 2 times"):
        score_arm([prediction("a"), prediction("a")])


BELIEVED = [0.1, 0.2, 0.5, 0.1, 0.1]


def test_option_that_the_model_prefers_needs_no_reader() -> None:
    values = score_item(prediction("a", output="모르겠다", option_probabilities=BELIEVED)).values
    assert (values["accuracy"], values["accuracy_likelihood"]) == (False, True)
    assert values["brier"] == pytest.approx(0.01 + 0.04 + 0.25 + 0.01 + 0.01)
    assert "accuracy_likelihood" not in score_item(prediction("a")).values


def test_calibration_is_scored_where_probabilities_are() -> None:
    rows = [prediction(f"q{i}", option_probabilities=BELIEVED) for i in range(4)]
    scores = score_arm([*rows, short("s")])
    assert scores["overall"]["ece"]["value"] == pytest.approx(0.5)
    assert scores["overall"]["ece"]["n"] == 4
    assert [bin["n"] for bin in scores["reliability"]] == [4]
    assert score_arm([short("s")])["reliability"] == []


def test_probabilities_of_another_question_are_refused() -> None:
    [problem] = find_problems([prediction("a", option_probabilities=[0.5, 0.5])])
    assert problem == "a: 2 option probabilities"


class Encoder:
    """Stands in for a BertScorer: every descriptive answer means half of what it should."""

    versions: ClassVar = {"bertscore": "1", "encoder_sha256": "0" * 64}

    def by_id(self, rows: Any) -> dict[str, dict[str, float]]:
        return {p["qa_id"]: {"bertscore_f1": 0.5} for p in rows if p["q_type"] == "descriptive"}


def test_bertscore_is_of_descriptive_answers_and_says_by_which_encoder() -> None:
    encoder: Any = Encoder()
    scores = score_arm(ARM, encoder)
    assert scores["overall"]["bertscore_f1"]["value"] == 0.5
    assert scores["overall"]["bertscore_f1"]["n"] == 1
    assert "bertscore_f1" not in scores["by_q_type"]["short_answer"]
    assert scores["bertscore_versions"] == Encoder.versions


def test_without_an_encoder_there_is_no_bertscore() -> None:
    scores = score_arm(ARM)
    assert "bertscore_f1" not in scores["overall"]
    assert "bertscore_versions" not in scores


def test_report_has_words_for_bertscore() -> None:
    assert {"bertscore_f1"} <= LABELS.keys() & HINTS.keys()
