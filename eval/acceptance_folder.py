"""Where a verification on site writes: a folder that a killed one finds again, and then a report.

run.json                what is verified, and on what
lock                    held while a process works in the folder
answers/SET.jsonl       this machine's answers, appended as they come
report.html, report.json, a .sig for each, site.pub
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kormed_edge.errors import EvalError
from kormed_edge.home import home
from kormed_edge.manifest import write_json
from kormed_edge.site_key import SIGNATURE

STATE, LOCK, PAGE, DATA = "run.json", "lock", "report.html", "report.json"
ANSWERS = "answers"
_LAST = DATA + SIGNATURE  # written last


@contextmanager
def open_folder(out: Path | None, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a verification, new or unfinished with the same `identity`, for us alone.

    Without `out`, one below `$KORMED_HOME/acceptance`. Raises `EvalError` for a finished folder,
    one of another verification, and one that another process writes.
    """
    try:
        folder = out or _unfinished(identity) or _new_folder()
        (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise EvalError(
            f"{error.filename}: {error.strerror}", "a folder that this user can write",
            "give one with --out, or set KORMED_HOME",
        ) from None  # fmt: skip
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvalError(f"{folder}: another verification writes here", "one", "wait") from None
        _claim(folder, identity)
        yield folder


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    if (folder / _LAST).exists():
        raise EvalError(f"{folder} holds a finished report", "a new folder", "give another --out")
    path = folder / STATE
    if not path.exists():
        write_json(path, identity)
    elif _read(path) != identity:
        raise EvalError(
            f"{folder} is of another verification: other bundle, items, machine or settings",
            "the same, to go on with it", "give another --out",
        )  # fmt: skip


def _unfinished(identity: Mapping[str, Any]) -> Path | None:
    """The newest folder that the same command left unfinished."""
    for state in sorted((home() / "acceptance").glob(f"*/{STATE}"), reverse=True):
        if not (state.parent / _LAST).exists() and _read(state) == identity:
            return state.parent
    return None


def _new_folder() -> Path:
    return home() / "acceptance" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
