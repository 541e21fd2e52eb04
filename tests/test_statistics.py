from math import log

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from eval.statistics import (
    bootstrap_interval,
    bootstrap_means,
    critical_value,
    group_mean_interval,
    mcnemar,
    paired_bootstrap_lower_bound,
    rate_interval,
    tango_lower_bound,
)
from kormed_edge.errors import EvalError


def score_statistic(gained: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic with the likelihood maximised by search, not by formula."""

    def loss(q: float) -> float:
        shares = (q + difference, q, 1 - 2 * q - difference)
        counts = (gained, lost, n - gained - lost)
        return -sum(c * log(max(p, 1e-300)) for c, p in zip(counts, shares, strict=True) if c)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)
    variance = n * (2 * q + difference * (1 - difference))
    return float((gained - lost - n * difference) / np.sqrt(variance))


@pytest.mark.parametrize(
    ("gained", "lost", "n"),
    [(5, 9, 100), (0, 3, 40), (3, 0, 40), (12, 12, 435), (1, 0, 12), (40, 20, 66), (0, 39, 40)],
)
def test_tango_bound_is_where_the_test_stops_rejecting(gained: int, lost: int, n: int) -> None:
    bound = tango_lower_bound(gained, lost, n)
    assert bound < (gained - lost) / n
    assert score_statistic(gained, lost, n, bound) == pytest.approx(critical_value(0.95), abs=1e-5)


@pytest.mark.parametrize("n", [1, 24, 133, 2000])
def test_no_change_is_not_no_doubt(n: int) -> None:
    z2 = critical_value(0.95) ** 2
    assert tango_lower_bound(0, 0, n) == pytest.approx(-z2 / (n + z2), abs=1e-12)


def test_tango_extremes() -> None:
    assert tango_lower_bound(0, 30, 30) == -1
    assert 0.8 < tango_lower_bound(30, 0, 30) < 1


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(EvalError):
        tango_lower_bound(*counts)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(7, 7) == 1


def test_bootstrap_interval_covers_the_normal_one() -> None:
    values = np.random.default_rng(7).normal(size=1000).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * float(np.std(values)) / 1000**0.5
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.006)


def test_bootstrap_is_repeatable_and_seeded() -> None:
    values = [0.0, 0.5, 1.0, 0.2]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_means(values, seed=1).tolist() != bootstrap_means(values, seed=2).tolist()


def test_a_large_sample_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.statistics._CELLS", 10)
    assert bootstrap_means([1.0, 1.0, 1.0], resamples=7).tolist() == [1.0] * 7


def test_no_values_are_refused() -> None:
    with pytest.raises(EvalError):
        bootstrap_means([])


def test_lower_bound_lies_below_the_mean() -> None:
    differences = [-0.1, 0.0, 0.0, 0.2] * 50
    assert -0.0 < paired_bootstrap_lower_bound(differences) < 0.025
    assert paired_bootstrap_lower_bound([0.0] * 9) == 0


def test_group_means_weigh_alike() -> None:
    low, high = group_mean_interval([[1.0] * 50, [0.0] * 2])
    assert (low, high) == (0.5, 0.5)


def test_wilson_interval_is_never_a_point() -> None:
    low, high = rate_interval(24, 24)
    z2 = 1.959964**2
    assert (low, high) == pytest.approx((24 / (24 + z2), 1), abs=1e-6)
