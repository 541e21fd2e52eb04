"""A grid of trainings over rank, alpha, learning rate and base: one run folder a point.

All points start from the same data stage. A point that is finished is passed over, a stopped one
goes on, and one that fails is recorded while the others go on.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from kormed_edge.errors import ConfigError, KormedError
from kormed_edge.manifest import MANIFEST, manifest_hash, read_manifest
from kormed_edge.options import RunOptions
from kormed_edge.runs import require_stage
from train.carry import carry_stage

Train = Callable[[RunOptions], None]


@dataclass(frozen=True)
class Point:
    rank: int
    alpha: int
    learning_rate: float
    base: str
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a point. `reason` is why it failed; `found` is what `measure` says."""

    point: Point
    state: Literal["finished", "failed", "waiting"]
    reason: str = ""
    found: dict[str, Any] = field(default_factory=dict)


def make_points(
    ranks: Iterable[int],
    alphas: Iterable[int],
    learning_rates: Iterable[float],
    bases: Sequence[str],
    *,
    name_bases: bool = False,
) -> list[Point]:
    """Every combination once, in the order given. Raises `ConfigError` for bases of one name."""
    points = dict.fromkeys(
        Point(*values) for values in product(ranks, alphas, learning_rates, bases)
    )
    named = [replace(point, name=_name(point, name_bases)) for point in points]
    if len({point.name for point in named}) < len(named):
        raise ConfigError(
            f"--base {','.join(bases)}: two of them end in the same name",
            "bases whose last parts differ, since they name the run folders",
            "rename one folder, or make two sweeps",
        )
    return named


def point_options(options: RunOptions, point: Point) -> RunOptions:
    """The run folder and the settings of one point."""
    chosen = options
    for key in ("rank", "alpha", "learning_rate"):
        chosen = chosen.override(f"train.{key}", getattr(point, key))
    run = options.run.with_name(f"{options.run.name}-{point.name}")
    return replace(chosen.override("base", point.base), run=run)


def run_sweep(
    options: RunOptions,
    points: Sequence[Point],
    train: Train,
    on_outcome: Callable[[list[Outcome]], None],
) -> list[Outcome]:
    """Train every point that is not finished; `on_outcome` hears of all after each.

    `train` makes the adapter of one run, or raises `KormedError`.
    """
    require_stage(options.run, "data")
    outcomes = [Outcome(point, "waiting") for point in points]
    for index, point in enumerate(points):
        outcomes[index] = _run_point(options, point, train)
        on_outcome(list(outcomes))
    return outcomes


def is_finished(options: RunOptions, source: Path) -> bool:
    """Whether a point's adapter is there, made with these settings from these data."""
    adapter, config = options.run / "adapter", options.config.values
    if not (adapter / MANIFEST).is_file():
        return False
    made = read_manifest(adapter)
    return (
        made.settings.get("base") == config.base
        and made.settings.get("train") == config.train.model_dump(mode="json")
        and made.inputs == {"data": manifest_hash(source / "data")}
    )


def measure(run: Path) -> dict[str, Any]:
    """A finished adapter in numbers; None for what was not recorded."""
    adapter = run / "adapter"
    made = read_manifest(adapter)
    lines = (adapter / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    train, valid = ([e[key] for e in log if key in e] for key in ("loss", "eval_loss"))
    memory = json.loads((adapter / "memory.json").read_text(encoding="utf-8"))
    return {
        "trainable_parameters": made.settings["plan"]["trainable_parameters"],
        "train_loss": train[-1] if train else None,
        "best_valid_loss": min(valid, default=None),
        "last_valid_loss": valid[-1] if valid else None,
        "tokens_per_second": memory.get("tokens_per_second"),
        "seconds": made.seconds,
        "adapter_manifest": manifest_hash(adapter),
    }


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """By the validation loss of the adapter that was kept, the last; what has none comes last."""

    def key(outcome: Outcome) -> tuple[bool, float]:
        loss = outcome.found.get("last_valid_loss")
        return loss is None, loss or 0.0

    return sorted(outcomes, key=key)


def _run_point(options: RunOptions, point: Point, train: Train) -> Outcome:
    chosen = point_options(options, point)
    started = time.monotonic()
    try:
        carry_stage(options.run, "data", chosen.run, "data", force=options.force)
        if options.force or not is_finished(chosen, options.run):
            train(chosen)
        return Outcome(point, "finished", found=measure(chosen.run))
    except KormedError as error:
        seconds = round(time.monotonic() - started, 1)
        return Outcome(point, "failed", error.found, {"seconds": seconds})


def _name(point: Point, name_base: bool) -> str:
    name = f"r{point.rank}-a{point.alpha}-lr{short_rate(point.learning_rate)}"
    return f"{name}-{_base_name(point.base)}" if name_base else name


def short_rate(rate: float) -> str:
    """A learning rate as people write it: 2e-4, 1.5e-5."""
    mantissa, _, exponent = f"{rate:.9e}".partition("e")
    return f"{float(mantissa):.10g}e{int(exponent)}"


def _base_name(base: str) -> str:
    last = Path(base).name.removesuffix(".gguf")
    return re.sub(r"[^\w.]+", "-", last).strip("-.") or "base"
