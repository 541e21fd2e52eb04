"""The acceptance set on site: sealed answers of a file held against this machine's answers of it.

The reference was made by the same GGUF on the builder's machine, so nothing was trained, merged or
quantized in between: what differs is the processor and the order of its sums. The gate's checks
decide, with two changes. Flips may be `SAME_FILE_FLIPS` whatever the type, because the wider limits
are there for quantization. And wording is compared by characters, because morphemes take the whole
of Kiwi's model, which the edge image does not hold.

Of an item whose answer travels as a hash only, an equal answer is known to be equal in everything;
a different one is taken at its worst. What passes so passes; what does not is undecided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from eval.checks import Pair, check_all
from eval.confidence import Belief
from eval.predictions import Prediction
from eval.scores import ItemScore, correct_option, find_problems
from eval.text import char_f1, han_leak, missing_end
from eval.verdict import FAIL, INCONCLUSIVE, PASS, Check, Note, Verdict, worst
from kormed_edge.answers import read_tolerant
from kormed_edge.config import FLIP_LIMITS, Thresholds
from kormed_edge.records import MULTIPLE_CHOICE, Record, split_options

SAME_FILE_FLIPS = FLIP_LIMITS["bf16"]
"""Share of flips: the limit of types that lose next to nothing, since here nothing may be lost."""
WORDING = "wording"
_GATE_WORDING = "rouge_ko_L"  # the gate's check of wording; its decision is taken over
Kind = Literal["lost", "gained", "other", "text", "unknown"]
Guess = Literal["right", "flipped", "same"]
"""What an unknown sealed answer is taken for: right in everything; right just where this machine
is wrong; no different from this machine's."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item that both machines answered. `sealed` is None where only hashes travel."""

    record: Record
    output_sha256: str
    sealed: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """An item with another answer here. Options are None if unread, or not to be known."""

    kind: Kind
    item: Item
    answer: Prediction
    sealed_option: int | None = None
    option: int | None = None


@dataclass(frozen=True)
class Comparison:
    verdict: Verdict
    identical: int
    changed: tuple[Changed, ...]

    @property
    def only_small(self) -> bool:
        """Whether it is undecided for want of items alone: nothing that was seen is over a limit.

        An answer that only hashes tell of may have been anything, so it is no mere want of items.
        """
        unknown = any(change.kind == "unknown" for change in self.changed)
        undecided = self.verdict.outcome == INCONCLUSIVE and not unknown
        checks = self.verdict.checks
        return undecided and bool(checks) and all(map(_is_within, checks))


def site_thresholds(max_flips: float = SAME_FILE_FLIPS) -> Thresholds:
    """The gate's defaults, and the flips that equal files may have."""
    return Thresholds(max_flips=max_flips)


def hash_text(text: str) -> str:
    """SHA-256 of a text as the bundle's acceptance lines have it."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def compare(
    items: Sequence[Item], answers: Mapping[Record, Prediction], limits: Thresholds
) -> Comparison:
    """Hold this machine's answers against the sealed ones; every item must have its answer."""
    pairs = [(item, answers[item.record]) for item in items]
    changed = [_change(item, answer) for item, answer in pairs if not _is_same(item, answer)]
    return Comparison(decide(pairs, limits), len(items) - len(changed), tuple(changed))


def decide(pairs: Sequence[tuple[Item, Prediction]], limits: Thresholds) -> Verdict:
    """The verdict on items and what this machine answered to them.

    Nothing to compare is INCONCLUSIVE. Answers that can not be scored are FAIL with the reason.
    """
    if not pairs:
        return Verdict(outcome=INCONCLUSIVE, reasons=(_NOTHING,), thresholds=limits)
    if problems := _problems(pairs):
        return Verdict(outcome=FAIL, reasons=tuple(problems), thresholds=limits)
    unknown = sum(item.sealed is None and not _is_same(item, answer) for item, answer in pairs)
    checks = _checks(pairs, limits)
    reasons = [check.note for check in checks if check.outcome != PASS]
    outcomes = [check.outcome for check in checks]
    if not any(item.record.q_type == MULTIPLE_CHOICE for item, _ in pairs):
        reasons.append(_NO_CHOICE)
        outcomes.append(INCONCLUSIVE)
    outcome = worst(outcomes)
    if unknown and outcome != PASS:
        reasons.append(_unknown_note(unknown))
        outcome = FAIL if _fails_at_best(pairs, limits) else INCONCLUSIVE
    return Verdict(outcome=outcome, reasons=tuple(reasons), thresholds=limits, checks=tuple(checks))


_NOTHING = Note(
    en="no item could be compared: give your own copy of the records with --records",
    ko="비교할 수 있는 문항이 없습니다: 기관이 가진 원본 문항을 --records로 지정하십시오",
)
_NO_CHOICE = Note(
    en="no multiple-choice items: accuracy was not measured",
    ko="객관식 문항이 없어 정확도를 재지 못했습니다",
)


def _unknown_note(n: int) -> Note:
    return Note(
        en=f"{n} answers differ from sealed ones of which only hashes are here; taken at their "
        "worst they do not pass, and what they were is not to be known",
        ko=f"해시만 있는 문항 중 {n}개의 답이 봉인된 답과 다릅니다. 가장 불리하게 보면 합격이 "
        "아니며, 봉인된 답의 내용은 알 수 없습니다",
    )


def _problems(pairs: Sequence[tuple[Item, Prediction]]) -> list[Note]:
    """What keeps the answers from being scored; the sealed ones may be as odd as they like."""
    found = find_problems([{**answer, "qa_id": str(i)} for i, (_, answer) in enumerate(pairs)])
    return [
        Note(en=f"answers of this machine: {problem}", ko=f"이 장비의 답을 쓸 수 없음: {problem}")
        for problem in found
    ]


def _checks(pairs: Sequence[tuple[Item, Prediction]], limits: Thresholds) -> list[Check]:
    """The gate's checks; where a sealed answer is not known, each against the worst it can be."""
    checks = check_all([_scores(item, answer) for item, answer in pairs], limits)
    if any(item.sealed is None for item, _ in pairs):
        flipped = [_scores(item, answer, "flipped") for item, answer in pairs]
        flips = [check for check in check_all(flipped, limits) if check.name == "flips"]
        checks = [*flips, *(check for check in checks if check.name != "flips")]
    return [_by_characters(check) if check.name == _GATE_WORDING else check for check in checks]


def _fails_at_best(pairs: Sequence[tuple[Item, Prediction]], limits: Thresholds) -> bool:
    """Whether a loss is proven even if every unknown answer is as good as this machine's."""
    best = [_scores(item, answer, "same") for item, answer in pairs]
    return any(check.outcome == FAIL for check in check_all(best, limits))


def _by_characters(check: Check) -> Check:
    note = {language: text.replace(_GATE_WORDING, WORDING) for language, text in check.note}
    return check.model_copy(update={"name": WORDING, "note": Note(**note)})


def _scores(item: Item, answer: Prediction, guess: Guess = "right") -> Pair:
    """Sealed and own score; `guess` is what stands in for a sealed answer that is not known."""
    own = score(answer)
    if item.sealed is not None:
        return score(item.sealed), own
    if guess == "same" or _is_same(item, answer):
        return own, own
    values: dict[str, bool | float] = {"han_leak": False, "missing_end": False, _GATE_WORDING: 1.0}
    if "accuracy" in own.values:
        right = not own.values["accuracy"] if guess == "flipped" else True
        values |= {"accuracy": right, "unread": False}
    return ItemScore(own.qa_id, own.domain, own.q_type, values), own


def score(prediction: Mapping[str, Any]) -> ItemScore:
    """One answer by what the checks ask, with nothing that the edge image lacks."""
    output, right = prediction["output"], prediction["answer"]
    values: dict[str, bool | float] = {
        "han_leak": han_leak(output),
        "missing_end": missing_end(prediction["finish_reason"]),
        _GATE_WORDING: char_f1(output, right),
    }
    option, belief = None, None
    if prediction["q_type"] == MULTIPLE_CHOICE:
        number = correct_option(prediction)
        option = _option(prediction)
        values |= {"accuracy": option == number, "unread": option is None}
        probabilities = prediction.get("option_probabilities")
        belief = Belief(probabilities, number) if probabilities and number else None
    return ItemScore(
        prediction["qa_id"], prediction["domain"], prediction["q_type"], values, option,
        belief=belief,
    )  # fmt: skip


def _option(prediction: Mapping[str, Any]) -> int | None:
    _, options = split_options(prediction["question"])
    return read_tolerant(prediction["output"], options).option


def _change(item: Item, answer: Prediction) -> Changed:
    own = score(answer)
    if item.sealed is None:
        return Changed("unknown", item, answer, option=own.option)
    sealed = score(item.sealed)
    return Changed(_kind(sealed, own), item, answer, sealed.option, own.option)


def _kind(sealed: ItemScore, own: ItemScore) -> Kind:
    """What became of the answer; "text" where the option, or an answer without, is as before."""
    if sealed.option == own.option:
        return "text"
    if sealed.values["accuracy"]:
        return "lost"
    return "gained" if own.values["accuracy"] else "other"


def _is_same(item: Item, answer: Prediction) -> bool:
    return hash_text(answer["output"]) == item.output_sha256


def _is_within(check: Check) -> bool:
    """Whether what was seen keeps the limit, certain or not; a margin is a limit below zero."""
    if check.limit < 0:
        return check.difference >= check.limit
    return check.difference <= check.limit
