"""`kormed guidelines`: the hospital's own documents, which answers may cite."""

import logging
from collections import Counter
from pathlib import Path

import click

from kormed_edge.errors import ConfigError
from kormed_edge.guideline_documents import DocumentError
from kormed_edge.guidelines import LIMIT, RELEVANT, Guidelines, Passage
from kormed_edge.guidelines_file import default_path, open_to_read
from kormed_edge.progress import console, progress

INDEX = click.option(
    "--index", type=click.Path(dir_okay=False, path_type=Path), default=default_path,
    show_default="$KORMED_HOME/guidelines.db", help="The file of the index.",
)  # fmt: skip


@click.group("guidelines")
def guidelines_command() -> None:
    """Index the hospital's own documents, whose passages answers then cite.

    \b
    Example: kormed guidelines add *.pdf *.docx
             kormed guidelines search "소아 아나필락시스의 에피네프린 용량"
             kormed guidelines list
             kormed guidelines remove old.pdf
    """


@guidelines_command.command("add")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@INDEX
def add_command(files: tuple[Path, ...], index: Path) -> None:
    """Index FILES (txt, md, pdf, docx); a changed file of the same name is replaced.

    A file that cannot be used is named and left out, and the exit code is 1.

    \b
    Example: kormed guidelines add protocols/*.pdf
    """
    _require_different_names(files)
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    done: Counter[str] = Counter()
    with Guidelines(index, write=True) as guidelines, progress("guidelines", len(files)) as update:
        for number, file in enumerate(files, 1):
            update(number - 1, note=file.name)
            done[_add(guidelines, file)] += 1
            update(number, note=file.name)
    console.print(", ".join(f"{number} {what}" for what, number in done.items()), highlight=False)
    if done["refused"]:
        raise click.exceptions.Exit(1)


def _require_different_names(files: tuple[Path, ...]) -> None:
    """A document is known by its name, so that the second of two would replace the first."""
    [(name, number)] = Counter(file.name for file in files).most_common(1)
    if number > 1:
        raise ConfigError(f"{number} files are named {name}", "a name of its own for each",
                          "rename them")  # fmt: skip


def _add(guidelines: Guidelines, file: Path) -> str:
    try:
        outcome = guidelines.add(file)
    except DocumentError as error:
        console.print(f"refused: {error}", highlight=False, markup=False, soft_wrap=True)
        return "refused"
    click.echo(f"{outcome} {file.name}")
    return outcome


@guidelines_command.command("list")
@INDEX
def list_command(index: Path) -> None:
    """Print every document with its passages, the time it was added and its SHA-256.

    \b
    Example: kormed guidelines list
    """
    with Guidelines(index) as guidelines:
        for found in guidelines.documents():
            click.echo(f"{found.name}  {found.passages}  {found.added}  {found.sha256}")


@guidelines_command.command("remove")
@click.argument("names", nargs=-1, required=True)
@INDEX
def remove_command(names: tuple[str, ...], index: Path) -> None:
    """Take documents out by their NAMES, as `list` prints them.

    \b
    Example: kormed guidelines remove old.pdf
    """
    open_to_read(index).close()
    with Guidelines(index, write=True) as guidelines:
        for name in names:
            guidelines.remove(name)
            click.echo(f"removed {name}")


@guidelines_command.command("reindex")
@INDEX
def reindex_command(index: Path) -> None:
    """Cut an index anew that another version of the kit or of Kiwi made; needs no files.

    \b
    Example: kormed guidelines reindex
    """
    open_to_read(index).close()
    with Guidelines(index, write=True) as guidelines:  # opening it to write is what does it
        click.echo(f"{len(guidelines.documents())} documents")


@guidelines_command.command("search")
@click.argument("question")
@click.option("--limit", type=click.IntRange(1, 20), default=LIMIT, show_default=True)
@click.option(
    "--at-least", type=click.FloatRange(min=0), default=RELEVANT, show_default=True,
    help="Least relevance; 0 shows all that share a word.",
)  # fmt: skip
@INDEX
def search_command(question: str, limit: int, at_least: float, index: Path) -> None:
    """Print the passages that an answer to QUESTION would be given, with their relevance.

    \b
    Example: kormed guidelines search "소아 아나필락시스의 에피네프린 용량"
    """
    with Guidelines(index) as guidelines:
        found = guidelines.search(question, limit=limit, at_least=at_least)
    for number, passage in enumerate(found, 1):
        click.echo(_shown(number, passage))
    if not found:
        console.print("nothing relevant was found", highlight=False)


def _shown(number: int, passage: Passage) -> str:
    place = passage.document + (f", page {passage.page}" if passage.page else "")
    way = f" · {passage.heading}" if passage.heading else ""
    return f"[{number}] {place}{way} ({passage.relevance:.2f})\n{passage.text}\n"
