"""Flips: multiple-choice items whose answer changed between two arms, in either direction."""

from collections.abc import Sequence
from typing import NamedTuple

from eval.predictions import Prediction
from eval.scores import ItemScore, score_items


class Flip(NamedTuple):
    """One item in both arms. The options are what was read from the texts, None if unread."""

    qa_id: str
    reference: Prediction
    candidate: Prediction
    reference_option: int | None
    candidate_option: int | None


class Flips(NamedTuple):
    """Items by qa_id: right to wrong, wrong to right, and wrong in both with another option."""

    lost: list[Flip]
    gained: list[Flip]
    other: list[Flip]


def find_flips(reference: Sequence[Prediction], candidate: Sequence[Prediction]) -> Flips:
    """Both arms must be about the same items, as the gate finds before it checks any.

    Raises `EvalError` for predictions that cannot be scored.
    """
    flips = Flips([], [], [])
    (rows, items), (others, theirs) = _by_id(reference), _by_id(candidate)
    for qa_id in sorted(rows):
        before, after = items[qa_id], theirs[qa_id]
        flip = Flip(qa_id, rows[qa_id], others[qa_id], before.option, after.option)
        if (kind := _kind(before, after)) is not None:
            flips[kind].append(flip)
    return flips


def _by_id(rows: Sequence[Prediction]) -> tuple[dict[str, Prediction], dict[str, ItemScore]]:
    return {row["qa_id"]: row for row in rows}, {item.qa_id: item for item in score_items(rows)}


def _kind(before: ItemScore, after: ItemScore) -> int | None:
    """The index in `Flips`, None for an item that did not change or has no options."""
    if "accuracy" not in before.values:
        return None
    right, still = before.values["accuracy"], after.values["accuracy"]
    if right or still:
        return None if right and still else 0 if right else 1
    return None if before.option == after.option else 2
