"""The gate: two arms' predictions and thresholds in, a verdict with reasons out.

Three outcomes. PASS: the data show that no more than the margin was lost. FAIL: they show that
more was lost, or the inputs cannot be trusted. INCONCLUSIVE: there are too few items to tell, and
the note says how many it would take. Nothing passes for want of evidence: in n items without a
single change, a change could still be as frequent as z² / (n + z²), so a check whose limit is
below that cannot pass with n items.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from eval.checks import Pair, check_all, discordant, means, multiple_choice
from eval.scores import find_problems, score_items
from eval.statistics import mcnemar
from eval.verdict import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Changes,
    DomainChange,
    Note,
    Verdict,
    worst,
)
from kormed_edge.config import Thresholds


def decide(
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
    thresholds: Thresholds | None = None,
    *,
    asked: Collection[str] | None = None,
    limited: bool = False,
) -> Verdict:
    """Does the candidate arm answer as well as the reference arm, item by item?

    `asked` are the ids of the items that both were to answer; `limited` tells that a run left
    items out on purpose. Inputs that are limited, empty, malformed, duplicated or not about the
    same items give FAIL with the reason, not an exception.
    """
    limits = thresholds or Thresholds()
    problems = _input_problems(reference, candidate, limited)
    if not problems and asked is not None:
        problems = _unasked(reference, set(asked))
    if problems:
        return Verdict(outcome=FAIL, reasons=tuple(problems), thresholds=limits)
    pairs = _pairs(reference, candidate)
    checks = check_all(pairs, limits)
    reasons = [check.note for check in checks if check.outcome != PASS]
    outcomes = [check.outcome for check in checks]
    changes = _changes(multiple_choice(pairs))
    if changes is None:
        reasons.append(_NO_CHOICE)
        outcomes.append(INCONCLUSIVE)
    return Verdict(
        outcome=worst(outcomes),
        reasons=tuple(reasons),
        thresholds=limits,
        checks=tuple(checks),
        changes=changes,
    )


_NO_CHOICE = Note(
    en="no multiple-choice items: accuracy was not measured",
    ko="객관식 문항이 없어 정확도를 재지 못했습니다",
)


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


def _unasked(answered: Sequence[Mapping[str, Any]], asked: set[str]) -> list[Note]:
    """Items of the test split that neither arm answered, or answers to none of its items."""
    found = {row["qa_id"] for row in answered}
    pairs = (
        ("of the test split have no answer", "평가 문항 중 답이 없는 것", asked - found),
        ("are not in the test split", "평가 문항에 없는 것", found - asked),
    )
    return [
        Note(en=f"{len(ids)} items {en}: {_some(ids)}", ko=f"{ko} {len(ids)}개: {_some(ids)}")
        for en, ko, ids in pairs
        if ids
    ]


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


def _changes(pairs: Sequence[Pair]) -> Changes | None:
    if not pairs:
        return None
    gained, lost = discordant("accuracy", pairs)
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
    before, after = means("accuracy", own)
    return DomainChange(n=len(own), reference=before, candidate=after, difference=after - before)
