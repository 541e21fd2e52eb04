"""`kormed audit`: the service's audit log verified, exported and pruned, and its feedback."""

import getpass
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from kormed_edge.audit_chain import Place, parse_place
from kormed_edge.errors import ConfigError
from kormed_edge.progress import console
from kormed_edge.records import DOMAINS

FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
CONTENT_KEY = click.option(
    "--content-key", "key_file", type=click.Path(dir_okay=False, path_type=Path), metavar="KEYFILE",
    help="The file of `kormed audit keygen`; tells the texts.",
)  # fmt: skip
_AGE = re.compile(r"([1-9][0-9]{0,4})d")


def _days(_context: object, _option: object, text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number of days such as 365d")
    return int(match[1])


def _ends(_context: object, _option: object, lines: tuple[str, ...]) -> dict[str, Place]:
    """The ends of chains by table, from lines of `kormed audit verify`."""
    ends = {}
    for line in lines:
        table, _, rest = line.partition(":")
        place = parse_place(rest)
        if place is None or table not in ("entries", "feedback"):
            raise click.BadParameter(f"{line!r} is not TABLE:ID:HASH as verify prints it")
        ends[table] = place
    return ends


@click.group("audit")
def audit_command() -> None:
    """Verify, export and prune the audit log of `kormed serve --audit`, and judge its answers.

    \b
    Example: kormed audit keygen audit.key
             kormed audit verify audit.db
             kormed audit export audit.db --kind sft --domain emergency --content-key audit.key \\
                 --out more.jsonl
             kormed audit prune audit.db --older-than 365d
    """


@audit_command.command("keygen")
@click.argument("key_file", type=click.Path(dir_okay=False, path_type=Path))
def keygen_command(key_file: Path) -> None:
    """Write a key that seals texts, and print its id.

    \b
    Example: kormed audit keygen audit.key
    """
    from kormed_edge.audit_content import make_key

    click.echo(make_key(key_file))
    console.print(
        f"{key_file} opens every text that is sealed with it: keep a copy on another machine, "
        "never beside the log. Without it the texts are lost.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@audit_command.command("verify")
@FILE
@click.option(
    "--known", "known", multiple=True, callback=_ends, metavar="TABLE:ID:HASH",
    help="A line that verify printed earlier; repeatable.",
)  # fmt: skip
def verify_command(file: Path, known: dict[str, Place]) -> None:
    """Check every row against its chain; print the chain's ends, which are worth noting elsewhere.

    \b
    Example: kormed audit verify audit.db
             kormed audit verify audit.db --known entries:120:9f86d081…
    """
    from kormed_edge.audit_reader import AuditReader

    with AuditReader(file) as reader:
        for table, place in reader.verify(known).items():
            click.echo(f"{table}:{place}")


@audit_command.command("export")
@FILE
@click.option(
    "--kind", type=click.Choice(["requests", "feedback", "sft", "dpo"]), default="requests",
    show_default=True, help="sft: what `kormed data` reads; dpo: prompt, chosen, rejected.",
)  # fmt: skip
@click.option("--domain", type=click.Choice(sorted(DOMAINS.values())), help="Of sft's records.")
@CONTENT_KEY
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: standard output]"
)
def export_command(
    file: Path, kind: str, domain: str | None, key_file: Path | None, out: Path | None
) -> None:
    """Write requests, feedback or training data as JSONL. The whole log is verified first.

    \b
    Example: kormed audit export audit.db --out requests.jsonl
             kormed audit export audit.db --kind dpo --content-key audit.key --out dpo.jsonl
    """
    from kormed_edge.audit_content import read_key
    from kormed_edge.audit_reader import AuditReader

    if kind == "sft" and domain is None:
        raise ConfigError("--kind sft without --domain", "the domain of the questions",
                          "--domain " + " | ".join(sorted(DOMAINS.values())))  # fmt: skip
    with AuditReader(file, read_key(key_file) if key_file else None) as reader:
        reader.verify()
        written = _write(out, _rows(reader, kind, domain or ""))
    console.print(f"{written} rows", highlight=False)


def _rows(reader: Any, kind: str, domain: str) -> Iterable[Mapping[str, Any]]:
    from kormed_edge.feedback_export import preferences, training_records

    if kind in ("requests", "feedback"):
        read: Callable[[], Iterable[Mapping[str, Any]]] = getattr(reader, kind)
        return read()
    exported = training_records(reader, domain) if kind == "sft" else preferences(reader)
    for reason, number in exported.skipped.items():
        console.print(f"left out: {number} ({reason})", highlight=False)
    return exported.rows


def _write(out: Path | None, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL, a file for its owner alone and only when it is whole; how many rows."""
    if out is None:
        return _write_lines(rows, click.echo)
    draft = out.with_name(f"{out.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            number = _write_lines(rows, lambda line: stream.write(line + "\n"))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return number


def _write_lines(rows: Iterable[Mapping[str, Any]], write: Callable[[str], object]) -> int:
    number = 0
    for row in rows:
        write(json.dumps(row, ensure_ascii=False))
        number += 1
    return number


@audit_command.command("prune")
@FILE
@click.option("--older-than", required=True, callback=_days, metavar="DAYS", help="Such as 365d.")
def prune_command(file: Path, older_than: int) -> None:
    """Remove old rows for good, and chain a row on that says which. A service may be running.

    \b
    Example: kormed audit prune audit.db --older-than 365d
    """
    with closing(_log(file, None)) as log:
        click.echo(f"{log.prune(older_than)} rows removed")


@audit_command.command("feedback")
@FILE
@click.argument("request_id")
@click.option("--verdict", required=True, help="맞음, 틀림, 위험; correct, wrong, dangerous.")
@click.option("--comment", default="", help="Why.")
@click.option("--correction", default="", help="The answer that would have been right.")
@CONTENT_KEY
def feedback_command(
    file: Path, request_id: str, verdict: str, comment: str, correction: str, key_file: Path | None
) -> None:
    """Judge the answer with REQUEST_ID, as POST /v1/feedback does. A service may be running.

    \b
    Example: kormed audit feedback audit.db 4f0c… --verdict 위험 --comment "용량이 열 배" \\
                 --content-key audit.key
    """
    from kormed_edge.audit_content import read_key
    from kormed_edge.feedback import Feedback, give, parse_verdict

    given = Feedback(
        request_id, parse_verdict(verdict), f"cli:{getpass.getuser()}", comment, correction
    )
    with closing(_log(file, read_key(key_file) if key_file else None)) as log:
        click.echo(f"feedback {give(log, given)} stored")


def _log(file: Path, key: bytes | None) -> Any:
    """A log that is there already, written beside the service."""
    from kormed_edge.audit import AuditLog
    from kormed_edge.audit_file import open_to_read

    open_to_read(file).close()
    return AuditLog(file, content_key=key, alone=False)
