"""The SQLite file of an audit log: made, opened, and who may write it.

Beside FILE stands FILE.salt, 32 random bytes. Questions are often short, so a plain hash of one
can be found by trying. Here hashes are HMACs, and their key is not in the database: a copy of it
that goes to an auditor proves what was changed, and tells nobody what was asked.
"""

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from kormed_edge.audit_chain import Place, canonical
from kormed_edge.errors import KormedError
from kormed_edge.transaction import transaction

APPLICATION = 0x6B6D6175
SCHEMA = 1
SALT_BYTES = 32
BUSY_S = 10.0
"""How long to wait for another writer, such as `kormed audit prune`."""
COLUMNS = {
    "entries": (
        "id", "time", "event", "request_id", "endpoint", "principal", "model_sha256", "adapter",
        "adapter_sha256", "parameters", "prompt_hmac", "answer_hmac", "prompt_tokens",
        "completion_tokens", "seconds_to_first", "seconds", "finish_reason", "option",
        "confidence", "warnings", "content", "previous", "hash",
    ),
    "feedback": (
        "id", "time", "request_id", "principal", "verdict", "comment", "content", "previous",
        "hash",
    ),
}  # fmt: skip
_TYPES = {
    "id": "INTEGER PRIMARY KEY", "prompt_tokens": "INTEGER", "completion_tokens": "INTEGER",
    "option": "INTEGER", "seconds_to_first": "REAL", "seconds": "REAL", "confidence": "REAL",
    "content": "BLOB",
}  # fmt: skip
_LAST_PRUNED = (
    "(SELECT json_extract(parameters, '$.{table}.id') FROM entries WHERE event = 'pruned' "
    "ORDER BY id DESC LIMIT 1)"
)


class AuditError(KormedError):
    """The audit log cannot be opened, written or trusted."""


def _table(name: str) -> Iterator[str]:
    columns = ", ".join(f'"{column}" {_TYPES.get(column, "TEXT")}' for column in COLUMNS[name])
    yield f"CREATE TABLE {name} ({columns}) STRICT"
    yield (
        f"CREATE TRIGGER {name}_stay_as_they_are BEFORE UPDATE ON {name} "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )
    # What an anchor row covers may go: the anchor is in the chain and tells that it went.
    yield (
        f"CREATE TRIGGER {name}_stay BEFORE DELETE ON {name} "
        f"WHEN OLD.id > coalesce({_LAST_PRUNED.format(table=name)}, 0) "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )


def _statements() -> Iterator[str]:
    yield "CREATE TABLE meta (created TEXT, salt_sha256 TEXT) STRICT"
    for name in COLUMNS:
        yield from _table(name)
    yield "CREATE UNIQUE INDEX events ON entries (request_id, event)"
    yield "CREATE INDEX anchors ON entries (id) WHERE event = 'pruned'"
    yield "CREATE INDEX verdicts ON feedback (request_id)"
    yield f"PRAGMA user_version = {SCHEMA}"
    yield f"PRAGMA application_id = {APPLICATION}"


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """SQLite's errors as `AuditError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise AuditError(
            f"{path}: {error}", "an audit log that can be read and written, on a disk with room",
            f"look at the file and its disk: ls -l {path}*; df {path.parent}",
        ) from error  # fmt: skip


def open_log(path: Path) -> tuple[sqlite3.Connection, bytes]:
    """A connection that writes, and the salt; a file that is not there is made, mode 600."""
    for file in (path, salt_of(path)):
        _require_private(file)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise AuditError(f"{path} cannot be written: {error.strerror}", "a file in a folder that "
                         "is there", f"mkdir -p {path.parent}") from None  # fmt: skip
    with errors_of(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            return connection, _prepare(connection, path)
        except BaseException:
            connection.close()
            raise


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; `AuditError` for a file that is no audit log."""
    if not path.is_file():
        raise AuditError(f"{path} does not exist", "the file of `kormed serve --audit`")
    with errors_of(path):
        where = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(where, uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            _require_log(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> bytes:
    new = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    if not new:
        _require_log(connection, path)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise AuditError(f"{path} is on a file system without SQLite's WAL", "a local disk")
    # FULL: a commit returns when the disk has the row. secure_delete: what is pruned is gone.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    salt = _salt(path, new)
    if new:
        _make(connection, salt)
    if meta(connection)[1] != _fingerprint(salt):
        raise AuditError(
            f"{salt_of(path)} belongs to another log", "the file that was made with the log",
            "bring it back from a backup, or begin a new log under another name",
        )  # fmt: skip
    return salt


def _make(connection: sqlite3.Connection, salt: bytes) -> None:
    with transaction(connection):
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            return  # another process was faster
        for statement in _statements():
            connection.execute(statement)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute("INSERT INTO meta VALUES (?, ?)", (created, _fingerprint(salt)))


def _salt(path: Path, new: bool) -> bytes:
    file = salt_of(path)
    try:
        if new and not file.exists():
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(SALT_BYTES))
                stream.flush()
                os.fsync(descriptor)
        return file.read_bytes()
    except OSError as error:
        raise AuditError(
            f"{file} cannot be used: {error.strerror}", "the file that was made with the log",
            "bring it back from a backup, or begin a new log under another name",
        ) from None  # fmt: skip


def _require_private(file: Path) -> None:
    if file.exists() and file.stat().st_mode & 0o077:
        raise AuditError(f"{file} is open to others", "mode 600", f"chmod 600 {file}")


def _require_log(connection: sqlite3.Connection, path: Path) -> None:
    application, schema = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if application != APPLICATION:
        raise AuditError(f"{path} is no audit log", "the file of `kormed serve --audit`")
    if schema != SCHEMA:
        raise AuditError(f"{path} has schema {schema}", f"{SCHEMA}", "use the kit that made it")


def salt_of(path: Path) -> Path:
    return path.with_name(path.name + ".salt")


def _fingerprint(salt: bytes) -> str:
    return sha256(salt).hexdigest()


def meta(connection: sqlite3.Connection) -> tuple[str, str]:
    """When the log was made, and the SHA-256 of its salt."""
    created, fingerprint = connection.execute("SELECT created, salt_sha256 FROM meta").fetchone()
    return created, fingerprint


def genesis(connection: sqlite3.Connection, table: str) -> Place:
    """Where a table's chain begins; every log has its own beginning."""
    return Place(0, sha256(canonical([table, *meta(connection)])).hexdigest())


@contextmanager
def transaction_to_read(connection: sqlite3.Connection) -> Iterator[None]:
    """One state of all tables, whatever is written meanwhile."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def lock(path: Path) -> int:
    """Hold the log for one service; the descriptor whose closing, or whose process's end, frees it.

    The lock is on the salt: closing any descriptor of the database would drop SQLite's own locks.
    """
    descriptor = os.open(salt_of(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AuditError(
            f"{path} is written by another service", "a log of its own for every service",
            "--audit with another file, or stop the other service",
        ) from None  # fmt: skip
    return descriptor
