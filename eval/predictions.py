"""Predictions: one JSON line an item, appended as it is answered, so that a stopped arm resumes.

An arm has one file. While several ranks answer it, each appends to one of its own beside it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.errors import EvalError
from kormed_edge.records import MULTIPLE_CHOICE, Record, split_options

Prediction = dict[str, Any]


def file_name(arm: str) -> str:
    """Name of an arm's predictions file; a colon is no part of a portable file name."""
    return arm.replace(":", "-") + ".jsonl"


def make_prediction(
    record: Record,
    output: str,
    finish_reason: str,
    n_tokens: int,
    seconds: float,
    option_probabilities: Sequence[float] = (),
    mean_logprob: float | None = None,
) -> Prediction:
    """One line of a predictions file. `option_probabilities` are there for multiple choice: what
    the model held each option's number for, before it wrote one. `mean_logprob` is there for free
    text of a GGUF: the mean log-probability of its tokens, in nats."""
    likelihood = {"option_probabilities": [round(p, 6) for p in option_probabilities]}
    certainty = {} if mean_logprob is None else {"mean_logprob": round(mean_logprob, 6)}
    return {
        **record.to_dict(),
        "output": output,
        "finish_reason": finish_reason,
        "n_tokens": n_tokens,
        "seconds": round(seconds, 4),
        **(likelihood if option_probabilities else {}),
        **certainty,
    }


def option_numbers(record: Record) -> tuple[str, ...]:
    """The numbers of a multiple-choice question's options, of which its answer begins with one."""
    if record.q_type != MULTIPLE_CHOICE:
        return ()
    _, options = split_options(record.question)
    return tuple(str(number) for number in range(1, len(options) + 1))


def read_predictions(path: Path) -> list[Prediction]:
    """Every complete line of a predictions file; none if there is no file.

    Split at line feeds only: a model's text may hold U+2028, which `splitlines` would cut at.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
    except FileNotFoundError:
        return []
    except ValueError as error:  # neither UTF-8 nor JSON
        raise EvalError(f"{path}: {error}", "one JSON object a line", "make eval") from None


def rank_file(path: Path, rank: int) -> Path:
    """Where a rank writes: adapter.rank0.jsonl for adapter.jsonl."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def collect(path: Path, records: Iterable[Record]) -> None:
    """Move what ranks wrote into the arm's file, and put that into the order of the records.

    A kill on the way loses nothing: rank files go when the arm's file is whole, and an item that
    stands in both is kept once.
    """
    parts = sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))
    found: dict[str, Prediction] = {}
    for part in (path, *parts):
        _drop_cut_line(part)
        for prediction in read_predictions(part):
            found.setdefault(prediction["qa_id"], prediction)
    place = {record.qa_id: number for number, record in enumerate(records)}
    ordered = sorted(found.values(), key=lambda p: place.get(p["qa_id"], len(place)))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(map(_line, ordered))
        file.flush()
        os.fsync(file.fileno())  # before the only other copies go
    temporary.replace(path)
    for part in parts:
        part.unlink()


def remaining(path: Path, records: Iterable[Record]) -> list[Record]:
    """Records that a stopped arm has not answered; a line that a kill cut short is removed."""
    _drop_cut_line(path)
    done = {p["qa_id"] for p in read_predictions(path)}
    return [record for record in records if record.qa_id not in done]


def append_predictions(path: Path, predictions: Iterable[Prediction]) -> Iterator[int]:
    """Write predictions as they come; yields how many are written."""
    with path.open("a", encoding="utf-8") as file:
        for count, prediction in enumerate(predictions, 1):
            file.write(_line(prediction))
            file.flush()
            yield count


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction, ensure_ascii=False) + "\n"


def _drop_cut_line(path: Path) -> None:
    if path.exists():
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
