"""Items out of acceptance lines: whole ones, and those that a site's own records complete."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.acceptance import Item, hash_text
from eval.predictions import Prediction
from eval.scores import find_problems
from kormed_edge.bundle_evidence import hash_record
from kormed_edge.errors import EvalError
from kormed_edge.manifest import sha256_file
from kormed_edge.records import Record, read_records


@dataclass(frozen=True)
class SealedSet:
    """An acceptance set as it can be asked here.

    `hashed` counts items that travel as hashes, `missing` those of them that no record of the site
    completes. Texts of a set that is not `open` stay out of the report.
    """

    name: str
    source: str
    sha256: str
    open: bool
    items: tuple[Item, ...]
    hashed: int = 0
    missing: int = 0

    @property
    def total(self) -> int:
        return len(self.items) + self.missing

    def without(self, asked: Iterable[Record]) -> "SealedSet":
        """The set less what another set asks already, so that nothing counts twice."""
        known = set(asked)
        items = tuple(item for item in self.items if item.record not in known)
        return SealedSet(
            self.name, self.source, self.sha256, self.open, items, self.hashed, self.missing
        )


def read_set(
    path: Path, *, name: str, source: str, open_texts: bool, records: Sequence[Record]
) -> SealedSet:
    """The set of an acceptance file. `EvalError` names the file and what is wrong with it."""
    rows = _read_rows(path)
    whole = [row for row in rows if "qa_id" in row]
    hashed = [row for row in rows if "qa_id" not in row]
    if whole and (problems := find_problems([_complete(row) for row in whole])):
        raise EvalError(f"{path}: {'; '.join(problems)}", "predictions of one model", "make eval")
    own = {hash_record(record): record for record in records} if hashed else {}
    try:
        found = [
            Item(own[record], output)
            for record, output in ((row["record_sha256"], row["output_sha256"]) for row in hashed)
            if record in own
        ]
    except KeyError as error:
        raise EvalError(f"{path}: a line without {error}", "an acceptance set") from None
    items = (*map(_item, whole), *found)
    missing = len(hashed) - len(found)
    return SealedSet(name, source, sha256_file(path), open_texts, items, len(hashed), missing)


def read_site_records(path: Path) -> list[Record]:
    """A site's own copy of the records, as `kormed data` writes them."""
    try:
        return read_records(path)
    except (ValueError, TypeError) as error:  # no JSON, or other keys
        raise EvalError(
            f"{path}: {error}", "one record a line: qa_id, domain, q_type, question, answer",
            "take test.jsonl of `kormed data` on your copy of the data",
        ) from None  # fmt: skip


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise EvalError(f"{path}: {error}", "one JSON object a line") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvalError(f"{path} holds no items", "one JSON object a line")
    return rows


def _item(row: dict[str, Any]) -> Item:
    record = Record(**{key: row[key] for key in Record.__slots__})
    return Item(record, hash_text(row["output"]), _complete(row))


def _complete(row: dict[str, Any]) -> Prediction:
    return {"seconds": 0.0, **row}  # what a builder's machine took is not sealed
