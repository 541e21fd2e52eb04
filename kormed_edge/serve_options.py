"""The options of `kormed serve` beside those of the model."""

from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)


def listen_options(command: Any) -> Any:
    """Where the service listens, who may ask it and how it stops."""
    for option in (
        click.option("--drain-seconds", type=click.FloatRange(min=0), default=25.0,
                     show_default=True, help="For what is under way at SIGTERM."),
        click.option("--cors-origin", "origins", multiple=True, metavar="ORIGIN",
                     help="Web origin whose pages may ask; repeatable.  [default: none]"),
        click.option("--insecure", is_flag=True,
                     help="Serve without keys on an address that other machines reach."),
        click.option("--api-keys", type=FILE, help="File of `kormed keys add`; ask for a key."),
        click.option("--tls-key", type=FILE, help="Its key, PEM, not readable for everyone."),
        click.option("--tls-certificate", type=FILE, help="Certificate chain, PEM: serve TLS."),
        click.option("--unix-socket", type=FILE, help="Listen on this file, mode 660, instead."),
        click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
                     help="0 takes a free one."),
        click.option("--host", default="127.0.0.1", show_default=True,
                     help="IP address to listen on."),
    ):  # fmt: skip
        command = option(command)
    return command


def limit_options(command: Any) -> Any:
    """How much the service takes on."""
    for option in (
        click.option("--rate", type=POSITIVE,
                     help="Requests a minute of each key or address.  [default: any number]"),
        click.option("--request-seconds", type=click.FloatRange(min=1), default=300.0,
                     show_default=True, help="Longest time for one answer."),
        click.option("--max-body", type=POSITIVE, default=2**20, show_default=True,
                     help="Longest request in bytes."),
        click.option("--queue", type=click.IntRange(min=0), default=64, show_default=True,
                     help="Requests that may wait for a slot; the next gets 429."),
        click.option("--slots", type=POSITIVE, default=4, show_default=True,
                     help="Requests answered at once; each has its own --context."),
        click.option("--gpu-layers", type=click.IntRange(min=0),
                     help="[default: as many as fit]"),
        click.option("--default-adapter", metavar="NAME",
                     help="The --adapter for requests that name no model.  [default: none]"),
        click.option("--adapter", "adapters", multiple=True, metavar="NAME=FILE",
                     help="A LoRA GGUF that requests choose by NAME as their model; repeatable."),
    ):  # fmt: skip
        command = option(command)
    return command


def audit_options(command: Any) -> Any:
    """What is written down of requests."""
    for option in (
        click.option("--audit-retention", type=POSITIVE, metavar="DAYS",
                     help="Prune older rows, once a day.  [default: never]"),
        click.option("--audit-optional", is_flag=True,
                     help="Answer also when the log cannot be written."),
        click.option("--audit-content", type=FILE, metavar="KEYFILE",
                     help="Keep texts too, sealed with the key of `kormed audit keygen`."),
        click.option("--audit", type=FILE,
                     help="Audit log, SQLite: hashes and numbers of every request."),
    ):  # fmt: skip
        command = option(command)
    return command
