"""How far a model's option probabilities can be believed.

A prediction's confidence is the probability of its likeliest option. In a calibrated model the
share of right answers among those of 80 % confidence is 80 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

CONFIDENCE_VERSION = "1"
BINS = 10
RESAMPLES = 2000
SEED = 42

Floats = npt.NDArray[np.float64]


class Sure(Protocol):
    """What is held, how surely, and whether it is so."""

    @property
    def confidence(self) -> float: ...

    @property
    def correct(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer as a user gets it: with one confidence, right or wrong."""

    confidence: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Belief:
    """One item: the probability of each option, and the right one, counted from 1."""

    probabilities: Sequence[float]
    right: int

    @property
    def option(self) -> int:
        return int(np.argmax(self.probabilities)) + 1

    @property
    def confidence(self) -> float:
        return max(self.probabilities)

    @property
    def correct(self) -> bool:
        return self.option == self.right

    @property
    def brier(self) -> float:
        """Squared distance to certainty in the right option; 0 is best, 2 worst (Brier 1950)."""
        return sum((p - (i == self.right)) ** 2 for i, p in enumerate(self.probabilities, 1))


@dataclass(frozen=True, slots=True)
class Bin:
    """Items of like confidence, for the reliability diagram."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def calibration_error(beliefs: Sequence[Sure], bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017), from 0 to 1."""
    confidence, right = _columns(beliefs)
    return float(_errors(confidence[None], right[None], bins)[0])


def calibration_interval(beliefs: Sequence[Sure], bins: int = BINS) -> tuple[float, float]:
    """95 % bootstrap interval of the calibration error over items."""
    confidence, right = _columns(beliefs)
    chosen = np.random.default_rng(SEED).integers(0, len(right), (RESAMPLES, len(right)))
    low, high = np.quantile(_errors(confidence[chosen], right[chosen], bins), (0.025, 0.975))
    return float(low), float(high)


def calibration_change(
    before: Sequence[Sure], after: Sequence[Sure], confidence: float, bins: int = BINS
) -> tuple[float, float, float]:
    """By how much the calibration error rose between two arms' beliefs about the same items, and
    one-sided bootstrap bounds of it, lower and upper, each at `confidence`."""
    columns = [_columns(beliefs) for beliefs in (before, after)]
    n = len(columns[0][1])
    chosen = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    old, new = (_errors(sure[chosen], right[chosen], bins) for sure, right in columns)
    low, high = np.quantile(new - old, (1 - confidence, confidence))
    change = calibration_error(after, bins) - calibration_error(before, bins)
    return change, float(low), float(high)


def reliability(beliefs: Sequence[Sure], bins: int = BINS) -> list[Bin]:
    """The bins that hold items, from the least confident."""
    confidence, right = _columns(beliefs)
    place = _places(confidence, bins)
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            n=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for i in range(bins)
        if (inside := place == i).any()
    ]


def _columns(beliefs: Sequence[Sure]) -> tuple[Floats, Floats]:
    if not beliefs:
        raise ValueError("no items")
    confidence = np.array([belief.confidence for belief in beliefs], dtype=np.float64)
    right = np.array([belief.correct for belief in beliefs], dtype=np.float64)
    return confidence, right


def _places(confidence: Floats, bins: int) -> npt.NDArray[np.intp]:
    """Which bin each item falls into; a confidence of 1 into the last."""
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)


def _errors(confidence: Floats, right: Floats, bins: int) -> Floats:
    """One error a row: Σ over bins of |Σ accuracy − Σ confidence| / n."""
    rows, n = confidence.shape
    place = _places(confidence, bins) + bins * np.arange(rows)[:, None]
    gaps = np.bincount(place.ravel(), (right - confidence).ravel(), minlength=rows * bins)
    errors: Floats = np.abs(gaps).reshape(rows, bins).sum(1) / n
    return errors
