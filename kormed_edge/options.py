"""Options that several commands share, and what they add up to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from kormed_edge.config import ResolvedConfig, load_config
from kormed_edge.progress import console

RUNS_DIR = click.option(
    "--runs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    envvar="KORMED_RUNS",
    show_default=True,
    help="Folder of all runs.",
)
RUN = click.option("--run", "run_name", required=True, metavar="NAME", help="Name of the run.")
CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="YAML file of settings.  [default: configs/NAME.yaml]",
)
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
FORCE = click.option("--force", is_flag=True, help="Make a finished stage anew.")


@dataclass(frozen=True)
class RunOptions:
    """A run's folder and the settings that a command was given for it."""

    run: Path
    config: ResolvedConfig
    force: bool

    def override(self, key: str, value: Any) -> "RunOptions":
        return replace(self, config=self.config.override(key, value))

    def show(self, *sections: str) -> None:
        """Print the settings of some sections, each with the place that its value came from."""
        table = Table("setting", "value", "from", box=None, title_justify="left", pad_edge=False)
        for key, value, source in self.config.rows():
            if key.partition(".")[0] in sections:
                table.add_row(key, str(value), source)
        console.print(table)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --run, --config, --set, --force and --runs-dir as one `RunOptions`."""

    @RUN
    @CONFIG
    @SET
    @FORCE
    @RUNS_DIR
    @wraps(command)
    def wrapper(
        run_name: str,
        config_path: Path | None,
        overrides: tuple[str, ...],
        force: bool,
        runs_dir: Path,
        **others: Any,
    ) -> Any:
        path = config_path or Path("configs") / f"{run_name}.yaml"
        return command(
            RunOptions(runs_dir / run_name, load_config(path, overrides), force), **others
        )

    return wrapper
