"""`kormed doctor`: what this machine has and what the stages need, problems with remedies."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.table import Table

from kormed_edge import hardware_findings as machine
from kormed_edge import site_findings as site
from kormed_edge.findings import Finding
from kormed_edge.home import home
from kormed_edge.manifest import library_versions
from kormed_edge.options import RUNS_DIR
from kormed_edge.progress import console

__all__ = ["Finding", "Questions", "doctor_command", "examine"]
PACKAGES = {
    "serve, ask": ("llama_cpp", "fastapi", "uvicorn", "prometheus_client"),
    "guidelines": ("kiwipiepy", "pypdf"),
    "eval": ("kiwipiepy", "rouge_score", "scipy", "matplotlib", "jinja2"),
    "train, export": ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "gguf"),
}
EXTRAS = {
    "serve, ask": "edge",
    "guidelines": "guidelines",
    "eval": "eval",
    "train, export": "train",
}
OPTIONAL = {"guidelines"}
"""What a machine may lack without anything being wrong."""
LOW_DISK = 3e9  # bytes: the demo's base, runs and checkpoints
LOW_REPORTS = 1e8  # bytes: reports of verifications
LOW_MEMORY = 6.0  # GB
INSTALLED = Path("/var/lib/kormed/current")
CONTEXT, SLOTS = 4096, 4  # as `kormed serve`
FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Questions:
    """What is asked beside the machine itself. `bundle` is a folder, installed or not."""

    bundle: Path = INSTALLED
    model: Path | None = None
    audit: Path | None = None
    api_keys: Path | None = None
    port: int = 8080


@click.command("doctor")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True,
    help="Port of the service.",
)  # fmt: skip
@click.option("--api-keys", type=FILE, help="File of API keys, to see who may read it.")
@click.option("--audit", type=FILE, help="Audit log, to see who may read it.")
@click.option("--model", type=FILE, help="A GGUF, for its memory.  [default: the bundle's]")
@click.option(
    "--bundle", type=click.Path(file_okay=False, path_type=Path), default=INSTALLED,
    show_default=True, help="Folder of the bundle, if there is one.",
)  # fmt: skip
@RUNS_DIR
def doctor_command(
    runs_dir: Path, bundle: Path, model: Path | None, audit: Path | None, api_keys: Path | None,
    port: int,
) -> None:  # fmt: skip
    """List what this machine has and lacks, each problem with its remedy.

    \b
    Exit codes: 0 nothing is wrong · 1 something is
    Example:    kormed doctor
                kormed doctor --model runs/demo/gguf/demo-Q4_K_M.gguf --audit audit.db
    """
    findings = list(examine(runs_dir, Questions(bundle, model, audit, api_keys, port)))
    table = Table("check", "found", "remedy", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.name, finding.found, finding.remedy or "[green]ok[/]")
    console.print(table)
    if any(finding.remedy for finding in findings):
        raise click.exceptions.Exit(1)


def examine(runs_dir: Path, asked: Questions = Questions()) -> Iterator[Finding]:
    """Every check, those of training only where training is installed."""
    trains = importlib.util.find_spec("train") is not None
    yield machine.cpu()
    yield machine.cpu_features()
    yield from _memory(asked, trains)
    yield machine.gpu()
    if trains:
        yield machine.disk("runs", runs_dir, LOW_DISK, "the demo")
    needed, purpose = (LOW_DISK, "the demo") if trains else (LOW_REPORTS, "a report")
    yield machine.disk("$KORMED_HOME", home(), needed, purpose)
    yield machine.clock(_signed(asked.bundle))
    yield site.engine()
    yield site.port(asked.port)
    yield from site.permissions(home(), asked.audit, asked.api_keys)
    uses = PACKAGES if trains else {use: PACKAGES[use] for use in ("serve, ask", "guidelines")}
    yield from (_packages(use, names) for use, names in uses.items())
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    yield Finding("versions", versions)


def _memory(asked: Questions, trains: bool) -> Iterator[Finding]:
    yield machine.memory(LOW_MEMORY if trains else 0)
    if model := asked.model or next(asked.bundle.glob("model/*.gguf"), None):
        yield machine.model_memory(model, context=CONTEXT, slots=SLOTS)


def _signed(bundle: Path) -> str | None:
    """When the bundle says that it was signed; its signature is `kormed bundle check`'s affair."""
    from kormed_edge.bundle_signing import SIGNED, parse_statement
    from kormed_edge.errors import BundleError

    try:
        return parse_statement((bundle / SIGNED).read_bytes()).signed
    except (OSError, BundleError):
        return None


def _packages(use: str, names: tuple[str, ...]) -> Finding:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding(f"packages for {use}", "all there")
    command = f"pip install -c constraints.txt -e '.[{EXTRAS[use]}]'"
    found = f"missing: {', '.join(missing)}"
    if use in OPTIONAL:
        return Finding(f"packages for {use}", f"{found}; if wanted: {command}")
    return Finding(f"packages for {use}", found, command)
