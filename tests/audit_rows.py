"""Audit logs with a few rows, what a service would write without one, and how to break them."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kormed_edge.audit import AuditLog, Began, Ended

QUESTION = "흉통 환자에게 가장 먼저 할 검사는?\n1) 심초음파\n2) 심전도"
ANSWER = "2) 심전도"
KEY = bytes(range(32))


class Clock:
    """The time that a log sees."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 2, 9, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


def request_id(number: int) -> str:
    return f"{number:032x}"


def ask(log: AuditLog, number: int, *, prompt: Any = QUESTION, **other: Any) -> str:
    """One request with an answer, of `other` began or ended fields."""
    id = request_id(number)
    began = {"endpoint": "/v1/ask", "principal": "ward-3", "model_sha256": "ab" * 32}
    ended = {"answer": ANSWER, "finish_reason": "stop", "prompt_tokens": 40, "option": 2}
    for name, value in other.items():
        (began if name in Began.__dataclass_fields__ else ended)[name] = value
    log.began(Began(id, prompt=prompt, **began))  # type: ignore[arg-type]
    log.ended(Ended(id, **ended))  # type: ignore[arg-type]
    return id


def tamper(path: Path, *statements: str) -> None:
    """Raw SQL by someone who may write the file: no trigger is in the way."""
    connection = sqlite3.connect(path)
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    assert names
    for (name,) in names:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
