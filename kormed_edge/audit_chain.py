"""A chain of rows: each holds the hash of the row before it, so none can change unseen.

The hash is a plain SHA-256: whoever can write the file can also make a new chain from any row on.
What shows that is a `Place` that was noted elsewhere.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

_PLACE = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a chain by its id and hash; written as `ID:HASH`."""

    id: int
    hash: str

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"


class BrokenLinkError(Exception):
    """The first row that is not what the chain says: `id`, and `what` is wrong with it."""

    def __init__(self, id: int, what: str) -> None:
        super().__init__(f"row {id} {what}")
        self.id = id


def parse_place(text: str) -> Place | None:
    match = _PLACE.fullmatch(text.strip())
    return Place(int(match[1]), match[2]) if match else None


def canonical(value: Any) -> bytes:
    """JSON in one form only: keys sorted, ASCII, no spaces. Bytes stand there as their SHA-256."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_digest
    ).encode("ascii")


def to_json(value: Any) -> str:
    return canonical(value).decode("ascii")


def _digest(value: bytes) -> str:
    return sha256(value).hexdigest()


def link(row: Mapping[str, Any]) -> str:
    """The hash of a row: over all its columns, that of the row before it too, but its own."""
    return _digest(canonical({name: value for name, value in row.items() if name != "hash"}))


def walk(rows: Iterable[Mapping[str, Any]], start: Place, known: Place | None = None) -> Place:
    """The last place of a chain that goes on from `start`.

    `known` is a place noted earlier. Raises `BrokenLinkError` for the first row that is missing,
    changed, out of its place, or not the known one.
    """
    at = start
    for row in rows:
        _check_row(row, at)
        at = Place(row["id"], row["hash"])
        if known is not None and at.id == known.id and at != known:
            raise BrokenLinkError(at.id, f"has another hash than the one noted, {known.hash}")
    if known is not None and at.id < known.id:
        raise BrokenLinkError(at.id + 1, f"is missing: the chain ends before row {known.id}")
    return at


def _check_row(row: Mapping[str, Any], before: Place) -> None:
    if row["id"] != before.id + 1:
        raise BrokenLinkError(before.id + 1, f"is missing: {row['id']} follows {before.id}")
    if row["previous"] != before.hash:
        raise BrokenLinkError(row["id"], f"does not follow row {before.id}")
    if row["hash"] != link(row):
        raise BrokenLinkError(row["id"], "was changed: its hash is not that of its columns")
