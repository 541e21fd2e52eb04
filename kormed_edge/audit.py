"""The audit log of the service: what was asked of which model by whom, in an append-only chain.

A request has two rows. `began` is on the disk before the model sees the question, so that a power
cut in the middle of an answer leaves the evidence that there was one; `ended` is on the disk before
the end of the answer is sent. The view that joins them is `AuditReader.requests`.
"""

import hmac
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from kormed_edge.audit_chain import Place, link, to_json
from kormed_edge.audit_content import seal
from kormed_edge.audit_file import (
    COLUMNS,
    AuditError,
    errors_of,
    genesis,
    lock,
    open_log,
)
from kormed_edge.audit_prune import anchors, prune_older
from kormed_edge.phi import find_phi, mask
from kormed_edge.transaction import transaction

LOG = logging.getLogger(__name__)
Prompt = str | Sequence[Any]
"""A question; or messages, or token ids, as a client gave them."""


@dataclass(frozen=True)
class Began:
    """A request that is accepted. `parameters` hold numbers and names, never texts."""

    request_id: str
    endpoint: str
    principal: str
    model_sha256: str
    prompt: Prompt
    adapter: str | None = None
    adapter_sha256: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ended:
    """How it ended. Durations are in seconds from its beginning; `warnings` are codes."""

    request_id: str
    answer: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds_to_first: float | None = None
    seconds: float | None = None
    option: int | None = None
    confidence: float | None = None
    warnings: Sequence[str] = ()


class AuditLog:
    """Writes a log; any thread may append, and one at a time does.

    Every method that appends returns when the row is on the disk, with its id. It raises
    `AuditError` when that cannot be; with `required=False` it then returns None, and the rows that
    were lost are counted in a row of their own as soon as one can be written again.
    """

    def __init__(
        self, path: Path, *, content_key: bytes | None = None, required: bool = True,
        retention_days: int | None = None, alone: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """`alone` refuses a file that another service holds. Rows older than `retention_days` are
        pruned with the first request of a day."""
        self.path, self.required, self.lost = path, required, 0
        self._key, self._now, self._retention = content_key, now, retention_days
        self._pruned_on = ""
        self._mutex = threading.Lock()
        self.connection, self._salt = open_log(path)
        try:
            self._held = lock(path) if alone else None
        except AuditError:
            self.connection.close()
            raise

    @property
    def keeps_content(self) -> bool:
        return self._key is not None

    def began(self, request: Began) -> int | None:
        text = _text_of(request.prompt)
        row = {
            "event": "began",
            "request_id": request.request_id,
            "endpoint": request.endpoint,
            "principal": request.principal,
            "model_sha256": request.model_sha256,
            "adapter": request.adapter,
            "adapter_sha256": request.adapter_sha256,
            "parameters": to_json(request.parameters or {}),
            "prompt_hmac": self.hash(text),
            "warnings": to_json(sorted({finding.kind for finding in find_phi(text)})),
        }
        return self._safely(lambda: self._append(row, {"prompt": _masked(request.prompt)}))

    def ended(self, outcome: Ended) -> int | None:
        first, seconds, confidence = (
            None if value is None else round(float(value), 6)
            for value in (outcome.seconds_to_first, outcome.seconds, outcome.confidence)
        )
        row = {
            "event": "ended",
            "request_id": outcome.request_id,
            "answer_hmac": self.hash(outcome.answer),
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "seconds_to_first": first,
            "seconds": seconds,
            "finish_reason": outcome.finish_reason,
            "option": outcome.option,
            "confidence": confidence,
            "warnings": to_json(list(outcome.warnings)),
        }
        return self._safely(lambda: self._append(row, {"answer": mask(outcome.answer)}))

    def feedback(self, row: Mapping[str, Any], content: Mapping[str, Any]) -> int | None:
        """Append to the table of feedback; use `kormed_edge.feedback.give`."""
        return self._safely(lambda: self._append(row, content, "feedback"))

    def hash(self, text: str) -> str:
        """HMAC-SHA-256 of a text under this log's salt."""
        return hmac.digest(self._salt, text.encode("utf-8", "surrogatepass"), sha256).hex()

    def knows(self, request_id: str) -> bool:
        query = "SELECT 1 FROM entries WHERE request_id = ? AND event = 'began'"
        with self._mutex, errors_of(self.path):
            return self.connection.execute(query, (request_id,)).fetchone() is not None

    def prune(self, days: int) -> int:
        """Remove rows older than `days`, oldest first up to the first that is younger; how many.

        In one transaction a `pruned` row is chained on that names the last row removed of each
        table and its hash, and then they go: the chain still holds from there on.
        """
        before = _stamp(self._now() - timedelta(days=days))
        with self._mutex, errors_of(self.path):
            with transaction(self.connection):
                removed = prune_older(self.connection, before, self._insert)
            # Else the write-ahead log would keep what was removed for a while.
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def close(self) -> None:
        with self._mutex:
            self.connection.close()
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def _safely(self, append: Callable[[], int]) -> int | None:
        try:
            self._prune_daily()
            with self._mutex, errors_of(self.path):
                return append()
        except AuditError as error:
            if self.required:
                raise
            with self._mutex:
                self.lost += 1
            LOG.error("%d rows are missing in the audit log: %s", self.lost, error.found)
            return None

    def _append(
        self, row: Mapping[str, Any], content: Mapping[str, Any], table: str = "entries"
    ) -> int:
        with transaction(self.connection):
            if self.lost:
                self._insert(
                    "entries", {"event": "lost", "parameters": to_json({"rows": self.lost})}
                )
            id = self._insert(table, row, content)
        self.lost = 0
        return id

    def _insert(
        self, table: str, given: Mapping[str, Any], content: Mapping[str, Any] | None = None
    ) -> int:
        # The head is read here, not remembered: `kormed audit prune` may append too.
        head = self._head(table)
        row: dict[str, Any] = dict.fromkeys(COLUMNS[table])
        row |= {**given, "id": head.id + 1, "time": _stamp(self._now()), "previous": head.hash}
        if content is not None and self._key is not None:
            place = (table, head.id + 1, str(given["request_id"]))
            row["content"] = seal(self._key, content, place)
        row["hash"] = link(row)
        names = ", ".join(f'"{name}"' for name in row)
        holes = ", ".join("?" * len(row))
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({holes})", [*row.values()])
        return head.id + 1

    def _head(self, table: str) -> Place:
        query = f"SELECT id, hash FROM {table} ORDER BY id DESC LIMIT 1"
        found = self.connection.execute(query).fetchone()
        if found is None and (anchor := anchors(self.connection).get(table)):
            return anchor
        return Place(*found) if found else genesis(self.connection, table)

    def _prune_daily(self) -> None:
        today = _stamp(self._now())[:10]
        if self._retention is not None and today != self._pruned_on:
            self.prune(self._retention)
            self._pruned_on = today


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _text_of(prompt: Prompt) -> str:
    # Not ASCII-escaped: personal data is looked for in it.
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _masked(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return mask(prompt)
    return [
        {**part, "content": mask(part["content"])} if isinstance(part, Mapping) else part
        for part in prompt
    ]
