"""The gate: two arms' predictions and thresholds in, a verdict with reasons out.

Three outcomes. PASS: the data show that no more than the margin was lost. FAIL: they show that
more was lost, or the inputs cannot be trusted. INCONCLUSIVE: there are too few items to tell, and
the note says how many it would take. Nothing passes for want of evidence: in n items without a
single change, a change could still be as frequent as z² / (n + z²), so a check whose limit is
below that cannot pass with n items.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import fmean, pvariance
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eval.scores import ItemScore, find_problems, score_items
from eval.statistics import (
    critical_value,
    mcnemar,
    paired_bootstrap_lower_bound,
    rate_interval,
    tango_lower_bound,
)
from kormed_edge.config import Thresholds

GATE_VERSION = "1"
POWER = 0.80

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
PASS: Outcome = "PASS"
FAIL: Outcome = "FAIL"
INCONCLUSIVE: Outcome = "INCONCLUSIVE"

Pair = tuple[ItemScore, ItemScore]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Note(_Frozen):
    """One sentence in both languages of the report."""

    en: str
    ko: str


class Check(_Frozen):
    """One row of the verdict. `lower` and `upper` are one-sided bounds of `difference`.

    For flips there is no reference: `candidate` and `difference` are the observed share.
    """

    name: str
    n: int
    reference: float | None
    candidate: float
    difference: float
    lower: float
    upper: float
    limit: float
    outcome: Outcome
    note: Note


class DomainChange(_Frozen):
    """Accuracy in one domain, as information: too few items for a verdict of its own."""

    n: int
    reference: float
    candidate: float
    difference: float


class Changes(_Frozen):
    """What equal accuracy hides: answers that changed, in both directions."""

    n: int
    gained: int
    lost: int
    other_option: int = Field(description="wrong in both arms, but another option or unread")
    mcnemar_p: float
    by_domain: dict[str, DomainChange]


class Verdict(_Frozen):
    """`reasons` say why it is not PASS; without valid inputs there are no checks."""

    gate_version: str = GATE_VERSION
    outcome: Outcome
    reasons: tuple[Note, ...]
    thresholds: Thresholds
    checks: tuple[Check, ...] = ()
    changes: Changes | None = None


def decide(
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
    thresholds: Thresholds | None = None,
    *,
    limited: bool = False,
) -> Verdict:
    """Does the candidate arm answer as well as the reference arm, item by item?

    `limited` tells that a run left items out on purpose. Inputs that are limited, empty,
    malformed, duplicated or not about the same items give FAIL with the reason, not an exception.
    """
    limits = thresholds or Thresholds()
    if problems := _input_problems(reference, candidate, limited):
        return Verdict(outcome=FAIL, reasons=tuple(problems), thresholds=limits)
    pairs = _pairs(reference, candidate)
    choices = _choices(pairs)
    checks = _checks(pairs, limits)
    reasons = [check.note for check in checks if check.outcome != PASS]
    return Verdict(
        outcome=_worst(
            [*(check.outcome for check in checks), *([] if choices else [INCONCLUSIVE])]
        ),
        reasons=tuple(reasons if choices else [*reasons, _NO_CHOICE]),
        thresholds=limits,
        checks=tuple(checks),
        changes=_changes(choices),
    )


_NO_CHOICE = Note(
    en="no multiple-choice items: accuracy was not measured",
    ko="객관식 문항이 없어 정확도를 재지 못했습니다",
)


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    return max(outcomes, key=(PASS, INCONCLUSIVE, FAIL).index)


def _input_problems(reference: Any, candidate: Any, limited: bool) -> list[Note]:
    notes = [_LIMITED] if limited else []
    for en, ko, rows in (("reference", "기준", reference), ("candidate", "후보", candidate)):
        notes += [
            Note(en=f"{en} arm: {problem}", ko=f"{ko} 결과를 쓸 수 없음: {problem}")
            for problem in find_problems(rows)
        ]
    return notes or _mismatches(reference, candidate)


_LIMITED = Note(
    en="limited run: items were left out, so this is not for release",
    ko="일부 문항만 평가한 결과이므로 배포 판정에 쓸 수 없습니다",
)


def _mismatches(
    reference: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]
) -> list[Note]:
    """Items of one arm that the other lacks, or that ask or expect something else there."""
    ours, theirs = ({row["qa_id"]: row for row in rows} for rows in (reference, candidate))
    same = ("q_type", "domain", "question", "answer")
    shared = ours.keys() & theirs.keys()
    other = [i for i in shared if any(ours[i][key] != theirs[i][key] for key in same)]
    found = (
        ("missing from the candidate arm", "후보 결과에 없는 문항", ours.keys() - theirs.keys()),
        ("missing from the reference arm", "기준 결과에 없는 문항", theirs.keys() - ours.keys()),
        ("not the same question and answer in both arms", "두 결과에서 내용이 다른 문항", other),
    )
    return [
        Note(en=f"{len(ids)} items {en}: {_some(ids)}", ko=f"{ko} {len(ids)}개: {_some(ids)}")
        for en, ko, ids in found
        if ids
    ]


def _some(ids: Any) -> str:
    first = sorted(ids)[:3]
    return ", ".join(first) + (", …" if len(ids) > len(first) else "")


def _pairs(
    reference: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]
) -> list[Pair]:
    theirs = {item.qa_id: item for item in score_items(candidate)}
    return [(item, theirs[item.qa_id]) for item in score_items(reference)]


def _choices(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if "accuracy" in pair[0].values]


def _checks(pairs: Sequence[Pair], limits: Thresholds) -> list[Check]:
    choices = _choices(pairs)
    checks = [_rouge(pairs, limits)]
    if choices:
        checks = [_accuracy(choices, limits), _flips(choices, limits), *checks]
        checks.append(_rate("unread", choices, limits))
    return [*checks, *(_rate(name, pairs, limits) for name in ("missing_end", "han_leak"))]


def _accuracy(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    """Non-inferiority by Tango's bounds: the lower at or above the margin passes, the upper
    below it proves a loss."""
    gained, lost = _discordant("accuracy", pairs)
    n = len(pairs)
    needed = items_needed((gained + lost) / n, limits.margin, limits.confidence)
    lower = tango_lower_bound(gained, lost, n, limits.confidence)
    upper = -tango_lower_bound(lost, gained, n, limits.confidence)
    return _three_way("accuracy", pairs, lower, upper, limits.margin, needed)


def _rouge(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    """The same decision by the paired bootstrap.

    A bootstrap of equal texts is a point, however few they are, so PASS also asks for as many
    items as an accuracy without any change would need.
    """
    differences = [b.values["rouge_ko_L"] - a.values["rouge_ko_L"] for a, b in pairs]
    lower = paired_bootstrap_lower_bound(differences, limits.confidence)
    upper = -paired_bootstrap_lower_bound([-d for d in differences], limits.confidence)
    needed = items_needed(pvariance(differences), limits.rouge_margin, limits.confidence)
    fewest = items_needed(0, limits.rouge_margin, limits.confidence)
    return _three_way("rouge_ko_L", pairs, lower, upper, limits.rouge_margin, needed, fewest)


def _three_way(
    metric: str,
    pairs: Sequence[Pair],
    lower: float,
    upper: float,
    margin: float,
    needed: int,
    fewest: int = 0,
) -> Check:
    outcome = INCONCLUSIVE
    if upper < margin:
        outcome = FAIL
    elif lower >= margin and len(pairs) >= fewest:
        outcome = PASS
    note = _NOTES[outcome](metric, lower, upper, margin, needed)
    return _row(metric, pairs, lower, upper, margin, outcome, note)


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


def _flips(pairs: Sequence[Pair], limits: Thresholds) -> Check:
    """Share of items right in one arm only: gains do not make up for losses here."""
    flips, n = sum(_discordant("accuracy", pairs)), len(pairs)
    share, limit = flips / n, limits.max_flips
    lower, upper = rate_interval(flips, n, 2 * limits.confidence - 1)
    outcome = _guarded(share, lower, n, limit, limits.confidence)
    note = _guard_note("flips", outcome, share, limit, limits.confidence)
    return Check(
        name="flips",
        n=n,
        reference=None,
        candidate=share,
        difference=share,
        lower=lower,
        upper=upper,
        limit=limit,
        outcome=outcome,
        note=note,
    )


def _rate(metric: str, pairs: Sequence[Pair], limits: Thresholds) -> Check:
    gained, lost = _discordant(metric, pairs)
    n, limit = len(pairs), limits.max_rate_increase
    lower = tango_lower_bound(gained, lost, n, limits.confidence)
    upper = -tango_lower_bound(lost, gained, n, limits.confidence)
    increase = (gained - lost) / n
    outcome = _guarded(increase, lower, n, limit, limits.confidence)
    note = _guard_note(metric, outcome, increase, limit, limits.confidence)
    return _row(metric, pairs, lower, upper, limit, outcome, note)


def _guarded(observed: float, lower: float, n: int, limit: float, confidence: float) -> Outcome:
    """A guard rail: FAIL above the limit for certain, PASS if no more was seen in enough items.

    Not a proof like accuracy's: half a point of a rate would take thousands of items, and an
    unread or cut answer already counts as wrong there. Enough items is the n in which an unchanged
    arm would prove the limit, 539 for half a point.
    """
    if lower > limit:
        return FAIL
    return PASS if observed <= limit and n >= items_needed(0, limit, confidence) else INCONCLUSIVE


def _discordant(metric: str, pairs: Sequence[Pair]) -> tuple[int, int]:
    """Items that have the property only in the candidate arm, and only in the reference arm."""
    gained = sum(not a.values[metric] and bool(b.values[metric]) for a, b in pairs)
    lost = sum(bool(a.values[metric]) and not b.values[metric] for a, b in pairs)
    return gained, lost


def _means(metric: str, pairs: Sequence[Pair]) -> tuple[float, float]:
    return fmean(a.values[metric] for a, _ in pairs), fmean(b.values[metric] for _, b in pairs)


def _row(
    metric: str,
    pairs: Sequence[Pair],
    lower: float,
    upper: float,
    limit: float,
    outcome: Outcome,
    note: Note,
) -> Check:
    before, after = _means(metric, pairs)
    return Check(
        name=metric,
        n=len(pairs),
        reference=before,
        candidate=after,
        difference=after - before,
        lower=lower,
        upper=upper,
        limit=limit,
        outcome=outcome,
        note=note,
    )


def _held(name: str, lower: float, _upper: float, margin: float, _needed: int) -> Note:
    return Note(
        en=f"{name}: held, at worst {_points(lower)} (margin {_points(margin)})",
        ko=f"{name}: 유지됨, 최악의 경우 {_points(lower, 'ko')} (허용 {_points(margin, 'ko')})",
    )


def _lost(name: str, _lower: float, upper: float, margin: float, _needed: int) -> Note:
    return Note(
        en=f"{name}: loss proven, at best {_points(upper)} (margin {_points(margin)})",
        ko=f"{name}: 저하가 확인됨, 최선이어도 {_points(upper, 'ko')} "
        f"(허용 {_points(margin, 'ko')})",
    )


def _open(name: str, lower: float, upper: float, margin: float, needed: int) -> Note:
    return Note(
        en=f"{name}: undecided between {_points(lower)} and {_points(upper)}; "
        f"an equally good arm needs about {needed:,} items to show {_points(margin)}",
        ko=f"{name}: {_points(lower, 'ko')}과 {_points(upper, 'ko')} 사이로 판정 불가, "
        f"차이가 없더라도 {_points(margin, 'ko')} 판정에는 약 {needed:,}문항이 필요합니다",
    )


_NOTES: dict[Outcome, Callable[[str, float, float, float, int], Note]] = {
    PASS: _held,
    FAIL: _lost,
    INCONCLUSIVE: _open,
}


def _guard_note(
    name: str, outcome: Outcome, observed: float, limit: float, confidence: float
) -> Note:
    fewest = items_needed(0, limit, confidence)
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


def _changes(pairs: Sequence[Pair]) -> Changes | None:
    if not pairs:
        return None
    gained, lost = _discordant("accuracy", pairs)
    other = sum(
        a.option != b.option for a, b in pairs if not (a.values["accuracy"] or b.values["accuracy"])
    )
    return Changes(
        n=len(pairs),
        gained=gained,
        lost=lost,
        other_option=other,
        mcnemar_p=mcnemar(gained, lost),
        by_domain={name: _domain(pairs, name) for name in sorted({a.domain for a, _ in pairs})},
    )


def _domain(pairs: Sequence[Pair], name: str) -> DomainChange:
    own = [pair for pair in pairs if pair[0].domain == name]
    before, after = _means("accuracy", own)
    return DomainChange(n=len(own), reference=before, candidate=after, difference=after - before)
