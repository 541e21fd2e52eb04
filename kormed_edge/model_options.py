"""Options that `ask`, `serve` and `bench` share: which GGUF they load, and how it answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kormed_edge.errors import ConfigError
from kormed_edge.manifest import read_manifest
from kormed_edge.options import RUNS_DIR
from kormed_edge.runs import require_stage

if TYPE_CHECKING:
    from kormed_edge.guidelines import Guidelines

DEFAULT = "default"
MAX_NEW_TOKENS = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Longest answer in tokens.",
)


def answer_options(command: Any) -> Any:
    """What an answer may be made of: the hospital's guidelines, and Han characters."""
    for option in (
        click.option("--allow-han", is_flag=True,
                     help="Let answers hold Han characters and other scripts."),
        click.option("--guidelines", type=click.Path(dir_okay=False, path_type=Path),
                     metavar="FILE|default", help="Answer from this index of `kormed guidelines`; "
                     "default is $KORMED_HOME/guidelines.db.  [default: none]"),
    ):  # fmt: skip
        command = option(command)
    return command


def open_guidelines(given: Path | None) -> "Guidelines | None":
    """The index that --guidelines names, ready for the first question.

    Raises `GuidelinesError` for one that cannot be used.
    """
    from kormed_edge.guideline_terms import find_terms
    from kormed_edge.guidelines import Guidelines
    from kormed_edge.guidelines_file import default_path

    if given is None:
        return None
    guidelines = Guidelines(default_path() if str(given) == DEFAULT else given)
    find_terms([""])  # loads Kiwi, which takes a second
    return guidelines


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
