"""`kormed judge`: the paper's Table 5, by a language model that scores the answers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from eval.judge import CRITERIA, JudgeConfig, judge
from eval.predictions import file_name, read_predictions
from kormed_edge.manifest import read_manifest, write_json
from kormed_edge.options import RUN, RUNS_DIR
from kormed_edge.progress import console, progress
from kormed_edge.runs import open_stage, require_stage


@click.command("judge")
@RUN
@click.option("--endpoint", required=True, help="Base URL of an OpenAI-compatible API.")
@click.option("--model", required=True, help="The judge's name there.")
@click.option(
    "--n", type=click.IntRange(min=1), default=30, show_default=True, help="Items an arm."
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Times that each answer is scored, for the judge's own spread.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that holds the key and nothing else.",
)
@click.option("--allow-remote", is_flag=True, help="Send questions and answers off this machine.")
@click.option("--force", is_flag=True, help="Make a finished judgement anew.")
@RUNS_DIR
def judge_command(
    run_name: str, endpoint: str, model: str, n: int, repeats: int, api_key_file: Path | None,
    allow_remote: bool, force: bool, runs_dir: Path,
) -> None:  # fmt: skip
    """Have a language model score answers from 1 to 5: accuracy, completeness, relevance.

    Short and descriptive answers of every arm, blind, in random order; resumes. The judge has to
    be on this machine unless --allow-remote is given.

    \b
    Example: kormed judge --run demo --endpoint http://127.0.0.1:8080/v1 --model judge
    """
    run = runs_dir / run_name
    config = JudgeConfig(
        endpoint, model, n=n, repeats=repeats, api_key_file=api_key_file, allow_remote=allow_remote
    )
    folder = require_stage(run, "eval")
    settings = {"judge": {k: v for k, v in asdict(config).items() if k != "api_key_file"}}
    with open_stage(run, "judge", settings, inputs=["eval"], resumable=True, force=force) as draft:
        if draft is not None:
            source = read_manifest(folder)
            draft.base, draft.seed = source.base, config.seed
            arms = {a: read_predictions(folder / file_name(a)) for a in source.settings["arms"]}
            with progress("judge") as update:
                result = judge(arms, config, update, draft.folder / "log.jsonl")
            write_json(draft.folder / "judge.json", result)
    _show(run / "judge" / "judge.json")


def _show(path: Path) -> None:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    table = Table("arm", *CRITERIA, "unparsed", box=None, pad_edge=False)
    for arm, scores in result["arms"].items():
        cells = (_cell(scores["criteria"].get(criterion)) for criterion in CRITERIA)
        table.add_row(arm, *cells, str(scores["unparsed"]))
    console.print(table)
    console.print(f"{result['n']} items, {result['repeats']} times each; {path}", highlight=False)


def _cell(number: dict[str, Any] | None) -> str:
    """Mean and interval over items, and the judge's own spread over its repeats."""
    if number is None:
        return "–"
    spread = "" if number["spread"] is None else f" ±{number['spread']:.2f}"
    return f"{number['value']:.2f} [{number['low']:.2f}–{number['high']:.2f}]{spread}"
