"""Intervals and bounds for scores and for paired differences between two arms."""

from collections.abc import Callable, Iterator, Sequence
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kormed_edge.errors import EvalError

RESAMPLES = 2000
SEED = 42
_CELLS = 4_000_000  # indices drawn at once: 32 MB, whatever the number of items

Floats = NDArray[np.float64]


def critical_value(confidence: float) -> float:
    """z of a one-sided bound: 1.645 at a confidence of 0.95."""
    return NormalDist().inv_cdf(confidence)


def bootstrap_means(
    values: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED
) -> Floats:
    """Means of `resamples` samples drawn from `values` with replacement."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise EvalError("no values to resample", "at least one value", "score at least one item")
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // data.size)
    return np.concatenate(
        [
            data[rng.integers(data.size, size=(n, data.size))].mean(axis=1)
            for n in _parts(resamples, rows)
        ]
    )


def _parts(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)


def bootstrap_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Two-sided percentile interval of the mean.

    It knows nothing beyond the values: too narrow for a handful of items and a point for one,
    so it is always shown with n. For rates `rate_interval` is the honest one.
    """
    return _middle(bootstrap_means(values, resamples, seed), confidence)


def group_mean_interval(
    groups: Sequence[Sequence[float]],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Interval of the plain mean of group means; each group is resampled on its own."""
    means = [bootstrap_means(group, resamples, seed + i) for i, group in enumerate(groups)]
    return _middle(np.mean(means, axis=0), confidence)


def _middle(means: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rate_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided interval; unlike the bootstrap it is not a point at 0 of n or n of n."""
    z2 = critical_value((1 + confidence) / 2) ** 2
    middle = (successes + z2 / 2) / (n + z2)
    half = sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    # Rounding must not put 0 of n above 0, nor n of n below 1.
    low = middle - half if successes else 0.0
    return low, middle + half if successes < n else 1.0


def paired_bootstrap_lower_bound(
    differences: Sequence[float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> float:
    """One-sided lower bound of the mean of paired differences (candidate − reference).

    The upper bound is minus the lower bound of the negated differences.
    """
    return float(np.quantile(bootstrap_means(differences, resamples, seed), 1 - confidence))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that gains and losses are equally likely; an alarm, not a proof."""
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(comb(n, k) for k in range(fewer + 1))
    p: float = 2 * tail / 2**n
    return min(1.0, p)


def tango_lower_bound(gained: int, lost: int, n: int, confidence: float = 0.95) -> float:
    """One-sided lower bound of a paired difference of proportions, (gained − lost) / n.

    The smallest difference that Tango's score test (Statistics in Medicine 17, 1998) does not
    reject. With no change at all in n items it is −z² / (n + z²): few items prove little, where
    Wald's bound would be 0. The upper bound is `-tango_lower_bound(lost, gained, n)`.
    """
    if n < 1 or min(gained, lost) < 0 or gained + lost > n:
        raise EvalError(
            f"gained {gained} and lost {lost} of {n} items", "counts that fit into n, n ≥ 1"
        )
    if lost == n:
        return -1.0
    z = critical_value(confidence)

    def excess(difference: float) -> float:
        q = _lost_share(gained, lost, n, difference)
        variance = n * (2 * q + difference * (1 - difference))
        return gained - lost - n * difference - z * sqrt(max(variance, 0.0))

    # Just below the estimate: at the estimate itself a variance of zero makes a false root.
    return _root(excess, -1.0, (gained - lost) / n - 1e-12)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from above zero to below crosses it, to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return middle


def _lost_share(gained: int, lost: int, n: int, difference: float) -> float:
    """Maximum-likelihood share of lost items if the true difference is `difference`."""
    b = gained + lost - (2 * n - gained + lost) * difference
    root = sqrt(max(b * b + 8 * n * lost * difference * (1 - difference), 0.0))
    return (b + root) / (4 * n)
