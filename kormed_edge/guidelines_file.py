"""The SQLite file of the guidelines: made, opened to write or to read only."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kormed_edge.errors import KormedError
from kormed_edge.home import home
from kormed_edge.transaction import transaction

APPLICATION = 0x6B6D676C
SCHEMA = 1
BUSY_S = 10.0
"""How long to wait for another process, such as `kormed guidelines add` beside a service."""
_STATEMENTS = (
    "CREATE TABLE meta (analysis TEXT NOT NULL) STRICT",
    "INSERT INTO meta VALUES ('')",
    "CREATE TABLE documents (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, "
    "sha256 TEXT NOT NULL, added TEXT NOT NULL) STRICT",
    # AUTOINCREMENT: the id of a passage that was cited never becomes another's.
    "CREATE TABLE passages (id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL "
    "REFERENCES documents ON DELETE CASCADE, page INTEGER, heading TEXT NOT NULL, "
    "text TEXT NOT NULL) STRICT",
    "CREATE INDEX passages_of ON passages (document)",
    # rowid is the passage's id; terms are what guideline_terms.py makes of heading and text.
    "CREATE VIRTUAL TABLE words USING fts5(terms, tokenize = 'unicode61 remove_diacritics 0')",
    "CREATE VIRTUAL TABLE vocabulary USING fts5vocab(words, row)",
    f"PRAGMA user_version = {SCHEMA}",
    f"PRAGMA application_id = {APPLICATION}",
)


class GuidelinesError(KormedError):
    """The index of the guidelines cannot be opened, read or written."""


def default_path() -> Path:
    return home() / "guidelines.db"


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """SQLite's errors as `GuidelinesError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise GuidelinesError(
            f"{path}: {error}", "an index that can be read, on a disk with room",
            f"look at the file and its disk: ls -l {path}; df {path.parent}",
        ) from error  # fmt: skip


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, for any thread; one at a time."""
    if not path.is_file():
        raise GuidelinesError(
            f"{path} does not exist", "an index of documents",
            f"kormed guidelines add FILES --index {path}",
        )  # fmt: skip
    return _open(path, f"{path.absolute().as_uri()}?mode=ro")


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection that writes; a file that is not there is made, mode 600."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise GuidelinesError(f"{path} cannot be written: {error.strerror}",
                              "a file of yours", "--index with another file") from None  # fmt: skip
    return _open(path, f"{path.absolute().as_uri()}?mode=rw")


def _open(path: Path, uri: str) -> sqlite3.Connection:
    with errors_of(path):
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            # The file may come from elsewhere; nothing in its schema may call a function.
            connection.execute("PRAGMA trusted_schema = OFF")
            _prepare(connection, path, may_make=uri.endswith("mode=rw"))
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: Path, *, may_make: bool) -> None:
    if may_make and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        with transaction(connection):
            for statement in _STATEMENTS:
                connection.execute(statement)
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    ]
    if found != [APPLICATION, SCHEMA]:
        raise GuidelinesError(
            f"{path} is no index of guidelines, or one of another version of the kit",
            "the file of `kormed guidelines add`", "--index with a new file, then add again",
        )  # fmt: skip
