"""What `kormed verify --acceptance` can be asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

INSTALLED = Path("/var/lib/kormed/current")
BUNDLE_KEY = Path("/etc/kormed/bundle.pub")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True)
class OnSite:
    """What a verification on site is asked for."""

    bundle: Path
    key: Path
    records: Path | None = None
    references: tuple[Path, ...] = ()
    out: Path | None = None
    slots: int | None = None


def acceptance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `on_site`: an `OnSite`, or None without --acceptance."""

    @wraps(command)
    def wrapper(acceptance: bool, run_name: str | None, **others: Any) -> Any:
        chosen = {name: others.pop(name) for name in OnSite.__dataclass_fields__}
        ctx = click.get_current_context()
        sources = map(ctx.get_parameter_source, chosen)
        if acceptance == (run_name is not None):
            raise click.UsageError("--run and --acceptance: both or neither given, expected one")
        if not acceptance and ParameterSource.COMMANDLINE in sources:
            raise click.UsageError("an option of --acceptance is given without it")
        on_site = OnSite(**chosen) if acceptance else None
        return command(run_name=run_name, on_site=on_site, **others)

    decorated: Any = wrapper
    for option in (
        click.option("--slots", type=click.IntRange(min=1),
                     help="Items answered at once.  [default: as the builder did]"),
        click.option("--out", type=FOLDER,
                     help="Folder of the report.  [default: $KORMED_HOME/acceptance/UTC]"),
        click.option("--reference", "references", type=FILE, multiple=True,
                     help="A set of your own: answers of this GGUF, as a predictions file."),
        click.option("--records", type=FILE,
                     help="Your own copy of records of which only hashes travel."),
        click.option("--key", type=click.Path(dir_okay=False, path_type=Path), default=BUNDLE_KEY,
                     show_default=True, help="The sender's public key."),
        click.option("--bundle", type=FOLDER, default=INSTALLED, show_default=True,
                     help="Folder of the bundle, installed or not."),
        click.option("--acceptance", is_flag=True,
                     help="Answer a bundle's acceptance set on this machine instead."),
    ):  # fmt: skip
        decorated = option(decorated)
    result: Callable[..., Any] = decorated
    return result
