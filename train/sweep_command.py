"""`kormed train sweep`: the ablation over rank, alpha, learning rate and base."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from kormed_edge.errors import TrainError
from kormed_edge.manifest import manifest_hash
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console
from kormed_edge.runs import require_stage


def _axis(name: str, one: Any, kind: str, default: str) -> Callable[[Any], Any]:
    """An option that takes several values of click's type `one`, separated by commas."""

    def parse(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise click.BadParameter(f"{text!r} has an empty place between commas")
        return tuple(one.convert(part, option, ctx) for part in parts)

    help_text = f"Values to try.  [default: {default} of the configuration]"
    return click.option(name, callback=parse, metavar=f"{kind},…", help=help_text)


@click.command("sweep")
@run_options
@_axis("--rank", click.IntRange(min=1), "RANK", "train.rank")
@_axis("--alpha", click.IntRange(min=1), "ALPHA", "train.alpha")
@_axis("--learning-rate", click.FloatRange(0, min_open=True), "RATE", "train.learning_rate")
@_axis("--base", click.STRING, "BASE", "base")
@click.option("--dry-run", is_flag=True, help="List the points, and stop.")
def sweep_command(
    options: RunOptions,
    rank: tuple[int, ...] | None,
    alpha: tuple[int, ...] | None,
    learning_rate: tuple[float, ...] | None,
    base: tuple[str, ...] | None,
    dry_run: bool,
) -> None:
    """Train every combination of settings, one run each, and compare them; resumes.

    \b
    Example: kormed data --run ablation --config configs/paper.yaml
             kormed train sweep --run ablation --config configs/paper.yaml \\
                 --rank 8,16,32 --alpha 16,32 --learning-rate 1e-4,2e-4
    """
    from train.own_process import train_in_own_process
    from train.sweep import make_points

    config = options.config.values
    points = make_points(
        rank or (config.train.rank,),
        alpha or (config.train.alpha,),
        learning_rate or (config.train.learning_rate,),
        base or (config.base,),
        name_bases=base is not None,
    )
    if dry_run:
        _list(options, points)
        return
    folder = sweep_folder(options.run)

    def train(chosen: RunOptions) -> None:
        console.rule(f"[bold]{chosen.run.name}")
        train_in_own_process(chosen, folder / f"{chosen.run.name}.yaml")

    compare(options, points, train)


def sweep_folder(run: Path) -> Path:
    return run.with_name(f"{run.name}-sweep")


def compare(options: RunOptions, points: Any, train: Callable[[RunOptions], None]) -> None:
    """Train all points, then show and write their table. `TrainError` if every one failed."""
    from train.sweep import run_sweep
    from train.sweep_table import sweep_table, write_sweep

    data = manifest_hash(require_stage(options.run, "data"))
    folder = sweep_folder(options.run)
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(write_sweep, folder, options.run.name, data)
    outcomes = run_sweep(options, points, train, write)
    console.print(sweep_table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    console.print(
        f"{folder}: {len(outcomes) - len(failed)} of {len(outcomes)} points finished; see sweep.md",
        highlight=False,
    )
    if len(failed) == len(outcomes):
        raise TrainError(
            f"every point failed, the first with: {failed[0].reason}",
            "at least one that trains",
            "mend the cause, and give the same command again",
        )


def _list(options: RunOptions, points: Any) -> None:
    from train.sweep import is_finished, point_options

    for point in points:
        chosen = point_options(options, point)
        state = "finished" if is_finished(chosen, options.run) else "to be trained"
        console.print(f"{chosen.run.name}: {state}", highlight=False)
    console.print(f"{len(points)} points", highlight=False)
