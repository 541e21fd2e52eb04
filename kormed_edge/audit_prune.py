"""Removing old rows of an audit log so that the rest of the chain still proves itself."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from kormed_edge.audit_chain import Place, to_json
from kormed_edge.audit_file import COLUMNS


def prune_older(
    connection: sqlite3.Connection, before: str, insert: Callable[[str, dict[str, Any]], int]
) -> int:
    """Remove, in the transaction under way, what is older than a UTC time; how many rows.

    A `pruned` row is chained on first: it names the last row removed of each table and its hash,
    and the triggers of the tables let nothing go that it does not cover.
    """
    last = anchors(connection)
    ends = {table: _last_older(connection, table, before) for table in COLUMNS}
    if not any(ends.values()):
        return 0
    places = {table: end or last.get(table) for table, end in ends.items()}
    told = {table: {"id": at.id, "hash": at.hash} for table, at in places.items() if at}
    insert("entries", {"event": "pruned", "parameters": to_json(told)})
    return sum(
        connection.execute(f"DELETE FROM {table} WHERE id <= ?", (end.id,)).rowcount
        for table, end in ends.items()
        if end
    )


def anchors(connection: sqlite3.Connection) -> dict[str, Place]:
    """By table the last row that was pruned, as the last `pruned` row tells it."""
    query = "SELECT parameters FROM entries WHERE event = 'pruned' ORDER BY id DESC LIMIT 1"
    found = connection.execute(query).fetchone()
    places: dict[str, dict[str, Any]] = json.loads(found[0]) if found else {}
    return {table: Place(place["id"], place["hash"]) for table, place in places.items()}


def _last_older(connection: sqlite3.Connection, table: str, before: str) -> Place | None:
    """The last of the rows that go: those before the first young one, whatever a clock that was
    set back has written later."""
    young = f"(SELECT min(id) FROM {table} WHERE time >= :before)"
    query = (
        f"SELECT id, hash FROM {table} WHERE {young} IS NULL OR id < {young} "
        "ORDER BY id DESC LIMIT 1"
    )
    found = connection.execute(query, {"before": before}).fetchone()
    return Place(*found) if found else None
