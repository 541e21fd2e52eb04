"""How well confidence tells right answers from wrong ones.

A warning below a threshold is worth something only if the answers below it are wrong more often
than those above. Three numbers say whether they are: the chance that a right answer is the surer
of a right and a wrong one (AUROC), the share of answers that can be kept at a given error, and
the errors with and without a warning.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import rankdata

from eval.confidence import Sure
from eval.statistics import critical_value, rate_interval

SEPARATION_VERSION = "1"
RESAMPLES = 2000
SEED = 42
_CELLS = 4_000_000  # numbers drawn at once: 32 MB, whatever the number of items

Number = dict[str, float | int]
Floats = npt.NDArray[np.float64]


def auroc(claims: Sequence[Sure]) -> Number | None:
    """Probability that of a right and a wrong answer the right one is the surer; 0.5 is chance.

    Ties count half (Mann-Whitney). None where all answers are right, or all wrong. The 95 %
    interval is Newcombe's fifth for this statistic (Statistics in Medicine 25, 2006, 559): a
    bootstrap of a few items that are told apart without a fault would be a point.
    """
    right = np.array([claim.correct for claim in claims], dtype=bool)
    m, n = int(right.sum()), int((~right).sum())
    if not m or not n:
        return None
    ranks = rankdata([claim.confidence for claim in claims])
    value = float((ranks[right].sum() - m * (m + 1) / 2) / (m * n))
    low, high = _auroc_interval(value, m, n)
    return {"value": value, "n": m + n, "low": low, "high": high}


def _auroc_interval(value: float, m: int, n: int) -> tuple[float, float]:
    """The areas from which `value` is 1.96 standard errors away, as large as they are there."""
    z, half = critical_value(0.975), (m + n) / 2

    def excess(area: float) -> float:
        spread = 2 * half - 1 - 3 * (half - 1) / ((2 - area) * (1 + area))
        return float((value - area) ** 2 - z**2 * area * (1 - area) / (m * n) * spread)

    # Beside the estimate: at 0 and at 1 it is a root itself, and the wrong one.
    low = 0.0 if value == 0 else float(brentq(excess, 0.0, value - 1e-9))
    high = 1.0 if value == 1 else float(brentq(excess, value + 1e-9, 1.0))
    return low, high


def coverage_at(claims: Sequence[Sure], error: float) -> Number:
    """Largest share of answers, the surest first, of which at most `error` are wrong.

    Answers of one confidence are kept or left together. The threshold is chosen on the same
    answers, so this is what the order allows, and a little more than a new set will give. The
    95 % interval is from 2,000 resamples of the items.
    """
    wrong, last = _surest_first(claims)
    n = len(wrong)
    value = float(_coverages(np.ones((1, n)), wrong, last, error)[0])
    draws = np.concatenate([_coverages(w, wrong, last, error) for w in _resamples(n)])
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"value": value, "n": n, "low": float(low), "high": float(high)}


def _surest_first(claims: Sequence[Sure]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Which answers are wrong, and which are the last of their confidence."""
    confidence = np.array([claim.confidence for claim in claims])
    order = np.argsort(-confidence, kind="stable")
    wrong = np.array([not claims[i].correct for i in order], dtype=np.float64)
    return wrong, np.append(np.diff(confidence[order]) != 0, True)


def _coverages(weights: Floats, wrong: Floats, last: npt.NDArray[np.bool_], error: float) -> Floats:
    """One coverage a row of weights (rows, items), which sum to the number of items."""
    kept, faults = weights.cumsum(1), (weights * wrong).cumsum(1)
    # A hair of room, because 0.05 · 20 is not quite 1.
    allowed = last & (faults <= error * kept + 1e-9)
    best: Floats = np.where(allowed, kept, 0).max(1) / len(wrong)
    return best


def _resamples(n: int) -> Iterator[Floats]:
    """How often each of n items is drawn, in 2,000 samples of n, some rows at a time."""
    rng, rows = np.random.default_rng(SEED), max(1, _CELLS // n)
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        yield rng.multinomial(n, np.full(n, 1 / n), count).astype(np.float64)


def warned(claims: Sequence[Sure], threshold: float) -> dict[str, Number]:
    """Share of answers that get a warning, and of wrong ones among all, those with it and those
    without.

    A share of nothing is left out. Intervals are Wilson's.
    """
    low = [claim for claim in claims if claim.confidence < threshold]
    rest = [claim for claim in claims if claim.confidence >= threshold]
    shares = {"warned": _rate(len(low), len(claims))}
    for name, some in (("error", claims), ("error_warned", low), ("error_unwarned", rest)):
        if some:
            shares[name] = _rate(sum(not claim.correct for claim in some), len(some))
    return shares


def _rate(count: int, n: int) -> Number:
    low, high = rate_interval(count, n)
    return {"value": count / n, "n": n, "low": low, "high": high}
