"""KorMedMCQA as lm-eval runs and scores it, beside our tolerant reading of the same outputs.

Source: task kormedmcqa 3.0 of lm-eval 0.4.13, lm_eval/tasks/kormedmcqa/_template_yaml and
utils.py; the paper that it follows is arXiv 2403.01469, appendix B. What the task states:

- the test split of one subject; the bare prompt of `lm_eval_prompt`, since description, system
  prompt, prefix and chat template are unset, and so is num_fewshot: no examples unless asked for;
- greedy, at most `MAX_TOKENS` tokens, ended by the first of `STOPS`, which is cut off;
- a cascade of patterns, then exact match of one letter. The match ignores case, punctuation, spaces
  and line breaks, which changes nothing: the cascade leaves a capital letter or nothing.
- the group's figure weights subjects by size: the plain mean over items, `overall` here.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.confidence import Belief
from eval.scores import ALL_EMPTY, correct_option, find_problems
from eval.statistics import rate_interval
from kormed_edge.answers import AMBIGUOUS, READER_VERSION, Reading, read_tolerant
from kormed_edge.errors import EvalError
from kormed_edge.records import MULTIPLE_CHOICE, Record, format_question, split_options

TASK = "kormedmcqa 3.0 (lm-eval 0.4.13)"
LETTERS = "ABCDE"
STOPS = ("Q:", "</s>", "<|im_end|>", ".", "\n\n")
MAX_TOKENS = 1024

# Why lm-eval's letter is not the tolerant reader's option, which is taken to be right.
AFTER_STOP = "after_stop"  # "발열이 있다. 정답: B": cut off at the full stop
BESIDE_HANGUL = "beside_hangul"  # "B입니다", "정답은 B번입니다"
NUMBER = "number"  # "3", "답: ③"
WORDS = "words"  # the words of an option without its letter
OTHER_FORM = "other_form"  # unread for another reason, such as a full-width letter
STRAY_LETTER = "stray_letter"  # "환자는 a 형 간염": read although no answer is stated
LAST_OF_SEVERAL = "last_of_several"  # "A 또는 B"
OTHER_LETTER = "other_letter"  # "3) vitamin A", "정답은 B번, A 아님"

_CASCADE = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"정답[:\s]*([A-E])",
        r"정답은\s*([A-E])\s*입니다",
        r"\b([A-E])\.",
        r"\b([A-E])\b",
    )
]


def lm_eval_prompt(record: Record) -> str:
    """The text that lm-eval gives a model for a KorMedMCQA record; it ends in a full-width colon.

    Byte for byte the task's, except that an option with a line break, doubled spaces or spaces
    around it reached the record without them. Raises `EvalError` unless there are five options.
    """
    options = _options(record.question, record.qa_id)
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True)]
    return "\n".join([_stem(record.question, options), *lines, "정답："])


def _options(question: str, qa_id: str) -> list[str]:
    _, options = split_options(question)
    if len(options) != len(LETTERS):
        raise EvalError(f"{qa_id}: {len(options)} options", "five, as every KorMedMCQA row has")
    return options


def _stem(question: str, options: list[str]) -> str:
    """The stem as the row has it; `split_options` would make every kind of line break one."""
    written = format_question("", options)
    return question[: -len(written)] if question.endswith(written) else split_options(question)[0]


def cut_at_stop(output: str, stops: Sequence[str] = STOPS) -> str:
    """All before the first stop string: of lm-eval's, what it would have let a model write."""
    return output[: min((i for s in stops if (i := output.find(s)) >= 0), default=len(output))]


def extract_letter(text: str) -> str | None:
    """The filter extract_answer: the last match of the first pattern that matches.

    Its mistakes are kept: Python's `\\b` sees no border between a Latin letter and Hangul.
    """
    for pattern in _CASCADE:
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    return None


def read_lm_eval(output: str) -> str | None:
    """The letter that lm-eval would compare, or None where it would compare an empty string.

    `output` is what the model wrote, unstripped: a leading blank line is a stop string.
    """
    return extract_letter(cut_at_stop(output))


def sample(records: Sequence[Record], count: int = 200, seed: int = 42) -> list[Record]:
    """`count` records at random, not stratified, in the order given.

    Chosen by SHA-256 of seed and qa_id, so the same on every Python and in whatever order the
    records come. Song & Erdenebayar 2026 took 200 and do not say which: the size is theirs, the
    items are not. Raises `EvalError` if there are fewer.
    """
    if not 1 <= count <= len(records):
        raise EvalError(
            f"{count} records wanted of {len(records)}", f"a count from 1 to {len(records)}"
        )

    def key(record: Record) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{record.qa_id}".encode()).digest(), record.qa_id

    chosen = {record.qa_id for record in sorted(records, key=key)[:count]}
    return [record for record in records if record.qa_id in chosen]


@dataclass(frozen=True, slots=True)
class _Item:
    """One answer's readings as option numbers; `difference` is None where they agree."""

    subject: str
    right: int | None  # never None: find_problems has seen to it
    lm_eval: int | None
    tolerant: int | None
    likelihood: int | None
    difference: str | None


def score_benchmark(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by lm-eval's reading and by ours, overall and by subject, JSON-ready.

    Accuracies are {value, n, low, high, unread} with Wilson's interval at 95 %; an unread answer
    is wrong; `likelihood` is there where predictions carry option probabilities. `differ` counts
    answers that the two read differently, `differences` says how. Only outputs to `lm_eval_prompt`
    give a figure to compare with others' lm-eval results; for outputs to our prompt it is what
    lm-eval's reader would have made of them.
    Raises `EvalError` for predictions that cannot be scored.
    """
    # A model whose first words are a stop string says nothing at all here, and is scored 0 for it.
    problems = [problem for problem in find_problems(predictions) if problem != ALL_EMPTY] or [
        f"{p['qa_id']}: is {p['q_type']}" for p in predictions if p["q_type"] != MULTIPLE_CHOICE
    ]
    if problems:
        raise EvalError(
            f"predictions that cannot be scored: {'; '.join(problems[:5])}",
            "complete predictions of KorMedMCQA questions, all multiple_choice",
        )
    items = [_item(prediction) for prediction in predictions]
    subjects: dict[str, list[_Item]] = defaultdict(list)
    for item in items:
        subjects[item.subject].append(item)
    return {
        "task": TASK,
        "reader_version": READER_VERSION,
        "n": len(items),
        "overall": _scores(items),
        "by_subject": {name: _scores(subjects[name]) for name in sorted(subjects)},
    }


def _item(prediction: Mapping[str, Any]) -> _Item:
    output = prediction["output"]
    options = _options(prediction["question"], prediction["qa_id"])
    letter = read_lm_eval(output)
    theirs = LETTERS.index(letter) + 1 if letter else None
    ours = read_tolerant(output, options)
    difference = None if theirs == ours.option else _difference(output, options, theirs, ours)
    right, probabilities = correct_option(prediction), prediction.get("option_probabilities")
    likelihood = Belief(probabilities, right).option if probabilities and right else None
    return _Item(prediction["domain"], right, theirs, ours.option, likelihood, difference)


def _difference(output: str, options: list[str], theirs: int | None, ours: Reading) -> str:
    if theirs is not None:
        if ours.option is not None:
            return OTHER_LETTER
        return LAST_OF_SEVERAL if ours.reason == AMBIGUOUS else STRAY_LETTER
    seen = cut_at_stop(output)
    if ours.option is None or read_tolerant(seen, options).option != ours.option:
        return AFTER_STOP
    return _unread(unicodedata.normalize("NFKC", seen), ours.option, options[ours.option - 1])


def _unread(text: str, option: int, words: str) -> str:
    """Why lm-eval reads nothing where the tolerant reader finds `option`."""
    letter = LETTERS[option - 1]
    # The number first: "3) C형 간염" is an answer by number.
    if re.search(rf"(?<![\d.]){option}(?=번|입니다|이다|\W|$)", text):
        return NUMBER
    if re.search(rf"[가-힣]{letter}|{letter}[가-힣]", text, re.IGNORECASE):
        return BESIDE_HANGUL
    return WORDS if _unspaced(words.rstrip(" .")) in _unspaced(text) else OTHER_FORM


def _unspaced(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split()).lower()


def _scores(items: Sequence[_Item]) -> dict[str, Any]:
    kinds = Counter(item.difference for item in items if item.difference)
    likeliest = [(item.likelihood, item.right) for item in items if item.likelihood]
    return {
        **({"likelihood": _accuracy(likeliest)} if likeliest else {}),
        "lm_eval": _accuracy([(item.lm_eval, item.right) for item in items]),
        "tolerant": _accuracy([(item.tolerant, item.right) for item in items]),
        "differ": kinds.total(),
        "differences": dict(sorted(kinds.items())),
    }


def _accuracy(pairs: Sequence[tuple[int | None, int | None]]) -> dict[str, float | int]:
    n = len(pairs)
    right = sum(option == correct for option, correct in pairs)
    unread = sum(option is None for option, _ in pairs)
    low, high = rate_interval(right, n)
    return {"value": right / n, "n": n, "low": low, "high": high, "unread": unread}
