"""Progress of long work: a bar on a terminal, and a line now and then where there is none."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
_LINE_EVERY = 20.0  # seconds, where the output is a file or a pipe


class Update(Protocol):
    """Report how far the work is; `note` stands beside the bar (a loss, a tensor's name)."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None: ...


def ignore(done: int, total: int | None = None, note: str = "") -> None:
    """An `Update` for callers that show nothing."""


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Update]:
    if console.is_terminal:
        with _bar(title, total) as update:
            yield update
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")

        def update(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _lines(title: str, total: int | None) -> Update:
    last = time.monotonic()
    whole = total

    def update(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal last, whole
        whole = total if total is not None else whole
        now = time.monotonic()
        if now - last >= _LINE_EVERY or done == whole:
            last = now
            console.print(f"{title}: {done}/{whole or '?'} {note}".rstrip(), highlight=False)

    return update
