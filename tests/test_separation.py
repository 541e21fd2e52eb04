import pytest

from eval.confidence import Claim
from eval.separation import auroc, coverage_at, warned


def claims(*pairs: tuple[float, int]) -> list[Claim]:
    return [Claim(confidence, bool(correct)) for confidence, correct in pairs]


APART = claims(*[(0.9, 1)] * 8, *[(0.2, 0)] * 2)


@pytest.mark.parametrize(
    ("items", "value"),
    [
        (APART, 1.0),
        (claims((0.2, 1), (0.9, 0)), 0.0),
        (claims((0.5, 1), (0.5, 0)), 0.5),
        # Of the pairs (.9 .4 .3) against (.6 .3): above, above, below, above, below and a tie.
        (claims((0.9, 1), (0.4, 1), (0.3, 1), (0.6, 0), (0.3, 0)), 3.5 / 6),
    ],
)
def test_auroc_is_the_share_of_pairs_in_the_right_order(items: list[Claim], value: float) -> None:
    found = auroc(items)
    assert found is not None
    assert found["value"] == pytest.approx(value)
    assert found["low"] <= value <= found["high"]


def test_auroc_of_few_items_is_no_point_though_they_are_apart() -> None:
    few, many = auroc(APART), auroc(APART * 50)
    assert few is not None
    assert many is not None
    assert (few["high"], many["high"]) == (1.0, 1.0)
    assert few["low"] < 0.8 < 0.98 < many["low"]


def test_auroc_interval_is_newcombe_s() -> None:
    # By hand: at either end the area is 1.96 standard errors (0.0837, 0.0501) away from 0.8125.
    items = claims(*[(0.9, 1)] * 25, *[(0.1, 1)] * 15, *[(0.1, 0)] * 30)
    found = auroc(items)
    assert found is not None
    for area in (found["low"], found["high"]):
        exponential = area / (2 - area) + 2 * area**2 / (1 + area) - 2 * area**2
        variance = (area * (1 - area) + (35 - 1) * exponential) / (40 * 30)
        assert abs(area - found["value"]) == pytest.approx(1.959964 * variance**0.5, abs=1e-6)


@pytest.mark.parametrize("correct", [0, 1])
def test_one_sided_answers_have_no_auroc(correct: int) -> None:
    assert auroc(claims((0.9, correct), (0.1, correct))) is None


@pytest.mark.parametrize(
    ("items", "error", "share"),
    [
        (APART, 0.05, 0.8),
        (APART, 0.2, 1.0),
        (claims((0.9, 0), *[(0.8, 1)] * 19), 0.05, 1.0),  # a wrong one first may be outweighed
        (claims((0.9, 0), *[(0.8, 1)] * 18), 0.05, 0.0),
        (claims((0.9, 1), (0.5, 1), (0.5, 0), (0.1, 0)), 0.1, 0.25),  # a tie is kept whole or not
        (claims((0.9, 0)), 0.1, 0.0),
    ],
)
def test_coverage_is_what_can_be_kept(items: list[Claim], error: float, share: float) -> None:
    found = coverage_at(items, error)
    assert found["value"] == pytest.approx(share)
    assert found["n"] == len(items)
    assert 0 <= found["low"] <= found["high"] <= 1


def test_coverage_does_not_depend_on_the_order_of_items() -> None:
    mixed = claims(*[(i / 10, i % 3 > 0) for i in range(10)])
    backwards = coverage_at(mixed[::-1], 0.3)
    assert backwards["value"] == coverage_at(mixed, 0.3)["value"]


def test_resamples_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = coverage_at(APART, 0.05)
    monkeypatch.setattr("eval.separation._CELLS", 70)
    assert coverage_at(APART, 0.05) == whole


def test_errors_with_and_without_a_warning() -> None:
    found = warned(claims((0.9, 1), (0.5, 0), (0.4, 0), (0.3, 0), (0.2, 1)), 0.5)
    assert {name: (n["value"], n["n"]) for name, n in found.items()} == {
        "warned": (0.6, 5),
        "error": (0.6, 5),
        "error_warned": (pytest.approx(2 / 3), 3),
        "error_unwarned": (0.5, 2),
    }
    assert "error_warned" not in warned(claims((0.9, 1)), 0.5)
