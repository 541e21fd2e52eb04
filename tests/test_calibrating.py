from math import exp, log
from typing import Any

import numpy as np
import pytest

from eval.calibrating import (
    TEMPERATURES,
    Choice,
    FreeText,
    calibrate,
    fit_options,
    fit_text,
    mark,
    measure,
)
from eval.confidence import Belief
from kormed_edge.calibration import Calibration, OptionScale, TextScale

MODEL = "ab" * 32


def item(number: int, q_type: str, answer: str, output: str, **more: Any) -> dict[str, Any]:
    return {
        "qa_id": f"17{number:03}", "domain": "internal_medicine", "q_type": q_type,
        "question": f"지어낸 질문 {number}?", "answer": answer, "output": output,
        "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1, **more,
    }  # fmt: skip


def choice(number: int, output: str, *probabilities: float) -> dict[str, Any]:
    more = {"option_probabilities": list(probabilities)} if probabilities else {}
    row = item(number, "multiple_choice", "2) 나", output, **more)
    return row | {"question": "지어낸 질문?\n1) 가\n2) 나\n3) 다"}


def believed(probability: float, right: int, n: int) -> list[Belief]:
    """n items with this probability of their first option, of which `right` are right."""
    return [Belief([probability, 1 - probability], 1 if i < right else 2) for i in range(n)]


@pytest.mark.parametrize(
    ("probability", "right", "temperature"),
    [
        # Of those held for 90 % right, 3 in 4 are: log(9) / T = log(3).
        (0.9, 75, 2.0),
        (0.75, 75, 1.0),
        (0.75, 90, 0.5),
    ],
)
def test_temperature_makes_confidence_the_share_of_right_answers(
    probability: float, right: int, temperature: float
) -> None:
    scale = fit_options(believed(probability, right, 100))
    assert scale.temperature == pytest.approx(temperature, rel=1e-3)
    assert scale.n == 100
    assert scale.of([probability, 1 - probability])[0] == pytest.approx(right / 100, abs=1e-3)


def test_temperature_stays_within_its_limits() -> None:
    low, high = TEMPERATURES
    assert fit_options(believed(0.6, 5, 5)).temperature == pytest.approx(low, rel=1e-3)
    assert fit_options(believed(0.9, 0, 5)).temperature == pytest.approx(high, rel=1e-3)


def test_probability_that_was_rounded_to_zero_can_be_right() -> None:
    assert fit_options([Belief([1.0, 0.0], 2)]).temperature == pytest.approx(20, rel=1e-3)


def free(logprob: float, right: int, n: int) -> list[FreeText]:
    return [FreeText(logprob, i < right) for i in range(n)]


def test_text_scale_learns_the_share_of_right_answers_at_each_score() -> None:
    scale = fit_text([*free(-0.2, 900, 1000), *free(-1.0, 300, 1000)])
    assert scale.of(-0.2) == pytest.approx(0.9, abs=0.005)
    assert scale.of(-1.0) == pytest.approx(0.3, abs=0.005)
    assert scale.n == 2000


def test_text_scale_recovers_a_sigmoid() -> None:
    rng = np.random.default_rng(1)
    scores = -rng.exponential(1.0, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-(3 * scores + 2)))
    scale = fit_text([FreeText(s, bool(r)) for s, r in zip(scores, right, strict=True)])
    assert scale.slope == pytest.approx(3, rel=0.05)
    assert scale.intercept == pytest.approx(2, rel=0.05)


def test_surer_is_never_taken_for_worse() -> None:
    scale = fit_text([*free(-0.2, 1, 10), *free(-1.0, 9, 10)])
    assert scale.slope == 0
    assert scale.of(-0.2) == pytest.approx((10 * 11 / 12 + 10 / 12) / 20, abs=1e-3)


def test_answers_that_are_all_wrong_leave_a_doubt() -> None:
    scale = fit_text([*free(-0.2, 0, 5), *free(-1.0, 0, 5)])
    assert scale.of(-0.5) == pytest.approx(1 / 12, abs=1e-3)


def test_answers_are_marked_by_kind() -> None:
    choices, texts = mark([
        choice(1, "2) 나", 0.2, 0.7, 0.1),
        choice(2, "모르겠습니다", 0.2, 0.7, 0.1),
        choice(3, "2) 나"),  # of an older kit, without probabilities
        item(4, "short_answer", "휴식", "휴식입니다.", mean_logprob=-0.5),
        item(5, "short_answer", "휴식", "운동", mean_logprob=-1.5),
        item(6, "short_answer", "휴식", "휴식"),
        item(7, "descriptive", "쉬면 낫는다.", "쉬면 낫는다.", mean_logprob=-0.1),
        item(8, "descriptive", "쉬면 낫는다.", "수술이 필요하다.", mean_logprob=-0.2),
    ])  # fmt: skip
    assert choices == [
        Choice(Belief([0.2, 0.7, 0.1], 2), 2, True),
        Choice(Belief([0.2, 0.7, 0.1], 2), None, False),
    ]
    assert texts == [
        FreeText(-0.5, True), FreeText(-1.5, False), FreeText(-0.1, True), FreeText(-0.2, False)
    ]  # fmt: skip


def test_calibration_has_what_the_split_had() -> None:
    only = calibrate([choice(1, "2) 나", 0.2, 0.7, 0.1)], MODEL, 0.6)
    assert (only.text, only.threshold, only.model_sha256) == (None, 0.6, MODEL)
    assert only.options is not None
    assert only.options.n == 1
    assert calibrate([], MODEL, 0.5).options is None


def known(temperature: float = 2.0) -> Calibration:
    return Calibration(
        model_sha256=MODEL, options=OptionScale(temperature=temperature, n=1),
        text=TextScale(slope=1, intercept=0, n=1), threshold=0.5, fit_version="1",
    )  # fmt: skip


def test_measure_is_of_what_a_user_sees() -> None:
    rows = [choice(i, "2) 나", 0.1, 0.81, 0.09) for i in range(3)]
    rows.append(choice(3, "1) 가", 0.64, 0.32, 0.04))
    rows.append(choice(4, "모르겠습니다", 0.1, 0.8, 0.1))
    found = measure(rows, known())
    assert list(found) == ["multiple_choice"]
    measured = found["multiple_choice"]
    assert measured["auroc"]["value"] == 1.0
    assert (measured["auroc"]["n"], measured["ece_after"]["n"]) == (5, 4)  # unread: not shown
    assert measured["coverage_5"]["value"] == pytest.approx(3 / 5)
    assert measured["warned"]["value"] == pytest.approx(1 / 5)
    assert (measured["error"]["value"], measured["error_unwarned"]["value"]) == (0.4, 0.25)
    assert measured["ece_before"]["value"] == pytest.approx((3 * 0.19 + 0.64) / 4)


def test_free_text_before_calibration_is_its_tokens_mean_probability() -> None:
    rows = [item(1, "short_answer", "휴식", "휴식", mean_logprob=log(0.4))]
    measured = measure(rows, known())["free_text"]
    assert measured["reliability_before"][0]["confidence"] == pytest.approx(0.4)
    after = 1 / (1 + exp(-log(0.4)))
    assert measured["reliability_after"][0]["confidence"] == pytest.approx(after)
    assert "auroc" not in measured


def test_kind_without_a_scale_is_not_measured() -> None:
    bare = known().model_copy(update={"options": None, "text": None})
    assert measure([choice(1, "2) 나", 0.2, 0.7, 0.1)], bare) == {}
