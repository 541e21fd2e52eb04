"""`kormed serve`: the model behind an API, on this machine only unless told otherwise."""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kormed_edge.calibration import find_calibration
from kormed_edge.commands import MAX_NEW_TOKENS, model_options, model_path
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError, EngineError
from kormed_edge.progress import console
from kormed_edge.prompts import SYSTEM_MESSAGE
from kormed_edge.verification import verify_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from kormed_edge.audit import AuditLog
    from kormed_edge.guards import Guards
    from kormed_edge.listening import Address, Server
    from kormed_edge.loading import LoadingApp
    from kormed_edge.metrics import Metrics

FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)
ORIGIN = re.compile(r"https?://[^/*\s]+")


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


@click.command("serve")
@model_options
@MAX_NEW_TOKENS
@limit_options
@audit_options
@listen_options
def serve_command(**given: Any) -> None:
    """Serve a GGUF on an OpenAI-compatible API, on this machine only by default.

    \b
    Example: kormed serve --run demo
             kormed serve --model /models/demo-Q4_K_M.gguf --port 9000
             kormed serve --model /models/base-Q8_0.gguf --adapter v2=/models/v2/adapter.gguf
             kormed serve --run demo --host 0.0.0.0 --api-keys keys.txt \\
                 --tls-certificate cert.pem --tls-key key.pem
    """
    import uvicorn  # noqa: F401 - a package that is missing is named before anything listens

    from kormed_edge.connection import Bounds
    from kormed_edge.guards import guarded
    from kormed_edge.listening import listener, make_server, tls_context
    from kormed_edge.loading import LoadingApp
    from kormed_edge.metrics import Metrics
    from kormed_edge.server import create_app  # noqa: F401

    given["adapters"] = _adapters(given["adapters"])
    address, guards, metrics = _address(given), _guards(given), Metrics()
    path = model_path(given["run_name"], given["type_"], given["model"], given["runs_dir"])
    for file in (path, *given["adapters"].values()):
        if not file.is_file():
            raise EngineError(f"{file} does not exist", "a GGUF file", "make export")
    log = _audit_log(given)
    service = LoadingApp(_loader(path, given, metrics, log))
    server = make_server(
        guarded(service, guards, metrics),
        service,
        tls=tls_context(address),
        drain_seconds=given["drain_seconds"],
        bounds=Bounds(connections=max(512, 2 * (given["slots"] + given["queue"]))),
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that left
    with listener(address) as sock:
        console.print(f"{address.shown(sock)}  (stop: Ctrl-C)", highlight=False)
        _run(server, service, sock)
    if log is not None:
        log.close()
    if service.loading:
        # Nothing can stop llama.cpp while it loads, and the interpreter's end would pull the
        # ground from under it.
        os._exit(0)


def _run(server: "Server", service: "LoadingApp", sock: Any) -> None:
    """Load and serve until a signal; raises what kept the model from being loaded."""
    service.start()
    server.run([sock])
    if service.failure is not None:
        raise service.failure
    service.close()


def _audit_log(given: dict[str, Any]) -> "AuditLog | None":
    """The log, open before anything listens; None without --audit."""
    from kormed_edge.audit import AuditLog
    from kormed_edge.audit_content import read_key

    more = ("audit_content", "audit_optional", "audit_retention")
    if given["audit"] is None:
        if any(given[name] for name in more):
            raise ConfigError("--audit-… without --audit", "a file for the log", "--audit audit.db")
        return None
    return AuditLog(
        given["audit"],
        content_key=read_key(given["audit_content"]) if given["audit_content"] else None,
        required=not given["audit_optional"],
        retention_days=given["audit_retention"],
    )


def _loader(
    path: Path, given: dict[str, Any], metrics: "Metrics", log: "AuditLog | None"
) -> "Callable[[], FastAPI]":
    """What verifies and loads the model and makes the API over it."""
    from kormed_edge.audit_api import Audited
    from kormed_edge.server import create_app

    def load() -> "FastAPI":
        adapters: dict[str, Path] = given["adapters"]
        digest, *others = [
            verify_model(file, allow_unverified=given["allow_unverified"])
            for file in (path, *adapters.values())
        ]
        calibration = find_calibration(path, digest)
        engine = Engine(
            path,
            adapters=adapters,
            prefix=[SYSTEM_MESSAGE],
            on_end=metrics.note,
            **{
                name: given[name] for name in ("context", "slots", "threads", "gpu_layers", "queue")
            },
        )
        app = create_app(
            engine,
            model=path.stem,
            sha256=digest,
            max_new_tokens=given["max_new_tokens"],
            request_seconds=given["request_seconds"],
            verified=not given["allow_unverified"],
            audited=Audited(
                log, model_sha256=digest, adapters=dict(zip(adapters, others, strict=True))
            ),
            calibration=calibration,
        )
        metrics.watch(engine.status, model=path.stem, sha256=digest)
        metrics.paths |= set(app.openapi()["paths"])
        sure = "calibrated" if calibration else "confidence not calibrated"
        console.print(f"{path} · SHA-256 {digest} · {sure} · ready", highlight=False)
        return app

    return load


def _address(given: dict[str, Any]) -> "Address":
    """Where to listen; `ConfigError` for one that is open to others without keys."""
    from kormed_edge.listening import Address

    certificate, key = given["tls_certificate"], given["tls_key"]
    if (certificate is None) != (key is None):
        raise ConfigError(
            "one of --tls-certificate and --tls-key", "both or neither", "give the other too"
        )
    address = Address(given["host"], given["port"], given["unix_socket"], certificate, key)
    if not (address.is_local or given["api_keys"] or given["insecure"]):
        raise ConfigError(
            f"--host {address.host} can be reached from other machines, and no key is asked for",
            "--api-keys FILE, or an address of this machine alone such as 127.0.0.1",
            "kormed keys add NAME --file keys.txt, then --api-keys keys.txt; or --insecure if "
            "something else guards the address",
        )
    return address


def _guards(given: dict[str, Any]) -> "Guards":
    from kormed_edge.api_keys import read_keys
    from kormed_edge.guards import Guards

    origins: tuple[str, ...] = given["origins"]
    if wrong := [origin for origin in origins if not ORIGIN.fullmatch(origin)]:
        raise ConfigError(
            f"--cors-origin {wrong[0]}",
            "one origin, without a path and without *",
            "--cors-origin https://intranet.example",
        )
    keys = read_keys(given["api_keys"]) if given["api_keys"] else None
    if keys == {}:
        raise ConfigError(
            f"{given['api_keys']} holds no key", "one at least",
            f"kormed keys add NAME --file {given['api_keys']}",
        )  # fmt: skip
    return Guards(
        keys=keys,
        origins=origins,
        max_body=given["max_body"],
        rate=given["rate"],
        local_only=not (keys or given["insecure"] or given["unix_socket"]),
    )


def _adapters(given: tuple[str, ...]) -> dict[str, Path]:
    """Files by the names that requests give them."""
    pairs = [text.partition("=") for text in given]
    if wrong := [name + sign for name, sign, file in pairs if not (name and file)]:
        raise ConfigError(
            f"--adapter {wrong[0]}", "NAME=FILE", "--adapter v2=runs/v2/gguf/adapter.gguf"
        )
    return {name: Path(file) for name, _, file in pairs}
