import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from audit_rows import ANSWER, QUESTION, Clock, ask, request_id, tamper

from kormed_edge.audit import AuditLog, Began
from kormed_edge.audit_chain import Place
from kormed_edge.audit_file import AuditError, salt_of
from kormed_edge.audit_reader import AuditReader

LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from audit_rows import ask, request_id
from kormed_edge.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
[number] = log.connection.execute("SELECT count(*) FROM entries").fetchone()
while True:
    number += 1
    print(ask(log, number), flush=True)
"""
TESTS = str(Path(__file__).parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[AuditLog]:
    log = AuditLog(path, now=clock)
    yield log
    log.close()


def verify(path: Path, **known: Place) -> dict[str, Place]:
    with AuditReader(path) as reader:
        return reader.verify(known)


def test_request_is_one_object_with_all_but_its_texts(log: AuditLog, path: Path) -> None:
    ask(log, 1, adapter="v2", adapter_sha256="cd" * 32, parameters={"seed": 7}, seconds=1.5,
        completion_tokens=6, seconds_to_first=0.25, confidence=0.75,
        warnings=["han_leak"])  # fmt: skip
    with AuditReader(path) as reader:
        [request] = reader.requests()
    at = "2026-03-02T09:00:00.000+00:00"
    assert request == {
        "request_id": request_id(1), "began": at, "ended": at, "endpoint": "/v1/ask",
        "principal": "ward-3", "model_sha256": "ab" * 32, "adapter": "v2",
        "adapter_sha256": "cd" * 32, "parameters": {"seed": 7},
        "prompt_hmac": log.hash(QUESTION), "answer_hmac": log.hash(ANSWER), "prompt_tokens": 40,
        "completion_tokens": 6, "seconds_to_first": 0.25, "seconds": 1.5,
        "finish_reason": "stop", "option": 2, "confidence": 0.75, "warnings": ["han_leak"],
        "personal_data": [],
    }  # fmt: skip
    files = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert "심전도".encode() not in files


def test_beginning_is_on_the_disk_before_there_is_an_end(log: AuditLog, path: Path) -> None:
    log.began(Began(request_id(1), "/v1/ask", "local", "ab" * 32, QUESTION))
    with AuditReader(path) as reader:
        [request] = reader.requests()
    assert (request["principal"], request["ended"]) == ("local", None)


def test_files_are_their_owner_s_alone(log: AuditLog, path: Path) -> None:
    ask(log, 1)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    names = ("audit.db", "audit.db.salt", "audit.db-wal", "audit.db-shm")
    assert modes == dict.fromkeys(names, 0o600)


def test_hash_cannot_be_tried_without_the_salt(log: AuditLog, tmp_path: Path, path: Path) -> None:
    other = AuditLog(tmp_path / "other.db")
    assert other.hash(QUESTION) != log.hash(QUESTION)
    other.close()
    ask(log, 1)
    salt = salt_of(path).read_bytes()
    assert len(salt) == 32
    parts = [file.read_bytes() for file in path.parent.glob("audit.db*") if file != salt_of(path)]
    assert not any(form in part for part in parts for form in (salt, salt.hex().encode()))


@pytest.mark.parametrize("statement", ["DELETE FROM entries", "UPDATE entries SET option = 1"])
def test_rows_stay_as_they_are(log: AuditLog, statement: str) -> None:
    ask(log, 1)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        log.connection.execute(statement)


def test_one_service_holds_a_log(log: AuditLog, path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.db is written by another service"):
        AuditLog(path)
    log.close()
    AuditLog(path).close()


def test_two_writers_make_one_chain(log: AuditLog, path: Path) -> None:
    beside = AuditLog(path, alone=False)
    for number, writer in enumerate([log, beside, log, beside]):
        ask(writer, number)
    beside.close()
    assert verify(path)["entries"].id == 8


def test_chain_goes_on_after_a_restart(path: Path) -> None:
    for number in (1, 2):
        log = AuditLog(path)
        ask(log, number)
        log.close()
    assert verify(path)["entries"].id == 4


SWAP = [f"UPDATE entries SET id = {a} WHERE id = {b}" for a, b in ((99, 3), (3, 4), (4, 99))]


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["UPDATE entries SET option = 1 WHERE id = 4"], "entries: row 4 was changed"),
        (["UPDATE entries SET time = '2020' WHERE id = 1"], "entries: row 1 was changed"),
        (["DELETE FROM entries WHERE id = 3"], "entries: row 3 is missing: 4 follows 2"),
        (["DELETE FROM entries WHERE id = 1"], "entries: row 1 is missing: 2 follows 0"),
        (SWAP, "entries: row 3 does not follow row 2"),
        (
            ["INSERT INTO entries (id, event, previous, hash) SELECT 7, event, hash, hash "
             "FROM entries WHERE id = 6"],
            "entries: row 7 was changed",
        ),
        (
            ["UPDATE entries SET id = id + 10 WHERE id > 2",
             "INSERT INTO entries (id, event, previous, hash) SELECT 3, event, hash, hash "
             "FROM entries WHERE id = 2",
             "UPDATE entries SET id = id - 9 WHERE id > 10"],
            "entries: row 3 was changed",
        ),
        (["UPDATE meta SET created = '2020'"], "entries: row 1 does not follow row 0"),
        (["UPDATE entries SET parameters = '[]', event = 'pruned' WHERE id = 2"], "pruned row"),
    ],
)  # fmt: skip
def test_first_row_that_was_tampered_with_is_named(
    log: AuditLog, path: Path, statements: list[str], found: str
) -> None:
    for number in (1, 2, 3):
        ask(log, number)
    assert verify(path)["entries"].id == 6
    tamper(path, *statements)
    with pytest.raises(AuditError, match=found):
        verify(path)


def test_end_that_was_noted_shows_a_chain_cut_or_made_anew(log: AuditLog, path: Path) -> None:
    ask(log, 1)
    noted = verify(path)["entries"]
    assert verify(path, entries=noted)["entries"] == noted
    with pytest.raises(AuditError, match="row 2 has another hash than the one noted"):
        verify(path, entries=Place(2, "0" * 64))
    tamper(path, "DELETE FROM entries WHERE id = 2")
    assert verify(path)["entries"].id == 1  # what a chain alone cannot show
    with pytest.raises(AuditError, match="row 2 is missing: the chain ends before row 2"):
        verify(path, entries=noted)


def test_pruning_leaves_an_anchor_that_the_chain_holds_on(
    log: AuditLog, path: Path, clock: Clock
) -> None:
    ask(log, 1)
    clock.time += timedelta(days=20)
    ask(log, 2)
    noted = verify(path)["entries"]
    clock.time += timedelta(days=20)
    assert (log.prune(30), log.prune(30)) == (2, 0)
    assert verify(path, entries=noted)["entries"].id == 5
    with AuditReader(path) as reader:
        assert [r["request_id"] for r in reader.requests()] == [request_id(2)]
        *_, anchor = reader.rows("entries")
    assert json.loads(anchor["parameters"])["entries"]["id"] == 2
    clock.time += timedelta(days=99)
    assert log.prune(30) == 3
    ask(log, 3)
    assert verify(path)["entries"].id == 8
    tamper(path, "DELETE FROM entries WHERE id = 6")
    with pytest.raises(AuditError, match="row 1 is missing: 7 follows 0"):
        verify(path)


def test_pruned_rows_are_not_in_the_file_any_more(log: AuditLog, path: Path, clock: Clock) -> None:
    ask(log, 1, principal="somebody")
    clock.time += timedelta(days=2)
    log.prune(1)
    assert not any(b"somebody" in file.read_bytes() for file in path.parent.iterdir())


def test_retention_prunes_once_a_day(path: Path, clock: Clock) -> None:
    log = AuditLog(path, now=clock, retention_days=1)
    for number in range(4):
        ask(log, number)
        clock.time += timedelta(days=1)
    with AuditReader(path) as reader:
        assert [r["request_id"] for r in reader.requests()] == [request_id(2), request_id(3)]
        reader.verify()
    log.close()


def fill(log: AuditLog) -> int:
    """Give the file no room for another page; the number of the first request that is lost."""
    pages: int = log.connection.execute("PRAGMA page_count").fetchone()[0]
    log.connection.execute(f"PRAGMA max_page_count = {pages}")
    return next(number for number in count(1) if ask_or_none(log, number) is None)


def ask_or_none(log: AuditLog, number: int) -> int | None:
    return log.began(Began(request_id(number), "/v1/ask", "local", "ab" * 32, "질문" * 999))


def test_full_disk_raises_and_what_was_written_stays(log: AuditLog, path: Path) -> None:
    with pytest.raises(AuditError, match="database or disk is full"):
        fill(log)
    rows = verify(path)["entries"].id
    assert rows > 0
    log.connection.execute("PRAGMA max_page_count = 100000")
    ask(log, 10**6)
    assert verify(path)["entries"].id == rows + 2


def test_log_that_is_optional_counts_what_it_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(path, required=False)
    first = fill(log)
    assert ask_or_none(log, first) is None
    log.connection.execute("PRAGMA max_page_count = 100000")
    assert ask_or_none(log, first) == first + 1
    with AuditReader(path) as reader:
        reader.verify()
        *_, lost, _ = reader.rows("entries")
    assert (lost["event"], lost["parameters"]) == ("lost", '{"rows":2}')
    assert "2 rows are missing in the audit log" in caplog.text
    log.close()


def test_real_write_error_loses_no_row_that_was_reported(path: Path) -> None:
    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-c", LOOP, path, TESTS], capture_output=True, text=True, preexec_fn=bound
    )
    assert "AuditError" in done.stderr
    reported = done.stdout.split()
    assert reported
    with AuditReader(path) as reader:
        ended = [r["request_id"] for r in reader.requests() if r["ended"]]
        assert ended == reported
        reader.verify()


def test_writer_that_is_busy_too_long_is_an_error(log: AuditLog, path: Path) -> None:
    log.connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(AuditError, match="database is locked"):
        ask(log, 1)
    other.close()
    ask(log, 1)


def test_killed_service_loses_and_tears_no_row(path: Path) -> None:
    chance = random.Random(42)
    reported: list[str] = []
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, path, TESTS], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = chance.randint(1, 20)
        reported += [process.stdout.readline().strip() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        reported += process.stdout.read().splitlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        with AuditReader(path) as reader:
            reader.verify()
            ended = {r["request_id"] for r in reader.requests() if r["ended"]}
        assert set(reported) <= ended
    assert len(reported) >= 10


@pytest.mark.parametrize("name", ["audit.db", "audit.db.salt"])
def test_open_file_is_refused(path: Path, name: str) -> None:
    AuditLog(path).close()
    (path.parent / name).chmod(0o640)
    with pytest.raises(AuditError, match="is open to others"):
        AuditLog(path)


def test_lost_or_other_salt_is_named(path: Path) -> None:
    AuditLog(path).close()
    salt_of(path).write_bytes(bytes(32))
    with pytest.raises(AuditError, match="belongs to another log"):
        AuditLog(path)
    salt_of(path).unlink()
    with pytest.raises(AuditError, match=r"audit\.db\.salt cannot be used"):
        AuditLog(path)


def test_file_of_another_kind_is_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    path.chmod(0o600)
    before = path.read_bytes()
    for opened in (AuditLog, AuditReader):
        with pytest.raises(AuditError, match="is no audit log"):
            opened(path)
    assert path.read_bytes() == before
    path.write_text("not a database at all, not by far")
    with pytest.raises(AuditError, match="file is not a database"):
        AuditLog(path)


def test_place_without_a_folder_or_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be written: No such file"):
        AuditLog(tmp_path / "no" / "audit.db")
    with pytest.raises(AuditError, match="does not exist"):
        AuditReader(tmp_path / "audit.db")
