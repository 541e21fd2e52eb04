"""`kormed keys`: who may ask a service that other machines can reach."""

from pathlib import Path

import click

from kormed_edge.api_keys import add_key, read_keys, remove_key
from kormed_edge.progress import console

FILE = click.option(
    "--file", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The file that `kormed serve --api-keys` reads.",
)  # fmt: skip
RESTART = "A running service reads the file when it starts: restart it."


@click.group("keys")
def keys_command() -> None:
    """Add, list and remove the API keys of a service.

    The file holds names and hashes, not keys. Every client gets a key of its own, so that one can
    be taken away.

    \b
    Example: kormed keys add ward-3 --file keys.txt
             kormed keys list --file keys.txt
             kormed keys remove ward-3 --file keys.txt
    """


@keys_command.command("add")
@click.argument("name")
@FILE
def add_command(name: str, file: Path) -> None:
    """Make a key for NAME and print it, this one time.

    \b
    Example: kormed keys add ward-3 --file keys.txt
    """
    click.echo(add_key(file, name))
    console.print(f"This is the only time that the key is shown. {RESTART}", highlight=False)


@keys_command.command("list")
@FILE
def list_command(file: Path) -> None:
    """Print the names of all keys.

    \b
    Example: kormed keys list --file keys.txt
    """
    for name in read_keys(file):
        click.echo(name)


@keys_command.command("remove")
@click.argument("name")
@FILE
def remove_command(name: str, file: Path) -> None:
    """Take the key of NAME away.

    \b
    Example: kormed keys remove ward-3 --file keys.txt
    """
    remove_key(file, name)
    console.print(f"removed {name}. {RESTART}", highlight=False)
