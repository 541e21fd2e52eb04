"""`kormed benchmark`: KorMedMCQA, asked the kit's way and lm-eval's, of every arm of a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from kormed_edge.errors import DataError
from kormed_edge.manifest import read_manifest, write_json
from kormed_edge.options import RUN, RUNS_DIR
from kormed_edge.progress import console
from kormed_edge.ranks import led
from kormed_edge.runs import StageDraft, open_stage, require_stage

if TYPE_CHECKING:
    from kormed_edge.records import Record

SUBJECTS = ("doctor", "nurse", "pharm", "dentist")
STAGE = "benchmark"


@click.command("benchmark")
@RUN
@click.option(
    "--source",
    default="sean0042/KorMedMCQA",
    show_default=True,
    help="The hub's id, or a jsonl, csv or parquet file.",
)
@click.option(
    "--subject",
    type=click.Choice(SUBJECTS),
    multiple=True,
    help="Only these; repeatable.  [default: all]",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="So many items at random, seed 42; the paper took 200.  [default: all]",
)
@click.option("--arm", "arms", multiple=True, help="Only these arms; repeatable.  [default: all]")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Longest answer to the kit's own prompt.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Items a batch, Hugging Face arms.",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Items answered at once, GGUF arms.",
)
@click.option("--force", is_flag=True, help="Make a finished benchmark anew.")
@RUNS_DIR
@led
def benchmark_command(
    run_name: str, source: str, subject: tuple[str, ...], sample: int | None,
    arms: tuple[str, ...], max_new_tokens: int, batch_size: int, slots: int, force: bool,
    runs_dir: Path,
) -> None:  # fmt: skip
    """Answer KorMedMCQA with every arm, under two protocols, and score both; resumes.

    The kit's own prompt, read by the tolerant reader and by likelihood; and the prompt, stops and
    reader of lm-eval's task, for comparison with others' figures.

    \b
    Example: kormed benchmark --run demo --source rows.jsonl --subject doctor --sample 200
    """
    run = runs_dir / run_name
    settings = {
        "benchmark": {
            "source": Path(source).name,
            "subjects": list(subject or SUBJECTS),
            "sample": sample,
            "arms": list(arms) or None,
            "max_new_tokens": max_new_tokens,
        }
    }
    with open_stage(
        run, STAGE, settings, inputs=["adapter", "gguf"], resumable=True, force=force
    ) as draft:
        if draft is not None:
            records = _records(source, subject or SUBJECTS, sample)
            _run(run, records, arms, max_new_tokens, batch_size, slots, draft)
    _show(run / STAGE / "benchmark.json")


def _records(source: str, subjects: tuple[str, ...], sample: int | None) -> "list[Record]":
    """The published test split where the source has one, else every row."""
    from eval import benchmark
    from train.kormedmcqa import read_kormedmcqa

    reading = read_kormedmcqa(source)
    pairs = list(zip(reading.records, reading.origins, strict=True))
    tests = [record for record, origin in pairs if origin == "validation"]
    chosen = [r for r in tests or reading.records if r.domain in subjects]
    if not chosen:
        raise DataError(f"{source}: no rows of {', '.join(subjects)}", "another --subject")
    return benchmark.sample(chosen, sample) if sample else chosen


def _run(
    run: Path, records: "list[Record]", wanted: tuple[str, ...], max_new_tokens: int,
    batch_size: int, slots: int, draft: StageDraft,
) -> None:  # fmt: skip
    from eval.answering import answer_all
    from eval.arms import choose_arms
    from eval.benchmark import score_benchmark
    from eval.predictions import file_name, read_predictions
    from eval.protocol import LM_EVAL, kit

    gguf = require_stage(run, "gguf")
    source = read_manifest(gguf)
    draft.base, draft.seed = source.base, source.seed
    arms = choose_arms(wanted or None, run)
    result: dict[str, Any] = {"n": len(records)}
    for protocol in (kit(max_new_tokens), LM_EVAL):
        prefix = f"{protocol.name}-"
        answer_all(
            run, arms, records, protocol, draft.folder,
            batch_size=batch_size, slots=slots, prefix=prefix,
        )  # fmt: skip
        files = {arm: draft.folder / f"{prefix}{file_name(arm)}" for arm in arms}
        result[protocol.name] = {
            arm: score_benchmark(read_predictions(path)) for arm, path in files.items()
        }
    write_json(draft.folder / "benchmark.json", result)


def _show(path: Path) -> None:
    from eval.commands import percent_cell

    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    table = Table("arm", "kormed %", "unread", "likelihood %", "lm-eval %", "unread", box=None)
    for arm, ours in result["kormed"].items():
        theirs = result["lm-eval"][arm]["overall"]["lm_eval"]
        own, likelihood = (ours["overall"][reader] for reader in ("tolerant", "likelihood"))
        cells = [percent_cell(own), str(own["unread"]), percent_cell(likelihood)]
        table.add_row(arm, *cells, percent_cell(theirs), str(theirs["unread"]))
    console.print(table)
    console.print(f"{result['n']} items; {path}", highlight=False)
