"""Scores of one arm: every prediction by every metric, then means with n and an interval.

Accuracy and unread are about multiple choice, exact match and character F1 about short answers,
BERTScore about descriptive ones, the rest about every item. A metric without items is left out,
never 0.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.confidence import (
    CONFIDENCE_VERSION,
    Belief,
    calibration_error,
    calibration_interval,
    reliability,
)
from eval.rouge import Family, rouge_batch, rouge_versions
from eval.statistics import bootstrap_interval, group_mean_interval, rate_interval
from eval.text import (
    TEXT_VERSION,
    char_f1,
    exact_match,
    han_leak,
    missing_end,
    non_korean_share,
    repetition,
)
from kormed_edge.answers import READER_VERSION, read_strict, read_tolerant
from kormed_edge.errors import EvalError
from kormed_edge.records import MULTIPLE_CHOICE, Q_TYPES, SHORT_ANSWER, split_options

if TYPE_CHECKING:
    from eval.bertscore import BertScorer

SCORER_VERSION = "1"

Number = dict[str, float | int]

_ROUGE: dict[Family, tuple[str, ...]] = {
    "ko": ("rouge1", "rouge2", "rougeL"),
    "char": ("rougeL",),
    "paper": ("rouge1", "rouge2", "rougeL"),
}
_SHOWN_PROBLEMS = 5
ALL_EMPTY = "every output is empty"


class PredictionShape(BaseModel):
    """What a line of a predictions file must hold; more keys may stand beside these."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    qa_id: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    q_type: Literal["multiple_choice", "short_answer", "descriptive"]
    question: str = Field(pattern=r"\S")
    answer: str = Field(pattern=r"\S")
    output: str
    finish_reason: Literal["stop", "length"]
    n_tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    option_probabilities: list[float] = []
    mean_logprob: float | None = Field(default=None, le=0)


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One item's values by metric; a metric that does not apply is absent.

    `option` and `reason` are the tolerant reader's, None outside multiple choice; `belief` is
    there where the model's option probabilities are.
    """

    qa_id: str
    domain: str
    q_type: str
    values: dict[str, bool | float]
    option: int | None = None
    reason: str | None = None
    belief: Belief | None = None


def find_problems(predictions: Sequence[Any]) -> list[str]:
    """What keeps predictions from being scored: none at all, wrong shape, an id twice.

    At most five are named, so that a wrong file does not print a thousand lines.
    """
    if not isinstance(predictions, Sequence) or isinstance(predictions, str | bytes):
        return ["not a list of predictions"]
    if not predictions:
        return ["no predictions"]
    found = [p for i, row in enumerate(predictions, 1) if (p := _problem(row, i))]
    ids = Counter(row["qa_id"] for row in predictions) if not found else Counter[str]()
    found += [f"{qa_id}: {count} times" for qa_id, count in ids.items() if count > 1]
    if not found and not any(row["output"].strip() for row in predictions):
        found = [ALL_EMPTY]
    rest = len(found) - _SHOWN_PROBLEMS
    return found[:_SHOWN_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else [])


def _problem(row: Any, line: int) -> str | None:
    try:
        shape = PredictionShape.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"line {line}: {'.'.join(map(str, first['loc']))} {first['msg']}"
    if shape.q_type == MULTIPLE_CHOICE and correct_option(row) is None:
        return f"{shape.qa_id}: the reference answer names none of the question's options"
    if shape.option_probabilities and len(shape.option_probabilities) != len(
        split_options(shape.question)[1]
    ):
        return f"{shape.qa_id}: {len(shape.option_probabilities)} option probabilities"
    return None


def correct_option(prediction: Mapping[str, Any]) -> int | None:
    """The right option, from the "N)" that a multiple-choice reference begins with."""
    _, options = split_options(prediction["question"])
    return read_strict(prediction["answer"], len(options))


def score_item(prediction: Mapping[str, Any]) -> ItemScore:
    return score_items([prediction])[0]


def score_items(predictions: Sequence[Mapping[str, Any]]) -> list[ItemScore]:
    """Score predictions one by one; in a batch only because ROUGE is faster so.

    Raises `EvalError` for predictions that `find_problems` objects to.
    """
    if problems := find_problems(predictions):
        raise EvalError(
            f"predictions that cannot be scored: {'; '.join(problems)}",
            "one complete prediction per qa_id, with finish_reason stop or length",
            "answer this arm again: make eval",
        )
    rouges = _rouges([(p["output"], p["answer"]) for p in predictions])
    return [_scored(p, rouge) for p, rouge in zip(predictions, rouges, strict=True)]


def _rouges(pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    values: list[dict[str, float]] = [{} for _ in pairs]
    for family, names in _ROUGE.items():
        for item, scores in zip(values, rouge_batch(family, pairs), strict=True):
            item |= {f"rouge_{family}_{name.removeprefix('rouge')}": scores[name] for name in names}
    return values


def _scored(prediction: Mapping[str, Any], rouge: dict[str, float]) -> ItemScore:
    output, q_type = prediction["output"], prediction["q_type"]
    values: dict[str, bool | float] = {
        **rouge,
        "han_leak": han_leak(output),
        "missing_end": missing_end(prediction["finish_reason"]),
        "non_korean_share": non_korean_share(output),
        "repetition": repetition(output),
        "length": float(len(output)),
    }
    option, reason, belief = None, None, None
    if q_type == MULTIPLE_CHOICE:
        option, reason, choice = _choice(prediction)
        belief = _belief(prediction)
        values = choice | _believed(belief) | values
    elif q_type == SHORT_ANSWER:
        reference = prediction["answer"]
        match, f1 = exact_match(output, reference), char_f1(output, reference)
        values = {"exact_match": match, "char_f1": f1} | values
    qa_id, domain = prediction["qa_id"], prediction["domain"]
    return ItemScore(qa_id, domain, q_type, values, option, reason, belief)


def _belief(prediction: Mapping[str, Any]) -> Belief | None:
    """The model's option probabilities beside the right option."""
    probabilities, right = prediction.get("option_probabilities"), correct_option(prediction)
    return Belief(probabilities, right) if probabilities and right else None


def _believed(belief: Belief | None) -> dict[str, bool | float]:
    """Accuracy of the option that the model itself prefers, which needs no reader."""
    if belief is None:
        return {}
    return {"accuracy_likelihood": belief.option == belief.right, "brier": belief.brier}


def _choice(prediction: Mapping[str, Any]) -> tuple[int | None, str, dict[str, bool | float]]:
    """What was chosen, how it was said, and the metrics of that; unread counts as wrong."""
    _, options = split_options(prediction["question"])
    right = correct_option(prediction)
    reading = read_tolerant(prediction["output"], options)
    strict = read_strict(prediction["output"], len(options))
    values: dict[str, bool | float] = {
        "accuracy": reading.option == right,
        "accuracy_strict": strict == right,
        "unread": reading.option is None,
    }
    return reading.option, reading.reason, values


def score_arm(
    predictions: Sequence[Mapping[str, Any]], bertscore: "BertScorer | None" = None
) -> dict[str, Any]:
    """All scores of one arm, JSON-ready; every number is {value, n, low, high}.

    `overall` is the plain mean over items. `type_mean` is the paper's overall figure (its Table
    4): the mean of the three question types' means, for the metrics that all three have. `length`
    is in characters; intervals are two-sided at 95 %.
    """
    items = score_items(predictions)
    if bertscore:
        meant = bertscore.by_id(predictions)
        items = [replace(i, values=i.values | meant.get(i.qa_id, {})) for i in items]
    return {
        "scorer_version": SCORER_VERSION,
        "reader_version": READER_VERSION,
        "text_version": TEXT_VERSION,
        "confidence_version": CONFIDENCE_VERSION,
        "rouge_versions": rouge_versions(),
        **({"bertscore_versions": bertscore.versions} if bertscore else {}),
        "n": len(items),
        "overall": summarize(items),
        "type_mean": _type_mean(items),
        "by_q_type": _by(items, "q_type"),
        "by_domain": _by(items, "domain"),
        "by_domain_and_q_type": {
            domain: _by(members, "q_type") for domain, members in _groups(items, "domain").items()
        },
        "reliability": _reliability(items),
        "readings": dict(Counter(item.reason for item in items if item.reason)),
    }


def _reliability(items: Sequence[ItemScore]) -> list[dict[str, float]]:
    """The bins of the reliability diagram."""
    beliefs = [item.belief for item in items if item.belief]
    return [asdict(bin) for bin in reliability(beliefs)] if beliefs else []


def summarize(items: Iterable[ItemScore]) -> dict[str, Number]:
    members = list(items)
    numbers = {metric: _number(values) for metric, values in _columns(members).items()}
    if beliefs := [item.belief for item in members if item.belief]:
        low, high = calibration_interval(beliefs)
        error = calibration_error(beliefs)
        numbers["ece"] = {"value": error, "n": len(beliefs), "low": low, "high": high}
    return numbers


def _by(items: Sequence[ItemScore], key: str) -> dict[str, dict[str, Number]]:
    return {group: summarize(members) for group, members in _groups(items, key).items()}


def _groups(items: Sequence[ItemScore], key: str) -> dict[str, list[ItemScore]]:
    groups: dict[str, list[ItemScore]] = defaultdict(list)
    for item in items:
        groups[getattr(item, key)].append(item)
    return dict(sorted(groups.items()))


def _columns(items: Iterable[ItemScore]) -> dict[str, list[bool | float]]:
    columns: dict[str, list[bool | float]] = defaultdict(list)
    for item in items:
        for metric, value in item.values.items():
            columns[metric].append(value)
    return columns


def _number(values: Sequence[bool | float]) -> Number:
    """Wilson's interval for a rate, where the bootstrap of 24 right of 24 would be a point."""
    if all(isinstance(value, bool) for value in values):
        low, high = rate_interval(sum(map(int, values)), len(values))
    else:
        low, high = bootstrap_interval(values)
    return {"value": fmean(values), "n": len(values), "low": low, "high": high}


def _type_mean(items: Sequence[ItemScore]) -> dict[str, Number]:
    groups = [_columns(group) for group in _groups(items, "q_type").values()]
    if len(groups) < len(Q_TYPES):
        return {}
    shared = [metric for metric in groups[0] if all(metric in group for group in groups)]
    return {metric: _group_number([group[metric] for group in groups]) for metric in shared}


def _group_number(groups: Sequence[Sequence[bool | float]]) -> Number:
    low, high = group_mean_interval(groups)
    value = fmean(fmean(group) for group in groups)
    return {"value": value, "n": sum(map(len, groups)), "low": low, "high": high}
