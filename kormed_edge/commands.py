"""`kormed ask`: one question to the model; and the options that `kormed serve` shares with it."""

import sys
from pathlib import Path
from typing import Any

import click

from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError
from kormed_edge.manifest import read_manifest
from kormed_edge.options import RUNS_DIR, RunOptions
from kormed_edge.progress import console
from kormed_edge.prompts import NOTICE, question_messages
from kormed_edge.runs import require_stage
from kormed_edge.verification import verify_model

MAX_NEW_TOKENS = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Longest answer in tokens.",
)


def model_options(command: Any) -> Any:
    """Which GGUF, --model or --run with --type, and how it is loaded."""
    for option in (
        click.option("--run", "run_name", metavar="NAME", help="Take the GGUF of this run."),
        click.option("--type", "type_", default="Q4_K_M", show_default=True,
                     help="Which of the run's."),
        click.option("--model", type=click.Path(dir_okay=False, path_type=Path),
                     help="A GGUF file."),
        click.option("--allow-unverified", is_flag=True,
                     help="Load a file that no manifest names."),
        click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]"),
        click.option("--context", "--ctx", "context", type=click.IntRange(min=64), default=4096,
                     show_default=True, help="Tokens of question and answer together."),
        RUNS_DIR,
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("ask")
@click.argument("question", required=False)
@model_options
@MAX_NEW_TOKENS
def ask_command(
    question: str | None, run_name: str | None, type_: str, model: Path | None,
    allow_unverified: bool, threads: int | None, context: int, max_new_tokens: int, runs_dir: Path,
) -> None:  # fmt: skip
    """Answer one QUESTION on the terminal; without one, read it from standard input.

    \b
    Example: kormed ask --run demo "급성 충수염의 전형적인 압통 부위는?"
    """
    text = question if question is not None else sys.stdin.read()
    if not text.strip():
        raise ConfigError("the question is empty", "some text", 'kormed ask --run demo "질문"')
    path = model_path(run_name, type_, model, runs_dir)
    verify_model(path, allow_unverified=allow_unverified)
    with Engine(path, context=context, threads=threads) as engine:
        answer(engine, text, max_new_tokens)


def model_path(run_name: str | None, type_: str, model: Path | None, runs_dir: Path) -> Path:
    """The file that --model names, or a run's GGUF of the wanted type."""
    if (model is None) == (run_name is None):
        raise ConfigError(
            "--model and --run: both or neither given", "one of them", "kormed ask --run demo"
        )
    if model is not None:
        return model
    folder = require_stage(runs_dir / str(run_name), "gguf")
    models: dict[str, str] = read_manifest(folder).settings["models"]
    if type_ not in models:
        raise ConfigError(
            f"--type {type_} is not in {folder}",
            f"one of {', '.join(models)}",
            f'kormed export --run {run_name} --set "export.types=[{type_}]" --force',
        )
    return folder / models[type_]


def answer(engine: Engine, question: str, max_new_tokens: int) -> None:
    """Stream one answer to standard output, the notice to standard error."""
    ids = engine.encode_messages(question_messages(question))
    for piece in engine.stream(ids, max_tokens=max_new_tokens):
        click.echo(piece.text, nl=False)
    click.echo()
    console.print(NOTICE, style="dim", highlight=False)


def ask_run(options: RunOptions, question: str) -> None:
    """Ask a run's smallest GGUF, as `kormed ask` does; for the demo."""
    runs_dir, name = options.run.parent, options.run.name
    smallest = ("bf16", *options.config.values.export.types)[-1]
    path = model_path(name, smallest, None, runs_dir)
    verify_model(path)
    click.echo(f"질문: {question}\n답변: ", nl=False)
    with Engine(path) as engine:
        answer(engine, question, 96)
