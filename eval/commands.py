"""`kormed eval` and `kormed verify`."""

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from eval.acceptance_options import OnSite, acceptance_options
from eval.items import choose_records
from eval.predictions import file_name, read_predictions
from kormed_edge.bundle_evidence import UNDER
from kormed_edge.config import EvalConfig
from kormed_edge.errors import StageError
from kormed_edge.manifest import read_manifest, sha256_file, write_json
from kormed_edge.options import RUNS_DIR, RunOptions, run_options
from kormed_edge.progress import Update, console, progress
from kormed_edge.ranks import led
from kormed_edge.records import read_records
from kormed_edge.runs import open_stage, require_stage, verify_chain

COLUMNS = (
    ("multiple choice", "accuracy"),
    ("unread", "unread"),
    ("ROUGE-L ko", "rouge_ko_L"),
    ("ROUGE-L paper", "rouge_paper_L"),
)
GATE_EXIT = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


@click.command("eval")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Items an arm; the results are not for release."
)
@run_options
@led
def eval_command(options: RunOptions, limit: int | None) -> None:
    """Answer the test split with every arm, score the answers, ask the gate, write the report.

    \b
    Example: kormed eval --run demo
             kormed eval --run demo --set "eval.arms=[adapter, gguf:Q4_K_M]" --force
    """
    if limit:
        options = options.override("eval.limit", limit)
    evaluate(options)
    report(options)


@click.command("verify")
@click.option("--run", "run_name", metavar="NAME", help="Name of the run.")
@RUNS_DIR
@acceptance_options
@click.pass_context
def verify_command(
    ctx: click.Context, run_name: str, runs_dir: Path, on_site: OnSite | None
) -> None:
    """Check a run's manifests and files, then decide the gate anew from its predictions.

    With --acceptance, check an installed bundle, answer its acceptance set on this machine and
    hold the answers against the sealed ones; the report is signed with a key of this site.

    \b
    Exit codes: 0 PASS · 1 damaged or unfinished · 3 FAIL · 4 INCONCLUSIVE
    Example:    kormed verify --run demo
                kormed verify --acceptance
    """
    if on_site is not None:
        from eval.acceptance_command import verify_on_site

        ctx.exit(GATE_EXIT[verify_on_site(on_site).verdict.outcome])
    run = runs_dir / run_name
    problems = verify_chain(run)
    if problems:
        shown = "\n  ".join(problems[:20])
        raise StageError(
            f"{run}: {len(problems)} difference(s) from its manifests:\n  {shown}",
            "the files that the stages wrote",
            "restore the files, or run the stage again with --force",
        )
    folder = require_stage(run, "eval")
    config = EvalConfig.model_validate(read_manifest(folder).settings["eval"])
    verdict = decide_from_files(run, folder, config)
    console.print(f"{run}: every file as its manifest says")
    show_verdict(verdict)
    ctx.exit(GATE_EXIT[verdict["outcome"]])


def evaluate(options: RunOptions) -> None:
    from eval.answering import answer_all
    from eval.arms import choose_arms
    from eval.calibration_step import calibrate_arms, choose_calibrated, measure_arms
    from eval.protocol import kit

    config = options.config.values.eval
    options.show("eval")
    gguf = require_stage(options.run, "gguf")
    arms = choose_arms(config.arms, options.run)
    calibrated = choose_calibrated(config, arms, options.run)
    encoder = _encoder(config)
    settings = {"eval": config.model_dump(mode="json")} | _under(options.run, arms)
    with open_stage(
        options.run, "eval", settings, inputs=["data", "adapter", "gguf"],
        resumable=True, force=options.force,
    ) as draft:  # fmt: skip
        if draft is None:
            console.print(f"{options.run / 'eval'}: finished already")
            return
        source = read_manifest(gguf)
        draft.base, draft.seed = source.base, source.seed
        draft.facts["arms"] = arms
        records = choose_records(read_records(options.run / "data" / "test.jsonl"), config)
        answer_all(
            options.run, arms, records, kit(config.max_new_tokens), draft.folder,
            batch_size=config.batch_size, slots=config.slots,
        )  # fmt: skip
        calibrations = calibrate_arms(options.run, calibrated, draft.folder, config)
        with progress("eval: score", len(arms)) as update:
            scores = _score_all(arms, draft.folder, encoder, update)
            for arm, measured in measure_arms(calibrations, draft.folder).items():
                if arm in scores:
                    scores[arm]["calibration"] = measured
            write_json(draft.folder / "scores.json", scores)
        write_json(
            draft.folder / "verdict.json", decide_from_files(options.run, draft.folder, config)
        )


def _under(run: Path, arms: list[str]) -> dict[str, dict[str, str]]:
    """The models of other runs that answer with this one's adapter over them; with another one an
    evaluation begins anew."""
    from eval.arms import lora_files

    files = {arm: file for arm, file in lora_files(run).items() if arm in arms}
    return {UNDER: {arm: sha256_file(file) for arm, file in files.items()}} if files else {}


def _encoder(config: EvalConfig) -> Path | None:
    """BERTScore's encoder, looked at before hours of answering."""
    from eval.bertscore import require_encoder

    if config.bertscore_encoder is None:
        return None
    folder = Path(config.bertscore_encoder)
    require_encoder(folder)
    return folder


def _score_all(
    arms: list[str], folder: Path, encoder: Path | None, update: Update
) -> dict[str, Any]:
    from eval.bertscore import BertScorer
    from eval.scores import score_arm

    bertscore = BertScorer(encoder) if encoder else None
    scores = {}
    for done, arm in enumerate(arms, 1):
        scores[arm] = score_arm(read_predictions(folder / file_name(arm)), bertscore)
        update(done, note=arm)
    return scores


def decide_from_files(run: Path, folder: Path, config: EvalConfig) -> dict[str, Any]:
    """The gate's verdict on two arms' predictions files of a folder, JSON-ready."""
    from eval.gate import decide

    gate = config.gate
    split = read_records(require_stage(run, "data") / "test.jsonl")
    asked = choose_records(split, config)
    verdict = decide(
        read_predictions(folder / file_name(gate.reference)),
        read_predictions(folder / file_name(gate.candidate)),
        gate,
        asked=[record.qa_id for record in asked],
        limited=config.partial,
    )
    arms = {"reference": gate.reference, "candidate": gate.candidate}
    return {**arms, **verdict.model_dump(mode="json")}


def report(options: RunOptions) -> None:
    """Write report/index.html from what the other stages left."""
    from eval.report import write_report

    inputs = ["data", "adapter", "gguf", "eval"]
    with open_stage(options.run, "report", {}, inputs=inputs, force=options.force) as draft:
        if draft is not None:
            source = read_manifest(options.run / "eval")
            draft.base, draft.seed = source.base, source.seed
            write_report(options.run, draft.folder)
    show_scores(options.run)


def show_scores(run: Path) -> None:
    """Print arms by scores, the verdict with its reasons, and where the report is."""
    scores = json.loads((run / "eval" / "scores.json").read_text(encoding="utf-8"))
    verdict = json.loads((run / "eval" / "verdict.json").read_text(encoding="utf-8"))
    first = next(iter(scores.values()))["overall"]
    titles = (f"{title} % (n={first[metric]['n']})" for title, metric in COLUMNS if metric in first)
    table = Table("arm", *titles, box=None, pad_edge=False)
    for arm, score in scores.items():
        cells = (percent_cell(score["overall"][metric]) for _, metric in COLUMNS if metric in first)
        table.add_row(arm, *cells)
    console.print(table)
    show_verdict(verdict)
    console.print(f"report: {run / 'report' / 'index.html'}", highlight=False)


def show_verdict(verdict: dict[str, Any]) -> None:
    colour = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}[verdict["outcome"]]
    pair = f"{verdict['reference']} → {verdict['candidate']}"
    console.print(f"gate {pair}: [bold {colour}]{verdict['outcome']}[/]", highlight=False)
    for reason in verdict["reasons"]:
        console.print(f"  {reason['en']}", highlight=False, markup=False)


def percent_cell(number: dict[str, float]) -> str:
    """A score in percent with its 95 % interval."""
    value, low, high = (100 * number[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}–{high:.1f}]"
