"""Cases: the items on which two arms differ most, side by side, as the paper shows them.

They hold questions and answers: where the records are AI Hub's, cases must not leave the building.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from eval.scores import ItemScore, score_items
from kormed_edge.errors import EvalError


class Case(TypedDict):
    """One item in two arms; `answer` is the reference answer, `change` candidate − reference.

    `flip` is 1 if only the candidate chose the right option, −1 if only the reference did, else 0.
    """

    qa_id: str
    domain: str
    q_type: str
    question: str
    answer: str
    reference_output: str
    candidate_output: str
    reference_value: float
    candidate_value: float
    change: float
    flip: int


class Cases(TypedDict):
    """The largest gains and losses by a metric, of `n` items that both arms answered."""

    metric: str
    n: int
    gains: list[Case]
    losses: list[Case]


def largest_changes(
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
    metric: str = "rouge_ko_L",
    k: int = 3,
) -> Cases:
    """Up to `k` items of most gain and of most loss, JSON-ready.

    A right option that became wrong, or the other way round, comes before any change of the metric
    and decides the direction. Ties go by qa_id; an item that did not change is in neither list.
    Choose a metric of which more is better. Raises `EvalError` for predictions that cannot be
    scored or paired, and for a metric that no item has.
    """
    cases = [
        _case(ours, theirs, metric)
        for ours, theirs in _pairs(reference, candidate)
        if metric in ours[1].values  # and so in the other arm's, which has the same q_type
    ]
    if not cases:
        raise EvalError(
            f"cases: no item of both arms has {metric}",
            "two arms with items in common, and a metric such as rouge_ko_L or accuracy",
            "make eval",
        )
    gains = [case for case in cases if _rank(case) > (0, 0)]
    losses = [case for case in cases if _rank(case) < (0, 0)]
    return {
        "metric": metric,
        "n": len(cases),
        # Both sorts are stable, so the order by qa_id of `_pairs` settles ties.
        "gains": sorted(gains, key=_rank, reverse=True)[:k],
        "losses": sorted(losses, key=_rank)[:k],
    }


def _rank(case: Case) -> tuple[int, float]:
    return case["flip"], case["change"]


Scored = tuple[Mapping[str, Any], ItemScore]


def _pairs(
    reference: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]
) -> list[tuple[Scored, Scored]]:
    """Items of both arms in the order of their ids."""
    ours, theirs = (
        {row["qa_id"]: (row, item) for row, item in zip(rows, score_items(rows), strict=True)}
        for rows in (reference, candidate)
    )
    shared = sorted(ours.keys() & theirs.keys())
    same = ("q_type", "domain", "question", "answer")
    other = [i for i in shared if any(ours[i][0][key] != theirs[i][0][key] for key in same)]
    if other:
        raise EvalError(
            f"{len(other)} items are not the same in both arms: {', '.join(other[:3])}",
            "two arms that were asked the same questions",
            "answer both arms again: make eval",
        )
    return [(ours[i], theirs[i]) for i in shared]


def _case(reference: Scored, candidate: Scored, metric: str) -> Case:
    (row, before), (other, after) = reference, candidate
    first, second = float(before.values[metric]), float(after.values[metric])
    return {
        "qa_id": row["qa_id"],
        "domain": row["domain"],
        "q_type": row["q_type"],
        "question": row["question"],
        "answer": row["answer"],
        "reference_output": row["output"],
        "candidate_output": other["output"],
        "reference_value": first,
        "candidate_value": second,
        "change": second - first,
        "flip": int(after.values.get("accuracy", 0)) - int(before.values.get("accuracy", 0)),
    }
