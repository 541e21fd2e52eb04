"""Reading an audit log, beside a service that writes it: verified, and one object a request."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kormed_edge.audit_chain import BrokenLinkError, Place, walk
from kormed_edge.audit_content import unseal
from kormed_edge.audit_file import (
    COLUMNS,
    AuditError,
    errors_of,
    genesis,
    open_to_read,
    transaction_to_read,
)
from kormed_edge.audit_prune import anchors

_ENDED = (
    "answer_hmac", "prompt_tokens", "completion_tokens", "seconds_to_first", "seconds",
    "finish_reason", "option", "confidence", "warnings",
)  # fmt: skip
_BEGAN = (
    "request_id", "endpoint", "principal", "model_sha256", "adapter", "adapter_sha256",
    "parameters", "prompt_hmac",
)  # fmt: skip
Row = dict[str, Any]


class AuditReader:
    """A log opened to read, which a `with` closes; texts are told only with the key of them."""

    def __init__(self, path: Path, content_key: bytes | None = None) -> None:
        self.path, self._key = path, content_key
        self.connection = open_to_read(path)

    @property
    def has_key(self) -> bool:
        return self._key is not None

    def __enter__(self) -> "AuditReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def verify(self, known: Mapping[str, Place] | None = None) -> dict[str, Place]:
        """The end of each table's chain, which is worth noting elsewhere.

        `known` are ends that were noted earlier: only they show that rows at the end are missing,
        or that a whole chain was made anew. `AuditError` names the first row that is not right.
        """
        with errors_of(self.path), transaction_to_read(self.connection):
            self._check_pages()
            try:
                return {table: self._walk(table, (known or {}).get(table)) for table in COLUMNS}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._broken("entries", "a pruned row was changed") from None

    def _walk(self, table: str, known: Place | None) -> Place:
        start = anchors(self.connection).get(table) or genesis(self.connection, table)
        if known is not None and known.id < start.id:
            raise AuditError(
                f"row {known.id} of {table} was pruned and cannot be compared",
                f"a row noted after row {start.id}",
            )
        if known is not None and known.id == start.id and known != start:
            raise self._broken(table, f"row {known.id} has another hash than the one noted")
        try:
            return walk(self.rows(table), start, known)
        except BrokenLinkError as broken:
            raise self._broken(table, str(broken)) from None

    def _broken(self, table: str, what: str) -> AuditError:
        return AuditError(
            f"{self.path}: {table}: {what}",
            "a chain of rows as the service wrote them",
            "keep the file as it is, and compare it with its backups",
        )

    def _check_pages(self) -> None:
        [found] = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._broken("the file", found)

    def rows(self, table: str) -> Iterator[Row]:
        """A table's rows as they are stored, in the order of the chain."""
        names = COLUMNS[table]
        columns = ", ".join(f'"{name}"' for name in names)
        cursor = self.connection.execute(f"SELECT {columns} FROM {table} ORDER BY id")
        return (dict(zip(names, values, strict=True)) for values in cursor)

    def requests(self) -> Iterator[Row]:
        """One object a request, in the order of their beginnings; `ended` is null where the
        service died first. Prompt and answer are in it where they were kept and there is a key."""
        for began in self.rows("entries"):
            if began["event"] == "began":
                yield self._request(began, self._ended(began["request_id"]))

    def request(self, request_id: str) -> Row | None:
        began = self._event(request_id, "began")
        return self._request(began, self._ended(request_id)) if began else None

    def feedback(self) -> Iterator[Row]:
        """What clinicians said, in its order, without what the chain needs."""
        for row in self.rows("feedback"):
            told = {n: row[n] for n in ("time", "request_id", "principal", "verdict", "comment")}
            yield {**told, "id": row["id"], **self._opened("feedback", row)}

    def _request(self, began: Row, ended: Row) -> Row:
        told = {name: began[name] for name in _BEGAN} | {name: ended[name] for name in _ENDED}
        told |= {"began": began["time"], "ended": ended["time"]}
        told["personal_data"] = json.loads(began["warnings"])
        for name in ("parameters", "warnings"):
            told[name] = json.loads(told[name] or "null")
        return told | self._opened("entries", began) | self._opened("entries", ended)

    def _ended(self, request_id: str) -> Row:
        return self._event(request_id, "ended") or dict.fromkeys(COLUMNS["entries"])

    def _event(self, request_id: str, event: str) -> Row | None:
        columns = ", ".join(f'"{name}"' for name in COLUMNS["entries"])
        query = f"SELECT {columns} FROM entries WHERE request_id = ? AND event = ?"
        with errors_of(self.path):
            found = self.connection.execute(query, (request_id, event)).fetchone()
        return dict(zip(COLUMNS["entries"], found, strict=True)) if found else None

    def _opened(self, table: str, row: Row) -> Row:
        if self._key is None or row["content"] is None:
            return {}
        opened: Row = unseal(self._key, row["content"], (table, row["id"], row["request_id"]))
        return opened
