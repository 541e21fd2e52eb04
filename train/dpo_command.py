"""`kormed train dpo`: preference training as a second stage, in a run of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kormed_edge.base import base_folder
from kormed_edge.disk import require_space
from kormed_edge.errors import ConfigError
from kormed_edge.manifest import read_manifest, sha256_file
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console, progress
from kormed_edge.records import read_records
from kormed_edge.runs import open_stage, require_stage


@click.command("dpo")
@run_options
@click.option(
    "--pairs", "pairs_path", required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Preference pairs, JSONL; see docs/data.md.",
)  # fmt: skip
@click.option("--to", "new_name", metavar="NAME", help="The new run.  [default: NAME-dpo]")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
def dpo_command(options: RunOptions, pairs_path: Path, new_name: str | None, dry_run: bool) -> None:
    """Train a run's adapter on preferences (DPO), into a run of its own; resumes.

    \b
    Example: kormed train dpo --run paper --pairs dpo.jsonl --config configs/dpo.yaml
             kormed train dpo --run paper --pairs dpo.jsonl --to paper-dpo-b03 --set dpo.beta=0.3
    """
    new = options.run.with_name(new_name or f"{options.run.name}-dpo")
    if new == options.run:
        raise ConfigError(f"--to {new.name} is the run itself", "another name", "--to NAME")
    make_preferred(options, pairs_path, new, dry_run=dry_run)


def make_preferred(options: RunOptions, pairs_path: Path, new: Path, *, dry_run: bool) -> None:
    """Train `options.run`'s adapter on pairs into the run `new`."""
    from train.carry import carry_stage
    from train.pairs import read_pairs, require_unseen
    from train.preference import plan_preferences

    config = options.config.values.dpo
    options.show("dpo")
    data, sft = (require_stage(options.run, stage) for stage in ("data", "adapter"))
    pairs = read_pairs(pairs_path)
    kept = [record for name in ("valid", "test") for record in read_records(data / f"{name}.jsonl")]
    require_unseen(pairs_path, pairs, kept)
    if dry_run:
        show_pair_plan(plan_preferences(base_folder(read_manifest(sft)), sft, pairs, config))
        return
    for stage, name in (("data", "data"), ("adapter", "sft")):
        carry_stage(options.run, stage, new, name, force=options.force)
    _train(replace(options, run=new), pairs, pairs_path)


def _train(options: RunOptions, pairs: Any, pairs_path: Path) -> None:
    from train.preference import PairPlan, train_preferences

    config, sft = options.config.values.dpo, require_stage(options.run, "sft")
    trained = read_manifest(sft)
    settings = {
        "base": trained.settings["base"],
        "dpo": config.model_dump(mode="json"),
        "pairs": {"sha256": sha256_file(pairs_path), "number": len(pairs)},
    }
    inputs = ["data", "sft"]
    with open_stage(
        options.run, "adapter", settings, inputs=inputs, resumable=True, force=options.force
    ) as draft:
        if draft is None:
            console.print(f"{options.run / 'adapter'}: finished already")
            return
        base = base_folder(trained)
        draft.base, draft.seed = trained.base, config.seed
        require_space(draft.folder, 2_000_000_000, "checkpoints of the adapter")
        (draft.folder / "config.yaml").write_text(options.config.to_yaml(), encoding="utf-8")
        with progress("dpo") as update:

            def announce(plan: PairPlan) -> None:
                show_pair_plan(plan)
                update(0, plan.steps, "first step")

            # The report describes the fine-tuning that this began with by these two.
            draft.facts |= {key: trained.settings[key] for key in ("train", "plan")}
            draft.facts["dpo_plan"] = train_preferences(
                base, sft, pairs, config, draft.folder, on_plan=announce, on_step=update
            )
    console.print(
        f"{options.run / 'adapter'}: see log.jsonl and loss.png; go on with"
        f" kormed export --run {options.run.name} --config CONFIG", highlight=False,
    )  # fmt: skip


def show_pair_plan(plan: Any) -> None:
    console.print(
        f"trainable parameters {plan.trainable_parameters:,}\n{plan.pairs:,} pairs to train on,"
        f" {plan.valid_pairs:,} held out, {plan.left_out:,} left out (no room for an answer),"
        f" {plan.cut_answers:,} answers cut at the maximum length · {plan.steps:,} optimizer steps",
        highlight=False,
    )  # fmt: skip
