"""AI Hub 71875 (필수의료 의학지식 데이터) as it is on disk, and KoMedQA's JSONL with the same keys.

Whitespace at the ends of a question or an answer is not content and is cut off. Beyond that, only
the format of a multiple-choice answer is ever repaired, and every repair is recorded.
Source: AI Hub's data set page; docs/data_schema.md of dianakim44/KoMedQA.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.records import DOMAINS, MULTIPLE_CHOICE, Q_TYPES, Record, split_options
from train.label_files import LabelFile, label_files
from train.reading import Collector, OnInvalid, Problem, Reading

EXPECTED = (
    "AI Hub 71875: one JSON object per file with qa_id, domain (14-17), q_type (1-3), question, "
    "answer; or KoMedQA's JSONL"
)
SISTER_SET = "records of the sister set 71874"

_TYPES = {"qa_id": int, "domain": int, "q_type": int, "question": str, "answer": str}
_TYPE_NAMES = {int: "an integer", str: "a string"}
_LABEL = re.compile(r"([1-9])\)\s*(\S.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"([1-9])\)?$")


def read_aihub(path: Path, on_invalid: OnInvalid = "error") -> Reading:
    """Read every record under a folder, in a zip, or in a JSONL file.

    Raises `DataError` with up to 20 problems; with `on_invalid="drop"` the records that have
    problems are left out and listed instead. A damaged or unsafe zip is always an error.
    """
    collector = Collector()
    for file in label_files(path, collector.skipped):
        if file.name.lower().endswith(".jsonl"):
            _add_lines(file, collector)
        else:
            _add_object(file, collector)
    return collector.finish(str(path), EXPECTED, on_invalid)


def _add_lines(file: LabelFile, collector: Collector) -> None:
    # Not splitlines(): it also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(file.data.split(b"\n"), 1):
        if line.strip():
            part = LabelFile(f"{file.name}:{number}", file.origin, line)
            _add_object(part, collector, komedqa=True)


def _add_object(file: LabelFile, collector: Collector, komedqa: bool = False) -> None:
    try:
        data = json.loads(file.data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        collector.problems.append(Problem(file.name, "", f"not JSON in UTF-8: {error}"))
        return
    if komedqa and isinstance(data, dict) and _is_sister(data.get("domain")):
        # KoMedQA holds both sets in one file; AI Hub keeps them apart.
        collector.skipped[SISTER_SET] += 1
        return
    problems = [Problem(file.name, key, what) for key, what in _problems(data, komedqa)]
    if problems:
        collector.problems += problems
        return
    _add_record(data, file, collector)


def _problems(data: Any, extra_keys: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(data, dict):
        yield "", f"holds a {type(data).__name__} where one object is expected"
        return
    for key, kind in _TYPES.items():
        if key not in data:
            yield key, "is missing"
        elif type(data[key]) is not kind:
            yield key, f"is {data[key]!r:.60}, not {_TYPE_NAMES[kind]}"
        elif problem := _value_problem(key, data[key]):
            yield key, problem
    if not extra_keys:
        for key in sorted(data.keys() - _TYPES.keys()):
            yield key, "is not a key of AI Hub 71875"


def _value_problem(key: str, value: Any) -> str:
    if key == "domain" and value not in DOMAINS:
        sister = "belongs to the sister set 71874" if _is_sister(value) else "is unknown"
        return f"{value} {sister}; 14 to 17 are known"
    if key == "q_type" and value not in Q_TYPES:
        return f"{value} is unknown; 1 to 3 are known"
    if isinstance(value, str) and not value.strip():
        return "is empty"
    if isinstance(value, str) and _SURROGATE.search(value):
        return "holds half of a surrogate pair, which is no character"
    return ""


def _is_sister(domain: Any) -> bool:
    return type(domain) is int and 1 <= domain <= 13


def _add_record(data: dict[str, Any], file: LabelFile, collector: Collector) -> None:
    q_type, question, answer = Q_TYPES[data["q_type"]], data["question"].strip(), data["answer"]
    repair = ""
    try:
        if q_type == MULTIPLE_CHOICE:
            answer, repair = labelled_answer(readable_options(question), answer)
    except ValueError as error:
        key, what = error.args
        collector.problems.append(Problem(file.name, key, what))
        return
    record = Record(str(data["qa_id"]), DOMAINS[data["domain"]], q_type, question, answer.strip())
    repairs = [Problem(file.name, "answer", repair)] if repair else []
    collector.add(record, file.origin, file.name, repairs)


def readable_options(question: str) -> list[str]:
    """The options of a question. Raises `ValueError(key, what)` if they cannot be told apart."""
    stem, options = split_options(question)
    if not options:
        raise ValueError("question", 'has no readable options "1) …", each on its own line')
    if not stem:
        raise ValueError("question", "has options but no stem")
    if not all(options):
        raise ValueError("question", f"has an empty option {options.index('') + 1}")
    return options


def labelled_answer(options: Sequence[str], answer: str) -> tuple[str, str]:
    """The answer as "4) text", and what had to be repaired, or "".

    Some answers go on with an explanation after the option's text; it is kept. Raises
    `ValueError(key, what)` when the answer is none of the options, or could be two of them.
    """
    answer = answer.strip()
    match = _LABEL.match(answer)
    if not match:
        return _completed_answer(options, answer)
    number, text = int(match[1]), match[2]
    if not _names_option(options, number, text):
        raise ValueError("answer", f"{answer!r:.60} is not option {number}")
    labelled = f"{number}) {text}"
    return labelled, "" if labelled == answer else "one space set after the option number"


def _names_option(options: Sequence[str], number: int, text: str) -> bool:
    if number > len(options):
        return False
    flat, option = _flat(text), _flat(options[number - 1])
    return flat == option or (flat.startswith(option) and flat not in map(_flat, options))


def _completed_answer(options: Sequence[str], answer: str) -> tuple[str, str]:
    by_text = {i for i, option in enumerate(options, 1) if _flat(option) == _flat(answer)}
    by_number = {int(m[1])} if (m := _NUMBER.match(answer)) else set()
    chosen = by_text | {n for n in by_number if n <= len(options)}
    if not chosen:
        raise ValueError("answer", f"{answer!r:.60} is not among the options")
    if len(chosen) > 1:
        raise ValueError("answer", f"{answer!r:.60} could be option {sorted(chosen)}")
    number = chosen.pop()
    repair = "option number added" if by_text else "option text added"
    return f"{number}) {options[number - 1]}", repair


def _flat(text: str) -> str:
    return " ".join(text.split())
