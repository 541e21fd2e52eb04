import json
import stat
from pathlib import Path

import pytest
from audit_rows import ANSWER, QUESTION, Clock, ask, request_id, tamper
from click.testing import CliRunner, Result

from kormed_edge.audit import AuditLog
from kormed_edge.audit_content import read_key
from kormed_edge.cli import main


def audit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "audit.key"
    assert audit("keygen", path).exit_code == 0
    return path


@pytest.fixture
def path(tmp_path: Path, key: Path) -> Path:
    """A log of two old answers, closed."""
    log = AuditLog(tmp_path / "audit.db", content_key=read_key(key), now=Clock())
    ask(log, 1)
    ask(log, 2)
    log.close()
    return log.path


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_keygen_prints_the_key_s_id_and_not_the_key(tmp_path: Path) -> None:
    result = audit("keygen", tmp_path / "new.key")
    assert len(result.stdout.strip()) == 16
    assert (tmp_path / "new.key").read_text().strip() not in result.output
    assert audit("keygen", tmp_path / "new.key").exit_code == 1


def test_verify_prints_ends_that_it_takes_later(path: Path) -> None:
    entries, feedback = audit("verify", path).stdout.split()
    assert (entries[:10], feedback[:11]) == ("entries:4:", "feedback:0:")
    again = audit("verify", path, "--known", entries, "--known", feedback)
    assert again.stdout.split() == [entries, feedback]
    tamper(path, "DELETE FROM entries WHERE id = 4")
    cut = audit("verify", path, "--known", entries)
    assert cut.exit_code == 1
    assert "entries: row 4 is missing: the chain ends before row 4" in cut.stderr


def test_export_verifies_first_and_then_writes_nothing(path: Path, tmp_path: Path) -> None:
    tamper(path, "UPDATE entries SET option = 1 WHERE id = 4")
    result = audit("export", path, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "entries: row 4 was changed" in result.stderr
    assert not list(tmp_path.glob("out.jsonl*"))


def test_requests_are_exported_with_their_texts_only_for_the_key(
    path: Path, key: Path, tmp_path: Path
) -> None:
    lines = audit("export", path).stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [request_id(1), request_id(2)]
    assert "심전도" not in "".join(lines)
    out = tmp_path / "out.jsonl"
    assert audit("export", path, "--content-key", key, "--out", out).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [row["answer"] for row in rows(out)] == [ANSWER, ANSWER]


def test_feedback_is_given_and_exported_in_both_shapes(
    path: Path, key: Path, tmp_path: Path
) -> None:
    for number, *words in (
        (1, "--verdict", "맞음"),
        (2, "--verdict", "위험", "--correction", "1) 심초음파", "--comment", "순서"),
    ):
        given = audit("feedback", path, request_id(number), *words, "--content-key", key)  # type: ignore[arg-type]
        assert given.stdout == f"feedback {number} stored\n"
    out = tmp_path / "out.jsonl"
    wanted = ("--content-key", key, "--out", out)
    audit("export", path, "--kind", "feedback", *wanted)
    assert [row["comment"] for row in rows(out)] == ["", "순서"]
    audit("export", path, "--kind", "dpo", *wanted)
    assert rows(out) == [{"prompt": QUESTION, "chosen": "1) 심초음파", "rejected": ANSWER}]
    audit("export", path, "--kind", "sft", "--domain", "obgyn", *wanted)
    assert [(row["domain"], row["answer"]) for row in rows(out)] == [(14, ANSWER)]
    no_domain = audit("export", path, "--kind", "sft", *wanted)
    assert (no_domain.exit_code, "--domain" in no_domain.stderr) == (2, True)


def test_feedback_about_an_unknown_request_fails(path: Path) -> None:
    result = audit("feedback", path, "ab", "--verdict", "틀림")
    assert result.exit_code == 1
    assert "no request 'ab' in the audit log" in result.stderr


def test_prune_removes_what_is_older_beside_a_service(path: Path) -> None:
    service = AuditLog(path)
    ask(service, 3)
    assert audit("prune", path, "--older-than", "1d").stdout == "4 rows removed\n"
    ask(service, 4)
    service.close()
    assert audit("verify", path).stdout.startswith("entries:9:")


@pytest.mark.parametrize("age", ["0d", "365", "-1d", "1y"])
def test_age_is_a_number_of_days(path: Path, age: str) -> None:
    assert audit("prune", path, "--older-than", age).exit_code == 2


@pytest.mark.parametrize("known", ["entries", "entries:1", "other:1:" + "0" * 64, "entries:1:xyz"])
def test_known_end_is_one_that_verify_prints(path: Path, known: str) -> None:
    assert audit("verify", path, "--known", known).exit_code == 2


@pytest.mark.parametrize("command", ["verify", "export", "prune", "feedback"])
def test_log_that_is_not_there_is_not_made(tmp_path: Path, command: str) -> None:
    more = {"prune": ["--older-than", "9d"], "feedback": ["ab", "--verdict", "맞음"]}
    result = audit(command, tmp_path / "no.db", *more.get(command, []))
    assert (result.exit_code, "does not exist" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
