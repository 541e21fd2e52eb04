"""`kormed demo`: the whole job in one command, on a machine with nothing but CPUs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from kormed_edge.base import resolve_base
from kormed_edge.manifest import read_manifest
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console

QUESTION = (
    "급성 충수염에서 압통이 가장 심한 곳은?\n"
    "1) 맥버니점\n2) 명치\n3) 왼쪽 옆구리\n4) 배꼽 아래 정중선\n5) 오른쪽 어깨"
)

MADE_IN = {"data": "data", "train": "adapter", "export": "gguf", "eval": "eval", "report": "report"}


@click.command("demo")
@run_options
def demo_command(options: RunOptions) -> None:
    """Run every stage, from the base model to an answered question; finished stages are reused.

    \b
    Example: kormed demo --run demo
             kormed demo --run qwen --config configs/demo.yaml --set base=/models/Qwen2.5-0.5B
    """
    from eval.commands import evaluate, report, show_scores
    from export.commands import make_gguf
    from kormed_edge.ask_command import ask_run
    from train.commands import make_adapter, make_data

    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[..., Any], *arguments: Any) -> None:
        console.rule(f"[bold]{name}")
        started = time.monotonic()
        work(*arguments)
        seconds[name] = time.monotonic() - started

    stage("base", _bring_base, options)
    stage("data", make_data, options)
    stage("train", make_adapter, options)
    stage("export", make_gguf, options)
    stage("eval", evaluate, options)
    stage("report", report, options)
    stage("ask", ask_run, options, QUESTION)
    console.rule("[bold]done")
    _show_times(options.run, seconds)
    show_scores(options.run)
    console.print(f"serve it: make serve RUN={options.run.name}", highlight=False)


def _bring_base(options: RunOptions) -> None:
    base = resolve_base(options.config.values.base)
    console.print(f"{base.id} ({base.revision or 'local'}): {base.path}", highlight=False)


def _show_times(run: Path, seconds: dict[str, float]) -> None:
    """Wall time of every stage; for one that was reused, the time that its making took."""
    table = Table("stage", "wall time", box=None, pad_edge=False)
    for name, now in seconds.items():
        made = read_manifest(run / MADE_IN[name]).seconds if name in MADE_IN else now
        reused = made > now + 1  # a stage's own clock stops a moment after this one
        table.add_row(name, f"{max(made, now):.0f} s{' (reused)' if reused else ''}")
    table.add_row("together", f"{sum(seconds.values()):.0f} s")
    console.print(table)
