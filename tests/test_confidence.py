import numpy as np
import pytest

from eval.confidence import (
    Belief,
    calibration_change,
    calibration_error,
    calibration_interval,
    reliability,
)


def belief(confidence: float, right: bool) -> Belief:
    rest = (1 - confidence) / 4
    return Belief([rest, confidence, rest, rest, rest], right=2 if right else 1)


def beliefs(confidence: float, right: int, n: int) -> list[Belief]:
    return [belief(confidence, i < right) for i in range(n)]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (beliefs(0.85, 17, 20), 0.0),
        (beliefs(0.85, 0, 20), 0.85),
        (beliefs(1.0, 10, 10), 0.0),
        (beliefs(1.0, 5, 10), 0.5),
        (beliefs(0.95, 10, 10) + beliefs(0.55, 0, 30), (10 * 0.05 + 30 * 0.55) / 40),
        # Within a bin, too much and too little confidence cancel; that is what the measure says.
        ([belief(0.81, True), belief(0.89, False)], abs(1 - 0.81 - 0.89) / 2),
    ],
)
def test_calibration_error_is_the_gap_weighted_by_items(items: list[Belief], error: float) -> None:
    assert calibration_error(items) == pytest.approx(error)


def test_brier_score_is_zero_for_certainty_in_the_right_option() -> None:
    assert Belief([0, 1, 0, 0, 0], 2).brier == 0
    assert Belief([0, 1, 0, 0, 0], 1).brier == 2
    assert Belief([0.2] * 5, 3).brier == pytest.approx(0.8)


def test_option_is_the_likeliest_counted_from_one() -> None:
    assert Belief([0.1, 0.2, 0.6, 0.1], 1).option == 3
    assert Belief([0.1, 0.2, 0.6, 0.1], 1).confidence == 0.6


def test_reliability_has_a_bin_for_each_confidence_that_occurs() -> None:
    [low, high] = reliability(beliefs(0.55, 5, 10) + beliefs(1.0, 9, 10))
    assert (low.low, low.high, low.n, low.accuracy) == (0.5, 0.6, 10, 0.5)
    assert (high.low, high.high, high.n, high.accuracy) == (0.9, 1.0, 10, 0.9)
    assert high.confidence == 1.0


def test_interval_holds_the_error_and_narrows_with_items() -> None:
    few, many = beliefs(0.85, 12, 20), beliefs(0.85, 600, 1000)
    for items in (few, many):
        low, high = calibration_interval(items)
        assert low <= calibration_error(items) <= high
    widths = [np.ptp(calibration_interval(items)) for items in (few, many)]
    assert widths[1] < widths[0] / 3


def test_interval_is_the_same_every_time() -> None:
    assert calibration_interval(beliefs(0.7, 3, 9)) == calibration_interval(beliefs(0.7, 3, 9))


def test_no_items_are_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        calibration_error([])


def test_change_of_the_error_is_paired_and_signed() -> None:
    sure, unsure = beliefs(0.95, 95, 100), beliefs(0.55, 95, 100)
    change, low, high = calibration_change(sure, unsure, 0.95)
    assert change == pytest.approx(0.40)
    assert 0.3 < low <= change <= high
    assert calibration_change(sure, sure, 0.95) == (0.0, 0.0, 0.0)
