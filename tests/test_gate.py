import json
from typing import Any

import pytest
from pydantic import ValidationError

from eval.checks import items_needed
from eval.gate import decide
from eval.verdict import Check, Verdict
from kormed_edge.config import Thresholds

QUESTION = "가장 적절한 검사는?\n1) 심전도\n2) 흉부 엑스선\n3) 초음파\n4) 뇌파\n5) 내시경"
Rows = list[dict[str, Any]]


def arm(n: int, wrong: range = range(0), **changes: str) -> Rows:
    """`n` multiple-choice items answered right, but for those in `wrong`."""
    row = {
        "domain": "emergency",
        "q_type": "multiple_choice",
        "question": QUESTION,
        "answer": "3) 초음파",
        "finish_reason": "stop",
        "n_tokens": 5,
        "seconds": 0.1,
    }
    outputs = ["2) 흉부 엑스선" if i in wrong else "3) 초음파" for i in range(n)]
    return [row | {"qa_id": f"q{i}", "output": text} | changes for i, text in enumerate(outputs)]


def changed(rows: Rows, items: range, **changes: Any) -> Rows:
    return [row | changes if i in items else row for i, row in enumerate(rows)]


def check(verdict: Verdict, name: str) -> Check:
    return next(row for row in verdict.checks if row.name == name)


def test_identical_arms_pass_on_2000_items() -> None:
    verdict = decide(arm(2000, range(600)), arm(2000, range(600)))
    assert (verdict.outcome, verdict.reasons) == ("PASS", ())
    assert {row.outcome for row in verdict.checks} == {"PASS"}
    assert check(verdict, "accuracy").lower == pytest.approx(-0.00135, abs=1e-5)


def test_identical_arms_prove_nothing_on_24_items() -> None:
    verdict = decide(arm(24), arm(24))
    assert verdict.outcome == "INCONCLUSIVE"
    accuracy = check(verdict, "accuracy")
    assert accuracy.lower == pytest.approx(-0.1013, abs=1e-4)
    assert "needs about 133 items" in accuracy.note.en
    assert "133문항" in accuracy.note.ko
    # Even 8 % of flips, the widest limit, needs 32 items.
    assert {row.outcome for row in verdict.checks} == {"INCONCLUSIVE"}


def test_a_seeded_regression_fails() -> None:
    verdict = decide(arm(1000), arm(1000, range(50)))
    assert verdict.outcome == "FAIL"
    assert check(verdict, "accuracy").upper < -0.02
    assert "loss proven" in verdict.reasons[0].en


def test_a_loss_inside_the_noise_is_inconclusive() -> None:
    verdict = decide(arm(300, range(0, 8)), arm(300, range(4, 16)))
    accuracy = check(verdict, "accuracy")
    assert accuracy.outcome == "INCONCLUSIVE"
    assert accuracy.lower < -0.02 < accuracy.upper


def test_a_better_candidate_passes_accuracy() -> None:
    verdict = decide(arm(2000, range(100)), arm(2000))
    accuracy = check(verdict, "accuracy")
    assert accuracy.outcome == "PASS"
    assert accuracy.difference == pytest.approx(0.05)


def test_equal_accuracy_does_not_hide_flips() -> None:
    verdict = decide(arm(1000, range(0, 100)), arm(1000, range(100, 200)))
    assert verdict.outcome == "FAIL"
    assert check(verdict, "accuracy").difference == 0
    flips = check(verdict, "flips")
    assert (flips.difference, flips.outcome) == (0.2, "FAIL")


def test_changes_are_counted_in_both_directions() -> None:
    reference = changed(arm(100, range(0, 10)), range(50, 100), domain="obgyn")
    candidate = changed(arm(100, range(4, 12)), range(50, 100), domain="obgyn")
    candidate = changed(candidate, range(4, 6), output="1) 심전도")
    changes = decide(reference, candidate).changes
    assert changes is not None
    assert (changes.gained, changes.lost, changes.other_option) == (4, 2, 2)
    assert changes.mcnemar_p == pytest.approx(0.6875)
    assert changes.by_domain["emergency"].difference == pytest.approx(0.04)
    assert changes.by_domain["obgyn"].n == 50


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("unread", {"output": "모르겠습니다"}),
        ("missing_end", {"finish_reason": "length"}),
        ("han_leak", {"output": "3) 超音波"}),
    ],
)
def test_a_rate_that_rose_fails(metric: str, change: dict[str, Any]) -> None:
    verdict = decide(arm(600), changed(arm(600), range(20), **change))
    assert (verdict.outcome, check(verdict, metric).outcome) == ("FAIL", "FAIL")


def test_a_rate_needs_enough_items_and_little_increase() -> None:
    def outcome(n: int, cut: int) -> str:
        candidate = changed(arm(n), range(cut), finish_reason="length")
        return check(decide(arm(n), candidate), "missing_end").outcome

    assert [outcome(538, 0), outcome(539, 0), outcome(600, 3), outcome(600, 4)] == [
        "INCONCLUSIVE",
        "PASS",
        "PASS",
        "INCONCLUSIVE",
    ]


def test_text_quality_is_judged_on_all_items() -> None:
    free: dict[str, Any] = {
        "q_type": "descriptive",
        "question": "설명하시오.",
        "answer": "기관지가 수축한다.",
    }
    reference = arm(400) + arm(400, **free, output="기관지가 수축한다.")
    candidate = arm(400) + arm(400, **free, output="혈압을 잰다.")
    for i, (a, b) in enumerate(zip(reference, candidate, strict=True)):
        a["qa_id"] = b["qa_id"] = f"q{i}"
    verdict = decide(reference, candidate)
    assert (check(verdict, "accuracy").outcome, verdict.outcome) == ("PASS", "FAIL")
    assert check(verdict, "rouge_ko_L").outcome == "FAIL"


def test_without_multiple_choice_accuracy_stays_open() -> None:
    rows = arm(600, q_type="short_answer")
    verdict = decide(rows, rows)
    assert (verdict.outcome, verdict.changes) == ("INCONCLUSIVE", None)
    assert verdict.reasons[-1].en.startswith("no multiple-choice items")


GOOD = arm(4)


@pytest.mark.parametrize(
    ("reference", "candidate", "reason"),
    [
        ([], GOOD, "reference arm: no predictions"),
        (GOOD, [], "candidate arm: no predictions"),
        (None, GOOD, "reference arm: not a list"),
        (GOOD, "rows", "candidate arm: not a list"),
        (GOOD, [*GOOD, None], "candidate arm: line 5"),
        (GOOD, [*GOOD, GOOD[0]], "candidate arm: q0: 2 times"),
        (GOOD, GOOD[:3], "1 items missing from the candidate arm: q3"),
        (GOOD[:3], GOOD, "1 items missing from the reference arm: q3"),
        (GOOD, changed(GOOD, range(1), question="다른 " + QUESTION), "1 items not the same"),
        (GOOD, changed(GOOD, range(1), answer="2) 흉부 엑스선"), "1 items not the same"),
        (GOOD, changed(GOOD, range(1), domain="obgyn"), "1 items not the same"),
        (GOOD, changed(GOOD, range(1), answer="초음파"), "candidate arm: q0: the reference"),
        (GOOD, changed(GOOD, range(1), output=None), "candidate arm: line 1: output"),
        (GOOD, changed(GOOD, range(1), n_tokens="5"), "candidate arm: line 1: n_tokens"),
        (GOOD, changed(GOOD, range(4), output=""), "candidate arm: every output is empty"),
        (GOOD, [{"qa_id": ["q"]}], "candidate arm: line 1: qa_id"),
        (GOOD, [{}], "candidate arm: line 1: qa_id"),
    ],
)
def test_bad_inputs_fail_closed(reference: Any, candidate: Any, reason: str) -> None:
    verdict = decide(reference, candidate)
    assert (verdict.outcome, verdict.checks) == ("FAIL", ())
    assert verdict.reasons[0].en.startswith(reason)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(range(2001), "1 items of the test split"), (range(1999), "1 items are not in the test")],
)
def test_items_that_neither_arm_answered_fail_closed(asked: range, reason: str) -> None:
    ids = [arm(2001)[i]["qa_id"] for i in asked]
    verdict = decide(arm(2000), arm(2000), asked=ids)
    assert verdict.outcome == "FAIL"
    assert verdict.reasons[0].en.startswith(reason)
    whole = [row["qa_id"] for row in arm(2000)]
    assert decide(arm(2000), arm(2000), asked=whole) == decide(arm(2000), arm(2000))


def test_a_limited_run_fails_closed() -> None:
    verdict = decide(arm(2000), arm(2000), limited=True)
    assert verdict.outcome == "FAIL"
    assert verdict.reasons[0].en.startswith("limited run")


def test_items_needed_for_a_power_of_80_percent() -> None:
    assert items_needed(0.06, -0.02) == 928
    assert items_needed(0.06, -0.01) == 3710
    assert items_needed(0, -0.02) == 133
    assert items_needed(0, 0.005) == 539


@pytest.mark.parametrize(
    "wrong", [{"margin": 0.02}, {"max_flips": 0}, {"confidence": 95}, {"unknown": 1}]
)
def test_senseless_thresholds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Thresholds.model_validate(wrong)


def test_thresholds_move_the_verdict() -> None:
    reference, candidate = arm(1000), arm(1000, range(15))
    loose = Thresholds(margin=-0.05, rouge_margin=-0.05)
    assert decide(reference, candidate).outcome != "PASS"
    assert decide(reference, candidate, loose).outcome == "PASS"


def test_a_verdict_is_json() -> None:
    verdict = decide(arm(24), arm(24, range(2)))
    text = json.dumps(verdict.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
    assert Verdict.model_validate_json(text) == verdict


def test_confidence_that_no_longer_means_what_it_meant_fails() -> None:
    calibrated = changed(arm(2000), range(2000), option_probabilities=[0.0, 0.0, 1.0, 0.0, 0.0])
    timid = changed(arm(2000), range(2000), option_probabilities=[0.1, 0.1, 0.6, 0.1, 0.1])
    assert check(decide(calibrated, calibrated), "ece").outcome == "PASS"
    row = check(decide(calibrated, timid), "ece")
    assert (row.outcome, row.reference, row.candidate) == ("FAIL", 0, pytest.approx(0.4))
    assert "ece" not in {row.name for row in decide(calibrated, arm(2000)).checks}
