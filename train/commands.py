"""`kormed data` and `kormed train`."""

import json
from pathlib import Path
from typing import Any

import click

from kormed_edge.base import resolve_base
from kormed_edge.disk import require_space
from kormed_edge.manifest import write_json
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console, progress
from kormed_edge.records import read_records, write_records
from kormed_edge.runs import open_stage, require_stage

SPLITS = ("train", "valid", "test")


@click.command("data")
@run_options
def data_command(options: RunOptions) -> None:
    """Read records, check them, split them.

    \b
    Example: kormed data --run demo
             kormed data --run paper --set data.source=/data/71875
    """
    make_data(options)


@click.command("train")
@run_options
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
def train_command(options: RunOptions, dry_run: bool) -> None:
    """Fine-tune the base with NF4 QLoRA; the same command resumes a stopped training.

    \b
    Example: kormed train --run demo
             kormed train --run demo --set train.max_steps=50 --force
    """
    make_adapter(options, dry_run=dry_run)


def make_data(options: RunOptions) -> None:
    from train.source import read_source
    from train.splits import drop_overlap, find_overlap, split_records
    from train.stats import describe, draw_distribution

    config = options.config.values.data
    options.show("data")
    settings = {"data": config.model_dump(mode="json")}
    with open_stage(options.run, "data", settings, force=options.force) as draft:
        if draft is None:
            console.print(f"{options.run / 'data'}: finished already")
            return
        with progress("data: read, split, compare", 4) as update:
            reading = read_source(config.source, config.on_invalid)
            update(1)
            splits = split_records(
                reading.records, reading.origins, config.scheme, config.ratios, config.seed
            )
            update(2)
            overlap = find_overlap(splits)
            if config.dedupe:
                splits = drop_overlap(splits, overlap)
            update(3)
            _write_data(draft.folder, splits, describe(splits, reading, overlap), draw_distribution)
            update(4)
        draft.seed = config.seed
    sizes = ", ".join(f"{name} {len(getattr(splits, name)):,}" for name in SPLITS)
    console.print(f"{options.run / 'data'}: {sizes}; see stats.json and distribution.png")


def _write_data(folder: Path, splits: Any, stats: dict[str, Any], draw: Any) -> None:
    require_space(folder, 200_000_000, "the splits")
    for name in SPLITS:
        write_records(folder / f"{name}.jsonl", getattr(splits, name))
    write_json(folder / "stats.json", stats)
    draw(stats, folder / "distribution.png")


def make_adapter(options: RunOptions, *, dry_run: bool = False) -> None:
    from train.qlora import Plan, plan_training, train_adapter

    config = options.config.values
    options.show("base", "train")
    data = require_stage(options.run, "data")
    train, valid = (read_records(data / f"{name}.jsonl") for name in ("train", "valid"))
    if dry_run:
        show_plan(plan_training(Path(resolve_base(config.base).path), train, valid, config.train))
        return
    settings = {"base": config.base, "train": config.train.model_dump(mode="json")}
    with open_stage(
        options.run, "adapter", settings, inputs=["data"], resumable=True, force=options.force
    ) as draft:
        if draft is None:
            console.print(f"{options.run / 'adapter'}: finished already")
            return
        draft.base = resolve_base(config.base)
        draft.seed = config.train.seed
        require_space(draft.folder, 2_000_000_000, "checkpoints of the adapter")
        (draft.folder / "config.yaml").write_text(options.config.to_yaml(), encoding="utf-8")
        with progress("train") as update:

            def announce(plan: Plan) -> None:
                show_plan(plan)
                update(0, plan.steps, "first step")

            facts = train_adapter(
                Path(draft.base.path), train, valid, config.train, draft.folder,
                on_plan=announce, on_step=update,
            )  # fmt: skip
        draft.facts["plan"] = facts
    console.print(f"{options.run / 'adapter'}: {_last_losses(options.run / 'adapter')}")


def show_plan(plan: Any) -> None:
    share = f"{plan.trainable_share:.2%}"
    console.print(
        f"trainable parameters {plan.trainable_parameters:,} of {plan.total_parameters:,} ({share};"
        f" {plan.printed_total:,} stored elements) · weights {plan.weights_bytes / 1e9:.2f} GB\n"
        f"{plan.samples:,} samples, {plan.tokens_per_epoch:,} tokens an epoch, {plan.cut_samples}"
        f" cut at the maximum length · {plan.steps:,} optimizer steps",
        highlight=False,
    )


def _last_losses(adapter: Path) -> str:
    lines = (adapter / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    train, valid = ([e[key] for e in entries if key in e] for key in ("loss", "eval_loss"))
    return f"loss {train[0]:.3f} → {train[-1]:.3f}, validation {valid[-1]:.3f}; see loss.png"
