"""KorMedMCQA: licensing examination questions of doctors, nurses, pharmacists and dentists.

From a local jsonl, csv or parquet file, or from the hub. Rows become records of the same form as
AI Hub's: options inside the question, the answer as "3) text".
Source: sean0042/KorMedMCQA on the Hugging Face hub, CC BY-NC 2.0.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kormed_edge.errors import DataError
from kormed_edge.records import MULTIPLE_CHOICE, Record, format_question
from train.reading import Collector, OnInvalid, Origin, Problem, Reading

HUB_ID = "sean0042/KorMedMCQA"
SUBJECTS = ("doctor", "nurse", "pharm", "dentist")
OPTIONS = ("A", "B", "C", "D", "E")
EXPECTED = (
    "KorMedMCQA: subject (doctor, nurse, pharm, dentist), question, A to E, answer (1-5); "
    "optional year, period, q_number, row_id, split"
)
FEWSHOT = "rows of the fewshot split"

Row = dict[str, Any] | str  # a row, or why a line is none
_ORIGINS: dict[str, Origin] = {"train": "training", "dev": "training", "test": "validation"}


def read_kormedmcqa(source: str, on_invalid: OnInvalid = "error") -> Reading:
    """Read a local file, or all subjects and splits of the hub's data set.

    The hub's test split has the origin "validation", train and dev have "training"; the fewshot
    rows are examples for prompts and are skipped. Raises `DataError` with up to 20 problems.
    """
    collector = Collector()
    rows = _hub_rows() if source == HUB_ID else _file_rows(Path(source))
    for index, (name, row) in enumerate(rows, 1):
        if isinstance(row, str):
            collector.problems.append(Problem(name, "", row))
        elif row.get("split") == "fewshot":
            collector.skipped[FEWSHOT] += 1
        else:
            _add_row(row, name, index, collector)
    return collector.finish(source, EXPECTED, on_invalid)


def _add_row(row: dict[str, Any], name: str, index: int, collector: Collector) -> None:
    problems = [Problem(name, key, what) for key, what in _problems(row)]
    if problems:
        collector.problems += problems
        return
    options = [" ".join(str(row[key]).split()) for key in OPTIONS]
    number = int(row["answer"])
    record = Record(
        _qa_id(row, index),
        row["subject"],
        MULTIPLE_CHOICE,
        format_question(row["question"].strip(), options),
        f"{number}) {options[number - 1]}",
    )
    collector.add(record, _ORIGINS.get(str(row.get("split"))), name)


def _problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("subject", "question", *OPTIONS, "answer"):
        value = row.get(key)
        if value is None:
            yield key, "is missing"
        elif key != "answer" and not isinstance(value, str):
            yield key, f"is {value!r:.60}, not a string"
        elif not str(value).strip():
            yield key, "is empty"
        elif key == "subject" and value not in SUBJECTS:
            yield key, f"{value!r:.60} is unknown"
        elif key == "answer" and str(value) not in ("1", "2", "3", "4", "5"):
            yield key, f"is {value!r:.60}, not one of 1 to 5"


def _qa_id(row: dict[str, Any], index: int) -> str:
    if row.get("row_id"):
        return str(row["row_id"])
    parts = [row.get(key) for key in ("year", "period", "q_number")]
    if all(part not in (None, "") for part in parts):
        return "-".join(str(part) for part in (row["subject"], *parts))
    return f"{row['subject']}-{index}"


def _file_rows(path: Path) -> Iterable[tuple[str, Row]]:
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is a {path.suffix} file", "a jsonl, csv or parquet file")
    try:
        return [(f"{path.name}:{n}", row) for n, row in enumerate(reader(path), 1)]
    except (OSError, ValueError, csv.Error) as error:
        # pyarrow's ArrowInvalid is a ValueError.
        raise DataError(f"{path} cannot be read: {error}", EXPECTED) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if line.strip():
                yield _json_row(line)


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"holds a {type(row).__name__}, not an object"


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path).to_pylist()


def _hub_rows() -> Iterator[tuple[str, Row]]:
    for subject in SUBJECTS:
        for split, rows in _hub_splits(subject).items():
            for number, row in enumerate(rows, 1):
                yield f"{subject}/{split}:{number}", {**row, "split": split}


def _hub_splits(subject: str) -> dict[str, Iterable[dict[str, Any]]]:
    try:
        from datasets import load_dataset

        return dict(load_dataset(HUB_ID, subject).items())
    except ImportError as error:
        raise DataError(
            "the package datasets is not installed",
            f"it, to fetch {HUB_ID}",
            "pip install 'kormed-edge[train]'",
        ) from error
    except (OSError, ValueError) as error:
        # The hub's own errors, no network among them, are OSErrors; an unknown config a ValueError.
        raise DataError(
            f"{HUB_ID} ({subject}) cannot be fetched: {error}",
            "a connection to the hub, or the data set in its cache",
            "fetch it on a machine with a network and pass the jsonl, csv or parquet file",
        ) from error
