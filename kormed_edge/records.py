"""The record: one question and its answer, in the codes of AI Hub 71875.

`domain` and `q_type` are kept as English names; AI Hub's numbers exist only at its border.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kormed_edge.errors import StageError

MULTIPLE_CHOICE = "multiple_choice"
SHORT_ANSWER = "short_answer"
DESCRIPTIVE = "descriptive"

Q_TYPES = {1: MULTIPLE_CHOICE, 2: SHORT_ANSWER, 3: DESCRIPTIVE}
DOMAINS = {14: "obgyn", 15: "pediatrics", 16: "emergency", 17: "internal_medicine"}

KOREAN = {
    MULTIPLE_CHOICE: "객관식",
    SHORT_ANSWER: "단답형",
    DESCRIPTIVE: "서술형",
    "internal_medicine": "내과",
    "pediatrics": "소아청소년과",
    "obgyn": "산부인과",
    "emergency": "응급의학과",
    "doctor": "의사",
    "nurse": "간호사",
    "pharm": "약사",
    "dentist": "치과의사",
}

_OPTION_LINE = re.compile(r"\s*([1-9])\)(.*)")


@dataclass(frozen=True, slots=True)
class Record:
    """One QA pair. `domain` is a value of `DOMAINS`, or the subject of a KorMedMCQA row."""

    qa_id: str
    domain: str
    q_type: str
    question: str
    answer: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def split_options(question: str) -> tuple[str, list[str]]:
    """Split a question into its stem and its options, in order; no options give an empty list.

    Options are the last run of lines "1) …", "2) …" and so on. A stem may hold lines of the same
    look, bullets and decimals such as "1.5)", so the search goes from the end.
    """
    lines = question.splitlines()
    marks = [(i, int(m[1])) for i, line in enumerate(lines) if (m := _OPTION_LINE.match(line))]
    run: list[int] = []
    expected = 0
    for i, number in reversed(marks):
        if run and number != expected:
            break
        run.insert(0, i)
        expected = number - 1  # 0 after the first option, which ends the run at any mark
    if len(run) < 2 or _number(lines[run[0]]) != 1:
        return question.strip(), []
    ends = [*run[1:], len(lines)]
    options = [_joined(lines[start:end]) for start, end in zip(run, ends, strict=True)]
    return "\n".join(lines[: run[0]]).strip(), options


def _number(line: str) -> int:
    match = _OPTION_LINE.match(line)
    return int(match[1]) if match else 0


def _joined(lines: list[str]) -> str:
    """One option's text; a long option may run over several lines."""
    match = _OPTION_LINE.match(lines[0])
    first = match[2] if match else lines[0]
    return " ".join(part.strip() for part in [first, *lines[1:]] if part.strip())


def format_question(stem: str, options: list[str]) -> str:
    """The question text of a multiple-choice record, as AI Hub writes it."""
    return "\n".join([stem, *(f"{i}) {text}" for i, text in enumerate(options, 1))])


def read_records(path: Path) -> list[Record]:
    """Records of one split, one JSON object a line, as `write_records` wrote them."""
    try:
        # Not splitlines(): it also splits at U+2028, which JSON leaves as it is inside a text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise StageError(f"{path} is missing", "a split of `kormed data`", "make data") from None
    return [Record(**json.loads(line)) for line in lines if line]


def write_records(path: Path, records: Iterable[Record]) -> None:
    lines = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
