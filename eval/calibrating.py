"""Fitting a calibration on validation answers, and measuring it on others: pure functions.

What is right: multiple choice by the option read, a short answer by exact match after
normalization, a descriptive one by a ROUGE-L of `GOOD_ROUGE` or more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from eval.confidence import Belief, Claim, calibration_error, calibration_interval, reliability
from eval.scores import ItemScore, score_items
from eval.separation import SEPARATION_VERSION, auroc, coverage_at, warned
from kormed_edge.calibration import Calibration, OptionScale, TextScale
from kormed_edge.records import DESCRIPTIVE, MULTIPLE_CHOICE

FIT_VERSION = "1"
GOOD_ROUGE = 0.5
"""rouge_ko ROUGE-L from which a descriptive answer counts as right. Answers to other questions
reach 0.15 as a rule and 0.27 at most, by the grammar that all Korean texts share (the samples'
48 descriptive answers, each against all others)."""
TEMPERATURES = (0.2, 20.0)
"""Limits of a fit: a handful of items that are all right would ask for 0."""
ERRORS = {"coverage_5": 0.05, "coverage_10": 0.10}
_LEAST = 5e-7  # predictions hold probabilities to six places: what is 0 there is below this


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice answer: what the model held of the options, the one read, and if right."""

    belief: Belief
    option: int | None
    correct: bool


@dataclass(frozen=True, slots=True)
class FreeText:
    """A short or descriptive answer: the mean log-probability of its tokens, and if right."""

    mean_logprob: float
    correct: bool


def mark(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[Choice], list[FreeText]]:
    """The answers that have a confidence, marked; predictions of an older kit may lack it."""
    items = score_items(predictions) if predictions else []
    choices = [
        Choice(item.belief, item.option, bool(item.values["accuracy"]))
        for item in items
        if item.belief
    ]
    free = [
        FreeText(prediction["mean_logprob"], _is_right(item))
        for item, prediction in zip(items, predictions, strict=True)
        if item.q_type != MULTIPLE_CHOICE and prediction.get("mean_logprob") is not None
    ]
    return choices, free


def _is_right(item: ItemScore) -> bool:
    if item.q_type == DESCRIPTIVE:
        return item.values["rouge_ko_L"] >= GOOD_ROUGE
    return bool(item.values["exact_match"])


def calibrate(
    predictions: Sequence[Mapping[str, Any]], model_sha256: str, threshold: float,
    adapter_sha256: str | None = None,
) -> Calibration:  # fmt: skip
    """The calibration of a model, or of one with an adapter over it, from its answers to the
    validation split."""
    choices, free = mark(predictions)
    return Calibration(
        model_sha256=model_sha256,
        adapter_sha256=adapter_sha256,
        options=fit_options([answer.belief for answer in choices]) if choices else None,
        text=fit_text(free) if free else None,
        threshold=threshold,
        fit_version=FIT_VERSION,
    )


def fit_options(beliefs: Sequence[Belief]) -> OptionScale:
    """The temperature under which the right options are likeliest (Guo et al. 2017).

    One number, so that a few hundred items are enough; it never changes which option is best.
    """
    logs = [np.log(np.clip(belief.probabilities, _LEAST, 1)) for belief in beliefs]

    def loss(log_temperature: float) -> float:
        scaled = [log / exp(log_temperature) for log in logs]
        return sum(
            float(np.logaddexp.reduce(log) - log[belief.right - 1])
            for log, belief in zip(scaled, beliefs, strict=True)
        )

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return OptionScale(temperature=round(exp(best.x), 4), n=len(beliefs))


def fit_text(answers: Sequence[FreeText]) -> TextScale:
    """Platt's sigmoid with his targets (Platt 1999), and a slope that is not negative.

    Instead of 1 and 0 the targets are (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2): of ten answers that
    are all wrong it learns 1 in 12, not 0. Isotonic regression would learn 0, and steps that few
    items do not support.
    """
    x = np.array([answer.mean_logprob for answer in answers])
    right = np.array([answer.correct for answer in answers])
    hits, misses = right.sum(), (~right).sum()
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))

    def loss(parameters: Any) -> float:
        z = parameters[0] * x + parameters[1]
        return float((np.logaddexp(0, z) - target * z).sum())

    best = minimize(loss, (0.0, 0.0), bounds=((0, None), (None, None)), method="L-BFGS-B")
    slope, intercept = best.x
    return TextScale(slope=round(float(slope), 4), intercept=round(float(intercept), 4), n=len(x))


Pair = tuple[Claim, Claim]
"""An answer with the confidence before calibration, and after."""


def measure(
    predictions: Sequence[Mapping[str, Any]], calibration: Calibration
) -> dict[str, dict[str, Any]]:
    """What a calibration is worth on answers that it has not seen, JSON-ready, by kind.

    `multiple_choice` and `free_text`, where there are such items and a scale for them.
    """
    choices, free = mark(predictions)
    options, text = calibration.options, calibration.text
    pairs = {
        "multiple_choice": [_of_choice(answer, options) for answer in choices] if options else [],
        "free_text": [_of_text(answer, text) for answer in free] if text else [],
    }
    return {kind: _measured(some, calibration.threshold) for kind, some in pairs.items() if some}


def _of_choice(answer: Choice, scale: OptionScale) -> Pair:
    """The confidence in the option answered; 0 where none can be read."""
    raw = answer.belief.probabilities
    before, after = (p[answer.option - 1] if answer.option else 0.0 for p in (raw, scale.of(raw)))
    return Claim(before, answer.correct), Claim(after, answer.correct)


def _of_text(answer: FreeText, scale: TextScale) -> Pair:
    """Before: the geometric mean of its tokens' probabilities."""
    raw = answer.mean_logprob
    return Claim(exp(raw), answer.correct), Claim(scale.of(raw), answer.correct)


def _measured(pairs: Sequence[Pair], threshold: float) -> dict[str, Any]:
    before, after = zip(*pairs, strict=True)
    area = auroc(after)
    return {
        "fit_version": FIT_VERSION,
        "separation_version": SEPARATION_VERSION,
        "threshold": threshold,
        **_errors("before", before),
        **_errors("after", after),
        **({"auroc": area} if area else {}),
        **{name: coverage_at(after, error) for name, error in ERRORS.items()},
        **warned(after, threshold),
    }


def _errors(when: str, claims: Sequence[Claim]) -> dict[str, Any]:
    """Calibration error and its bins, of the answers with which a confidence is shown."""
    shown = [claim for claim in claims if claim.confidence > 0]
    if not shown:
        return {}
    low, high = calibration_interval(shown)
    error = {"value": calibration_error(shown), "n": len(shown), "low": low, "high": high}
    bins = [asdict(bin) for bin in reliability(shown)]
    return {f"ece_{when}": error, f"reliability_{when}": bins}
