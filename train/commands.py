"""`kormed data` and `kormed train`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kormed_edge.base import resolve_base
from kormed_edge.config import TrainConfig
from kormed_edge.disk import require_space
from kormed_edge.manifest import write_json
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console, ignore, progress
from kormed_edge.ranks import everywhere, in_step, led, this_rank
from kormed_edge.records import Record, read_records, write_records
from kormed_edge.runs import open_stage, require_stage
from train.default_command import DefaultCommandGroup
from train.dpo_command import dpo_command
from train.sweep_command import sweep_command

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


@click.group("train", cls=DefaultCommandGroup)
def train_command() -> None:
    """Fine-tune the base with NF4 QLoRA; the same command resumes a stopped training.

    \b
    Example: kormed train --run demo
             kormed train --run demo --set train.max_steps=50 --force
    """


@click.command("sft")
@run_options
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
@led
def sft_command(options: RunOptions, dry_run: bool) -> None:
    """Fine-tune the base on the training split; `kormed train` alone is the same.

    \b
    Example: kormed train sft --run demo
    """
    make_adapter(options, dry_run=dry_run)


train_command.set_default(sft_command)
train_command.add_command(sweep_command)
train_command.add_command(dpo_command)


def make_data(options: RunOptions) -> None:
    from train.balance import balance_training
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
            stats = describe(splits, reading, overlap)
            balanced, stats["balance"] = balance_training(splits.train, config.balance, config.seed)
            splits = replace(splits, train=balanced)
            _write_data(draft.folder, splits, stats, draw_distribution)
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
    from train.balance import loss_weights
    from train.qlora import plan_training

    config = options.config.values
    options.show("base", "train")
    data = require_stage(options.run, "data")
    train, valid = (read_records(data / f"{name}.jsonl") for name in ("train", "valid"))
    if dry_run:
        base = Path(resolve_base(config.base).path)
        show_lengths(base, train, valid, config.train.max_length)
        show_plan(plan_training(base, train, valid, config.train))
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
        base = Path(draft.base.path)
        show_lengths(base, train, valid, config.train.max_length, draft.folder)
        facts: dict[str, Any] = {}
        everywhere(
            train_rank, base, train, valid, config.train, draft.folder, loss_weights(data), facts
        )
        draft.facts["plan"] = facts
    console.print(f"{options.run / 'adapter'}: {_last_losses(options.run / 'adapter')}")


def train_rank(
    base: Path,
    train: list[Record],
    valid: list[Record],
    config: TrainConfig,
    folder: Path,
    weights: dict[str, float] | None,
    facts: dict[str, Any],
) -> None:
    """One rank's part of a training. Rank 0 shows it and puts its plan into `facts`."""
    from train.qlora import Plan, train_adapter

    if this_rank().index > 0:
        with in_step():
            train_adapter(
                base, train, valid, config, folder,
                on_plan=lambda _: None, on_step=ignore, domain_weights=weights,
            )  # fmt: skip
        return
    with progress("train") as update, in_step():

        def announce(plan: Plan) -> None:
            show_plan(plan)
            update(0, plan.steps, "first step")

        facts |= train_adapter(
            base, train, valid, config, folder,
            on_plan=announce, on_step=update, domain_weights=weights,
        )  # fmt: skip


def show_lengths(
    base: Path,
    train: list[Record],
    valid: list[Record],
    max_length: int,
    folder: Path | None = None,
) -> None:
    """Say how long the samples are in the base's tokens; into `folder`, lengths.json and .png."""
    from kormed_edge.nf4 import load_tokenizer
    from train.lengths import count_tokens, describe_lengths, draw_lengths

    if not train:
        return
    counted = count_tokens({"train": train, "valid": valid}, load_tokenizer(base))
    about = describe_lengths(counted, max_length)
    if folder is not None:
        write_json(folder / "lengths.json", about)
        draw_lengths(counted, max_length, folder / "lengths.png")
    found = about["splits"]["train"]["all"]
    console.print(
        f"tokens a sample: median {found['median']:,}, 95 % {found['p95']:,}, longest"
        f" {found['max']:,}; {found['over']:,} of {found['samples']:,} exceed {max_length:,}",
        highlight=False,
    )


def show_plan(plan: Any) -> None:
    share = f"{plan.trainable_share:.2%}"
    console.print(
        f"trainable parameters {plan.trainable_parameters:,} of {plan.total_parameters:,} ({share};"
        f" {plan.printed_total:,} stored elements) · weights {plan.weights_bytes / 1e9:.2f} GB,"
        f" expected peak {plan.expected_peak_bytes / 1e9:.1f} GB\n"
        f"{plan.samples:,} samples, {plan.tokens_per_epoch:,} tokens an epoch, {plan.cut_samples}"
        f" cut at the maximum length · {plan.steps:,} optimizer steps",
        highlight=False,
    )


def _last_losses(adapter: Path) -> str:
    lines = (adapter / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    train, valid = ([e[key] for e in entries if key in e] for key in ("loss", "eval_loss"))
    validation = f"validation {valid[-1]:.3f}" if valid else "not validated"
    return f"loss {train[0]:.3f} → {train[-1]:.3f}, {validation}; see loss.png"
