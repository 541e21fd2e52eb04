"""How far the confidence beside an answer can be believed, as the report tells it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from eval.report_tables import Row, Scores
from eval.report_words import Words

KINDS = {
    "multiple_choice": Words("객관식", "multiple choice"),
    "free_text": Words("단답형·서술형", "short and descriptive"),
}
_SURER = "맞은 답과 틀린 답 가운데 맞은 답의 확신이 더 높을 확률, 50은 우연"
ROWS = {
    "auroc": (
        Words("구별력 (AUROC)", "separation (AUROC)"),
        Words(_SURER, "chance that a right answer is surer than a wrong one, 50 is chance"),
    ),
    "coverage_5": (
        Words("오답 5 %까지의 응답 비율", "coverage at 5 % error"),
        Words("확신이 높은 답부터, 클수록 좋음", "the surest answers first, higher is better"),
    ),
    "coverage_10": (
        Words("오답 10 %까지의 응답 비율", "coverage at 10 % error"),
        Words("확신이 높은 답부터, 클수록 좋음", "the surest answers first, higher is better"),
    ),
    "ece_before": (
        Words("확신의 오차, 보정 전", "calibration error, before"),
        Words("표시할 확신과 정답률의 차이", "gap between confidence and accuracy"),
    ),
    "ece_after": (
        Words("확신의 오차, 보정 후", "calibration error, after"),
        Words("낮을수록 좋음", "lower is better"),
    ),
    "warned": (
        Words("불확실 경고가 붙은 답", "answers with a warning"),
        Words("기준 미만의 확신", "confidence below the threshold"),
    ),
    "error": (
        Words("오답, 모든 답", "wrong, of all answers"),
        Words("자동 채점", "scored automatically"),
    ),
    "error_unwarned": (
        Words("오답, 경고 없는 답", "wrong, of those without a warning"),
        Words("낮을수록 좋음", "lower is better"),
    ),
    "error_warned": (
        Words("오답, 경고가 붙은 답", "wrong, of those with a warning"),
        Words("높을수록 경고가 옳음", "the higher, the better founded the warning"),
    ),
}


class Certainty(NamedTuple):
    """The table of one arm: a column for each kind of item."""

    arm: str
    threshold: float
    kinds: list[Words]
    rows: list[tuple[Words, Words, Row]]


def certainty_tables(scores: Scores) -> list[Certainty]:
    """A table for every arm that was calibrated."""
    return [_table(arm, score["calibration"]) for arm, score in scores.items() if _measured(score)]


def _measured(score: Mapping[str, Any]) -> bool:
    return bool(score.get("calibration"))


def _table(arm: str, measured: Mapping[str, Any]) -> Certainty:
    kinds = [kind for kind in KINDS if kind in measured]
    rows = []
    for metric, (label, hint) in ROWS.items():
        cells = [measured[kind].get(metric) for kind in kinds]
        if any(cells):
            rows.append((label, hint, Row(metric, label, cells)))
    return Certainty(arm, measured[kinds[0]]["threshold"], [KINDS[k] for k in kinds], rows)


def reliability_lines(scores: Scores, arm: str) -> dict[str, dict[str, dict[str, Any]]]:
    """An arm's reliability diagrams: for each kind of item a line before and one after."""
    measured = scores.get(arm, {}).get("calibration", {})
    kinds = [kind for kind in KINDS if kind in measured]
    return {kind: lines for kind in kinds if (lines := _lines(measured[kind]))}


def _lines(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    labels = {"before": "보정 전 · before", "after": "보정 후 · after"}
    found = {label: measured.get(f"reliability_{when}") for when, label in labels.items()}
    return {label: {"reliability": bins} for label, bins in found.items() if bins}
