"""The checks of the gate: scored items of two arms in, one row each out.

Accuracy and ROUGE must be proven not to be worse than the margin. Flips, unread answers, missing
ends and Han leak are guard rails: what was seen must keep the limit in enough items.
"""

from collections.abc import Callable, Sequence
from math import ceil
from statistics import fmean, pvariance
from typing import NamedTuple

from eval.confidence import calibration_change, calibration_error
from eval.scores import ItemScore
from eval.statistics import (
    critical_value,
    paired_bootstrap_lower_bound,
    rate_interval,
    tango_lower_bound,
)
from eval.verdict import FAIL, INCONCLUSIVE, PASS, Check, Note, Outcome
from kormed_edge.config import Thresholds

POWER = 0.80

Pair = tuple[ItemScore, ItemScore]


class Bounds(NamedTuple):
    """One-sided bounds of a difference, each at the gate's confidence."""

    lower: float
    upper: float


def check_all(pairs: Sequence[Pair], limits: Thresholds) -> list[Check]:
    """Every check that the items allow; those of multiple choice are absent without any."""
    choices = multiple_choice(pairs)
    checks = [_rouge(pairs, limits)]
    if choices:
        checks = [_accuracy(choices, limits), _flips(choices, limits), *checks]
        checks.append(_rate("unread", choices, limits))
        checks += _calibration(choices, limits)
    return [*checks, *(_rate(name, pairs, limits) for name in ("missing_end", "han_leak"))]


def multiple_choice(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if "accuracy" in pair[0].values]


def discordant(metric: str, pairs: Sequence[Pair]) -> tuple[int, int]:
    """Items that have the property only in the candidate arm, and only in the reference arm."""
    gained = sum(not a.values[metric] and bool(b.values[metric]) for a, b in pairs)
    lost = sum(bool(a.values[metric]) and not b.values[metric] for a, b in pairs)
    return gained, lost


def means(metric: str, pairs: Sequence[Pair]) -> tuple[float, float]:
    return fmean(a.values[metric] for a, _ in pairs), fmean(b.values[metric] for _, b in pairs)


def paired_bounds(gained: int, lost: int, n: int, confidence: float = 0.95) -> Bounds:
    """Tango's bounds of (gained − lost) / n."""
    return Bounds(
        tango_lower_bound(gained, lost, n, confidence),
        -tango_lower_bound(lost, gained, n, confidence),
    )


def non_inferiority(bounds: Bounds, margin: float) -> Outcome:
    """The lower bound at or above the margin passes; the upper below it proves a loss."""
    if bounds.upper < margin:
        return FAIL
    return PASS if bounds.lower >= margin else INCONCLUSIVE


def items_needed(variance: float, margin: float, confidence: float = 0.95) -> int:
    """Items that an equally good candidate needs to pass with a power of 80 %.

    n = (z_confidence + z_power)² · variance / margin², where the variance of one paired difference
    of answers is the flip rate: 928 items for 6 % flips and 2 points. At least the n from which
    z² / (n + z²) ≤ |margin|, which is all there is to go by when nothing changed.
    """
    z = critical_value(confidence)
    unchanged = z * z * (1 / abs(margin) - 1)
    powered = (z + critical_value(POWER)) ** 2 * variance / margin**2
    return ceil(max(unchanged, powered))


def _accuracy(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    gained, lost = discordant("accuracy", pairs)
    n, margin = len(pairs), limits.margin
    bounds = paired_bounds(gained, lost, n, limits.confidence)
    needed = items_needed((gained + lost) / n, margin, limits.confidence)
    outcome = non_inferiority(bounds, margin)
    note = _NOTES[outcome]("accuracy", bounds, margin, needed)
    return _row("accuracy", pairs, bounds, margin, needed, outcome, note)


def _rouge(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    """The same decision by the paired bootstrap.

    A bootstrap of equal texts is a point, however few they are, so PASS also asks for as many
    items as an accuracy without any change would need.
    """
    differences = [b.values["rouge_ko_L"] - a.values["rouge_ko_L"] for a, b in pairs]
    bounds = Bounds(
        paired_bootstrap_lower_bound(differences, limits.confidence),
        -paired_bootstrap_lower_bound([-d for d in differences], limits.confidence),
    )
    margin = limits.rouge_margin
    outcome = non_inferiority(bounds, margin)
    if outcome == PASS and len(pairs) < items_needed(0, margin, limits.confidence):
        outcome = INCONCLUSIVE
    needed = items_needed(pvariance(differences), margin, limits.confidence)
    note = _NOTES[outcome]("rouge_ko_L", bounds, margin, needed)
    return _row("rouge_ko_L", pairs, bounds, margin, needed, outcome, note)


def _flips(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    """Share of items right in one arm only: gains do not make up for losses here."""
    flips, n = sum(discordant("accuracy", pairs)), len(pairs)
    share, limit = flips / n, limits.max_flips
    lower, upper = rate_interval(flips, n, 2 * limits.confidence - 1)
    fewest = items_needed(0, limit, limits.confidence)
    outcome = _guarded(share, lower, n, limit, fewest)
    return Check(
        name="flips",
        n=n,
        reference=None,
        candidate=share,
        difference=share,
        lower=lower,
        upper=upper,
        limit=limit,
        needed=fewest,
        outcome=outcome,
        note=_guard_note("flips", outcome, share, limit, fewest),
    )


def _rate(metric: str, pairs: Sequence[Pair], limits: Thresholds) -> Check:
    gained, lost = discordant(metric, pairs)
    n, limit = len(pairs), limits.max_rate_increase
    bounds = paired_bounds(gained, lost, n, limits.confidence)
    increase = (gained - lost) / n
    fewest = items_needed(0, limit, limits.confidence)
    outcome = _guarded(increase, bounds.lower, n, limit, fewest)
    note = _guard_note(metric, outcome, increase, limit, fewest)
    return _row(metric, pairs, bounds, limit, fewest, outcome, note)


def _calibration(pairs: Sequence[Pair], limits: Thresholds) -> list[Check]:
    """Whether confidence still means what it meant; nothing where an arm has no probabilities."""
    beliefs = [(a.belief, b.belief) for a, b in pairs if a.belief and b.belief]
    if len(beliefs) < len(pairs):
        return []
    before, after = [a for a, _ in beliefs], [b for _, b in beliefs]
    change, *bounds = calibration_change(before, after, limits.confidence)
    limit, n = limits.max_ece_increase, len(pairs)
    fewest = items_needed(0, limit, limits.confidence)
    outcome = _guarded(change, bounds[0], n, limit, fewest)
    return [
        Check(
            name="ece",
            n=n,
            reference=calibration_error(before),
            candidate=calibration_error(after),
            difference=change,
            lower=bounds[0],
            upper=bounds[1],
            limit=limit,
            needed=fewest,
            outcome=outcome,
            note=_guard_note("ece", outcome, change, limit, fewest),
        )
    ]


def _guarded(observed: float, lower: float, n: int, limit: float, fewest: int) -> Outcome:
    """A guard rail: FAIL above the limit for certain, PASS if no more was seen in enough items.

    Not a proof like accuracy's: half a point of a rate would take thousands of items, and an
    unread or cut answer already counts as wrong there. Enough items is the n in which an unchanged
    arm would prove the limit, 539 for half a point.
    """
    if lower > limit:
        return FAIL
    return PASS if observed <= limit and n >= fewest else INCONCLUSIVE


def _row(
    metric: str,
    pairs: Sequence[Pair],
    bounds: Bounds,
    limit: float,
    needed: int,
    outcome: Outcome,
    note: Note,
) -> Check:
    before, after = means(metric, pairs)
    return Check(
        name=metric,
        n=len(pairs),
        reference=before,
        candidate=after,
        difference=after - before,
        lower=bounds.lower,
        upper=bounds.upper,
        limit=limit,
        needed=needed,
        outcome=outcome,
        note=note,
    )


def _held(name: str, bounds: Bounds, margin: float, _needed: int) -> Note:
    low, allowed = bounds.lower, margin
    return Note(
        en=f"{name}: held, at worst {_points(low)} (margin {_points(allowed)})",
        ko=f"{name}: 유지됨, 최악의 경우 {_points(low, 'ko')} (허용 {_points(allowed, 'ko')})",
    )


def _lost(name: str, bounds: Bounds, margin: float, _needed: int) -> Note:
    best, allowed = bounds.upper, margin
    return Note(
        en=f"{name}: loss proven, at best {_points(best)} (margin {_points(allowed)})",
        ko=f"{name}: 저하가 확인됨, 최선이어도 {_points(best, 'ko')} "
        f"(허용 {_points(allowed, 'ko')})",
    )


def _open(name: str, bounds: Bounds, margin: float, needed: int) -> Note:
    return Note(
        en=f"{name}: undecided between {_points(bounds.lower)} and {_points(bounds.upper)}; "
        f"an equally good arm needs about {needed:,} items to show {_points(margin)}",
        ko=f"{name}: {_points(bounds.lower, 'ko')}과 {_points(bounds.upper, 'ko')} 사이로 "
        f"판정 불가, 차이가 없더라도 {_points(margin, 'ko')} 판정에는 약 {needed:,}문항이 "
        "필요합니다",
    )


_NOTES: dict[Outcome, Callable[[str, Bounds, float, int], Note]] = {
    PASS: _held,
    FAIL: _lost,
    INCONCLUSIVE: _open,
}


def _guard_note(name: str, outcome: Outcome, observed: float, limit: float, fewest: int) -> Note:
    en = {PASS: "within", FAIL: "above", INCONCLUSIVE: f"not settled (needs {fewest:,} items) at"}
    ko = {
        PASS: "한도 이내",
        FAIL: "한도 초과",
        INCONCLUSIVE: f"판정 불가 (최소 {fewest:,}문항 필요)",
    }
    return Note(
        en=f"{name}: {_points(observed)}, {en[outcome]} the limit of {_points(limit)}",
        ko=f"{name}: {_points(observed, 'ko')}, {ko[outcome]} (한도 {_points(limit, 'ko')})",
    )


def _points(share: float, language: str = "en") -> str:
    return f"{100 * share:+.2f}{'점' if language == 'ko' else ' points'}"
