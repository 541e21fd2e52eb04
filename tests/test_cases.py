import json
from typing import Any

import pytest

from eval.cases import largest_changes
from eval.predictions import Prediction, make_prediction
from kormed_edge.errors import EvalError
from kormed_edge.records import Record

WHOLE = "수분을 충분히 섭취하고 안정을 취한다."
HALF = "수분을 충분히 섭취하고 검사를 받는다."
NONE = "모르겠습니다."


def essay(qa_id: str, output: str) -> Prediction:
    record = Record(qa_id, "pediatrics", "descriptive", "지어낸 질문은?", WHOLE)
    return make_prediction(record, output, "stop", 3, 0.1)


def choice(qa_id: str, output: str) -> Prediction:
    question = "지어낸 질문은?\n1) 가상병\n2) 모의병"
    record = Record(qa_id, "emergency", "multiple_choice", question, "2) 모의병")
    return make_prediction(record, output, "stop", 3, 0.1)


def ids(cases: list[Any]) -> list[str]:
    return [case["qa_id"] for case in cases]


def test_case_shows_both_arms_side_by_side() -> None:
    cases = largest_changes([essay("q1", NONE)], [essay("q1", WHOLE)])
    assert cases == {
        "metric": "rouge_ko_L",
        "n": 1,
        "gains": [
            {
                "qa_id": "q1", "domain": "pediatrics", "q_type": "descriptive",
                "question": "지어낸 질문은?", "answer": WHOLE, "reference_output": NONE,
                "candidate_output": WHOLE, "reference_value": 0.0, "candidate_value": 1.0,
                "change": 1.0, "flip": 0,
            }
        ],
        "losses": [],
    }  # fmt: skip
    assert json.loads(json.dumps(cases)) == cases


def test_largest_change_is_first_and_no_more_than_k_are_shown() -> None:
    reference = [essay("a", WHOLE), essay("b", WHOLE), essay("c", NONE), essay("d", NONE)]
    candidate = [essay("a", HALF), essay("b", NONE), essay("c", HALF), essay("d", WHOLE)]
    cases = largest_changes(reference, candidate)
    assert (ids(cases["gains"]), ids(cases["losses"])) == (["d", "c"], ["b", "a"])
    cases = largest_changes(reference, candidate, k=1)
    assert (ids(cases["gains"]), ids(cases["losses"])) == (["d"], ["b"])


def test_swapped_arms_swap_gains_and_losses() -> None:
    reference = [essay("a", WHOLE), essay("c", NONE)]
    candidate = [essay("a", HALF), essay("c", WHOLE)]
    forth, back = largest_changes(reference, candidate), largest_changes(candidate, reference)
    assert (ids(forth["gains"]), ids(forth["losses"])) == (["c"], ["a"])
    assert (ids(back["gains"]), ids(back["losses"])) == (["a"], ["c"])


def test_flipped_option_comes_before_any_larger_change_of_the_metric() -> None:
    flipped = [choice("m", "1) 가상병")], [choice("m", "2")]
    cases = largest_changes([essay("a", NONE), *flipped[0]], [essay("a", WHOLE), *flipped[1]])
    assert ids(cases["gains"]) == ["m", "a"]
    assert cases["gains"][0]["flip"] == 1
    assert cases["gains"][0]["change"] < cases["gains"][1]["change"]
    back = largest_changes([essay("a", WHOLE), *flipped[1]], [essay("a", NONE), *flipped[0]])
    assert (ids(back["losses"]), back["losses"][0]["flip"]) == (["m", "a"], -1)


def test_right_option_is_a_gain_even_with_fewer_words_of_the_reference() -> None:
    cases = largest_changes([choice("m", "1) 모의병")], [choice("m", "2")])
    assert cases["gains"][0]["change"] < 0
    assert cases["losses"] == []


def test_ties_go_by_id_whatever_the_order_of_the_files() -> None:
    names = ["q3", "q1", "q2"]
    up = largest_changes([essay(i, NONE) for i in names], [essay(i, WHOLE) for i in names[::-1]])
    down = largest_changes([essay(i, WHOLE) for i in names], [essay(i, NONE) for i in names], k=2)
    assert ids(up["gains"]) == ["q1", "q2", "q3"]
    assert ids(down["losses"]) == ["q1", "q2"]


def test_item_that_did_not_change_is_no_case() -> None:
    cases = largest_changes([essay("a", HALF)], [essay("a", HALF)])
    assert (cases["n"], cases["gains"], cases["losses"]) == (1, [], [])


def test_only_items_of_both_arms_with_the_metric_are_counted() -> None:
    reference = [essay("a", NONE), essay("b", NONE), choice("m", "1) 가상병")]
    candidate = [essay("b", WHOLE), choice("m", "2) 모의병"), essay("z", WHOLE)]
    assert ids(largest_changes(reference, candidate)["gains"]) == ["m", "b"]
    accuracy = largest_changes(reference, candidate, "accuracy")
    assert (accuracy["n"], ids(accuracy["gains"])) == (1, ["m"])
    assert accuracy["gains"][0]["candidate_value"] == 1.0


@pytest.mark.parametrize(
    ("candidate", "metric", "message"),
    [
        ([essay("a", WHOLE)], "accuracy", "no item of both arms has accuracy"),
        ([essay("z", WHOLE)], "rouge_ko_L", "no item of both arms"),
        ([], "rouge_ko_L", "no predictions"),
        ([{**essay("a", WHOLE), "answer": "딴 답"}], "rouge_ko_L", "1 items are not the same"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(
    candidate: list[Prediction], metric: str, message: str
) -> None:
    with pytest.raises(EvalError, match=message):
        largest_changes([essay("a", NONE)], candidate, metric)
