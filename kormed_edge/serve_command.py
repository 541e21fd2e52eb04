"""`kormed serve`: the model behind an API, on this machine only unless told otherwise."""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kormed_edge.calibration import find_calibration
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError, EngineError
from kormed_edge.model_options import (
    DEFAULT,
    MAX_NEW_TOKENS,
    answer_options,
    model_options,
    model_path,
    open_guidelines,
)
from kormed_edge.progress import console
from kormed_edge.prompts import SYSTEM_MESSAGE
from kormed_edge.serve_options import audit_options, limit_options, listen_options
from kormed_edge.served_adapters import adapter_files, require_default, verify_adapters
from kormed_edge.suppression import Suppression
from kormed_edge.verification import verify_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from kormed_edge.audit import AuditLog
    from kormed_edge.guards import Guards
    from kormed_edge.guidelines import Guidelines
    from kormed_edge.listening import Address, Server
    from kormed_edge.loading import LoadingApp
    from kormed_edge.metrics import Metrics

ORIGIN = re.compile(r"https?://[^/*\s]+")


@click.command("serve")
@model_options
@MAX_NEW_TOKENS
@answer_options
@limit_options
@audit_options
@listen_options
def serve_command(**given: Any) -> None:
    """Serve a GGUF on an OpenAI-compatible API, on this machine only by default.

    \b
    Example: kormed serve --run demo
             kormed serve --model /models/demo-Q4_K_M.gguf --port 9000
             kormed serve --model /models/base-Q8_0.gguf \\
                 --adapter v2=/models/v2/adapter.gguf --default-adapter v2
             kormed serve --run demo --guidelines default --audit audit.db
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

    given["adapters"] = adapter_files(given["adapters"])
    address, guards, metrics = _address(given), _guards(given), Metrics()
    path = model_path(given["run_name"], given["type_"], given["model"], given["runs_dir"])
    require_default(given["default_adapter"], given["adapters"], path.stem)
    for file in (path, *given["adapters"].values()):
        if not file.is_file():
            raise EngineError(f"{file} does not exist", "a GGUF file", "make export")
    log = _audit_log(given)
    guidelines = _guidelines(given["guidelines"])
    service = LoadingApp(_loader(path, given, metrics, log, guidelines))
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
    for opened in (log, guidelines):
        if opened is not None:
            opened.close()
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


def _guidelines(given: Path | None) -> "Guidelines | None":
    """The index of --guidelines; one that nobody named is told of and not used."""
    from kormed_edge.guidelines_file import default_path

    if given is None and default_path().is_file():
        console.print(
            f"{default_path()} is there and not used: --guidelines {DEFAULT}", highlight=False
        )
    return open_guidelines(given)


def _loader(
    path: Path, given: dict[str, Any], metrics: "Metrics", log: "AuditLog | None",
    guidelines: "Guidelines | None",
) -> "Callable[[], FastAPI]":  # fmt: skip
    """What verifies and loads the model and makes the API over it."""
    from kormed_edge.audit_api import Audited
    from kormed_edge.server import create_app

    def load() -> "FastAPI":
        digest = verify_model(path, allow_unverified=given["allow_unverified"])
        adapters = verify_adapters(
            given["adapters"],
            model=path,
            model_sha256=digest,
            allow_unverified=given["allow_unverified"],
        )
        calibration, default = find_calibration(path, digest), given["default_adapter"]
        chosen = adapters[default] if default else None
        engine = Engine(
            path,
            adapters=given["adapters"],
            prefix=[SYSTEM_MESSAGE],
            prefix_adapter=default,
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
                log,
                model_sha256=digest,
                adapters={name: adapter.sha256 for name, adapter in adapters.items()},
            ),
            calibration=calibration,
            adapters=adapters,
            default_adapter=default,
            guidelines=guidelines,
            suppression=None if given["allow_han"] else Suppression.of(engine.pieces()),
        )
        metrics.watch(
            engine.status,
            model=default or path.stem,
            sha256=digest,
            adapter_sha256=chosen.sha256 if chosen else None,
        )
        metrics.paths |= set(app.openapi()["paths"])
        over = f" · adapter {default} · SHA-256 {chosen.sha256}" if chosen else ""
        known = chosen.calibration if chosen else calibration
        sure = "calibrated" if known else "confidence not calibrated"
        console.print(f"{path} · SHA-256 {digest}{over} · {sure} · ready", highlight=False)
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
