"""Preference pairs: a question, the answer to prefer, the answer to leave.

JSONL, one pair a line: what `kormed audit export --kind dpo` writes, or made by hand.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from kormed_edge.errors import DataError
from kormed_edge.prompts import END, START
from kormed_edge.records import Record
from train.dataset import encode_records
from train.duplicates import normalised

_SHOWN = 20
_KEYS = '"question" or "prompt", "chosen" and "rejected", each a text'


@dataclass(frozen=True, slots=True)
class Pair:
    """`line` is the place in the file that it came from, counted from 1."""

    line: int
    question: str
    chosen: str
    rejected: str


def read_pairs(path: Path) -> list[Pair]:
    """Every pair of a file. Raises `DataError` that names each bad line by its number."""
    try:
        # Not splitlines(): it also splits at U+2028, which JSON leaves as it is inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "JSONL in UTF-8") from None
    pairs, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            pair = _parse(number, line)
            if isinstance(pair, Pair):
                pairs.append(pair)
            else:
                problems.append((number, pair))
    if problems or not pairs:
        raise _refused(path, problems or [(1, "no pair in the file")])
    return pairs


def require_unseen(path: Path, pairs: Iterable[Pair], held_out: Sequence[Record]) -> None:
    """Raise `DataError` for pairs about a question that is kept for validation or test."""
    kept = {normalised(record.question): record.qa_id for record in held_out}
    problems = [
        (pair.line, f"its question is {kept[key]} of the validation or test split")
        for pair in pairs
        if (key := normalised(pair.question)) in kept
    ]
    if problems:
        raise _refused(path, problems)


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out; those of one question stay together.

    The same pairs and seed give the same split. Raises `DataError` with fewer than two questions.
    """

    def place(question: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{question}".encode()).digest(), question

    questions = sorted({normalised(pair.question) for pair in pairs}, key=place)
    if len(questions) < 2:
        raise DataError(
            f"pairs about {len(questions)} question(s)",
            "at least two, one of them to validate on",
            "collect more corrections",
        )
    number = min(max(1, round(share * len(questions))), len(questions) - 1)
    held_out = set(questions[:number])
    parts: tuple[list[Pair], list[Pair]] = [], []
    for pair in pairs:
        parts[normalised(pair.question) in held_out].append(pair)
    return parts


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids as TRL's collator wants them, equal to fine-tuning's; and how many answers are cut.

    A pair whose prompt leaves no room for an answer is left out.
    """
    answers = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    questions = [pair.question for pair in pairs for _ in range(2)]
    records = [Record("", "", "", q, a) for q, a in zip(questions, answers, strict=True)]
    encoded, cut = encode_records(records, tokenizer, max_length)
    rows = []
    for chosen, rejected in zip(encoded[::2], encoded[1::2], strict=True):
        prompt = chosen["completion_mask"].count(0)
        if prompt < max_length:
            rows.append(
                {
                    "prompt_ids": chosen["input_ids"][:prompt],
                    "chosen_ids": chosen["input_ids"][prompt:],
                    "rejected_ids": rejected["input_ids"][prompt:],
                }
            )
    return rows, cut


def _parse(number: int, line: str) -> Pair | str:
    """The pair of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object"
    if ("question" in row) == ("prompt" in row):
        return 'either "question" or "prompt", not both or neither'
    question = "question" if "question" in row else "prompt"
    if unknown := set(row) - {question, "chosen", "rejected"}:
        return f"unknown key {min(unknown)}"
    for key in (question, "chosen", "rejected"):
        if problem := _wrong_text(row.get(key)):
            return f"{key} {problem}"
    pair = Pair(number, row[question], row["chosen"], row["rejected"])
    if _same(pair.chosen, pair.rejected):
        return "chosen and rejected are the same"
    return pair


def _wrong_text(value: Any) -> str:
    if not isinstance(value, str):
        return "is missing" if value is None else f"is a {type(value).__name__}, not a text"
    if not value.strip():
        return "is empty"
    if START in value or END in value:
        return f"holds {START} or {END}, which would end the turn"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "holds half a character (a lone surrogate)"
    return ""


def _same(chosen: str, rejected: str) -> bool:
    return normalize("NFC", chosen).strip() == normalize("NFC", rejected).strip()


def _refused(path: Path, problems: Sequence[tuple[int, str]]) -> DataError:
    shown = "".join(f"\n  line {number}: {what}" for number, what in problems[:_SHOWN])
    rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return DataError(
        f"{path}: {len(problems)} bad line(s){shown}{rest}",
        f"one JSON object a line: {_KEYS}",
        "mend or remove these lines; see docs/data.md",
    )
