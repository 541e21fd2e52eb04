"""`kormed ask`: questions on the terminal, one or many."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from select import select
from typing import Any

import click

from kormed_edge.asker import WORDS, Asker, Language
from kormed_edge.calibration import find_calibration
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError, EngineError
from kormed_edge.guidelines_file import GuidelinesError
from kormed_edge.model_options import (
    MAX_NEW_TOKENS,
    answer_options,
    model_options,
    model_path,
    open_guidelines,
)
from kormed_edge.options import RunOptions
from kormed_edge.progress import console
from kormed_edge.suppression import Suppression
from kormed_edge.verification import verify_model

PASTE_S = 0.05
"""Pause after a line in which the next line of a pasted text has come."""


@click.command("ask")
@click.argument("question", required=False)
@model_options
@MAX_NEW_TOKENS
@answer_options
@click.option(
    "--language",
    type=click.Choice(["ko", "en"]),
    default="ko",
    show_default=True,
    help="Of the words around the answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an answer as one line of JSON.")
def ask_command(question: str | None, **given: Any) -> None:
    """Answer QUESTION, or what standard input holds; on a terminal, one question after another.

    The answer goes to standard output: on a terminal as it is written, elsewhere when it is whole.
    Guidance, the option chosen, confidence, passages, warnings and the notice go to standard
    error. --json has all of it on standard output, with the names of POST /v1/ask. A QUESTION of -
    reads standard input on a terminal too.

    \b
    Example: kormed ask --run demo "급성 충수염의 전형적인 압통 부위는?"
             kormed ask --run demo < item.txt > answer.txt
             kormed ask --run demo --json "…" | jq .option
             kormed ask --run demo --guidelines default "흉통 환자의 심전도는 언제 찍는가?"
    """
    converses = question is None and sys.stdin.isatty()
    text = "" if converses else _given_text(question)
    path = model_path(given["run_name"], given["type_"], given["model"], given["runs_dir"])
    with _loaded(path, given) as asker:
        if converses:
            _converse(asker)
        else:
            asker.ask(text)


def _given_text(question: str | None) -> str:
    text = _read_stdin() if question in (None, "-") else str(question)
    if not text.strip():
        raise ConfigError("the question is empty", "some text", 'kormed ask --run demo "질문"')
    return text.strip()


def _read_stdin() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ConfigError(
            "standard input is not UTF-8", "UTF-8", "iconv -f CP949 -t UTF-8 FILE | kormed ask …"
        ) from None


@contextmanager
def _loaded(path: Path, given: Mapping[str, Any]) -> Iterator[Asker]:
    language: Language = given["language"]
    with console.status(WORDS["loading"][language]):
        digest = verify_model(path, allow_unverified=given["allow_unverified"])
        guidelines = open_guidelines(given["guidelines"])
        engine = Engine(path, context=given["context"], threads=given["threads"])
    with engine, closing(guidelines) if guidelines else nullcontext():
        yield Asker(
            engine, path.stem, digest, given["max_new_tokens"], find_calibration(path, digest),
            language, given["as_json"], guidelines,
            None if given["allow_han"] else Suppression.of(engine.pieces()),
        )  # fmt: skip


def _converse(asker: Asker) -> None:
    """Ask what is typed until an empty line; an answer that is stopped or fails ends nothing."""
    with suppress(ImportError):
        import readline  # noqa: F401 - from here on lines are edited, and a paste is one line
    asker.say(asker.word("hint"), "dim")
    while text := _typed(asker.word("prompt")):
        try:
            asker.ask(text)
        except KeyboardInterrupt:
            asker.say(asker.word("stopped"), "yellow")
        except (ConfigError, EngineError, GuidelinesError) as error:
            if not asker.engine.is_open:
                raise
            asker.say(str(error), "red")


def _typed(prompt: str) -> str:
    """A line, or the lines that were pasted at once; Ctrl-C begins anew.

    Of a pasted text the last line seldom has its end. So what came as several lines ends with an
    empty one, after which nothing waits.
    """
    lines: list[str] = []
    while True:
        try:
            lines.append(_input("… " if lines else prompt))
            if not _more_waits() and (len(lines) == 1 or not lines[-1].strip()):
                return "\n".join(lines).strip()
        except EOFError:
            click.echo(err=True)
            return "\n".join(lines).strip()
        except KeyboardInterrupt:
            click.echo(err=True)
            lines.clear()


def _input(prompt: str) -> str:
    """`input` that keeps its prompt out of a standard output that is no terminal."""
    if sys.stdout.isatty():
        return input(prompt)
    click.echo(prompt, nl=False, err=True)
    return input()


def _more_waits() -> bool:
    return bool(select([sys.stdin], [], [], PASTE_S)[0])


def ask_run(options: RunOptions, question: str) -> None:
    """Ask a run's smallest GGUF, as `kormed ask` does; for the demo."""
    runs_dir, name = options.run.parent, options.run.name
    smallest = ("bf16", *options.config.values.export.types)[-1]
    path = model_path(name, smallest, None, runs_dir)
    digest = verify_model(path)
    click.echo(f"질문: {question}\n답변: ", nl=False)
    with Engine(path) as engine:
        Asker(engine, path.stem, digest, 96, find_calibration(path, digest)).ask(question)
