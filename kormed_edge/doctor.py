"""`kormed doctor`: what this machine has and what the stages need, problems with remedies."""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.table import Table

from kormed_edge.home import home
from kormed_edge.manifest import gpu_names, hardware, library_versions
from kormed_edge.options import RUNS_DIR
from kormed_edge.progress import console

PACKAGES = {
    "serve, ask": ("llama_cpp", "fastapi", "uvicorn", "prometheus_client"),
    "eval": ("kiwipiepy", "rouge_score", "scipy", "matplotlib", "jinja2"),
    "train, export": ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "gguf"),
}
EXTRAS = {"serve, ask": "edge", "eval": "eval", "train, export": "train"}
LOW_DISK = 3e9  # bytes: the demo's base, runs and checkpoints
LOW_MEMORY = 6.0  # GB


@dataclass(frozen=True)
class Finding:
    """One check: `remedy` is empty when nothing is wrong."""

    name: str
    found: str
    remedy: str = ""


@click.command("doctor")
@RUNS_DIR
def doctor_command(runs_dir: Path) -> None:
    """List what this machine has and lacks, each problem with its remedy.

    \b
    Example: kormed doctor
    """
    findings = list(examine(runs_dir))
    table = Table("check", "found", "remedy", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.name, finding.found, finding.remedy or "[green]ok[/]")
    console.print(table)
    if any(finding.remedy for finding in findings):
        raise click.exceptions.Exit(1)


def examine(runs_dir: Path) -> Iterator[Finding]:
    machine = hardware()
    yield Finding("CPU", f"{machine['cpu']}, {machine['cores']} cores")
    low = machine["memory_gb"] < LOW_MEMORY
    yield Finding(
        "memory", f"{machine['memory_gb']} GB", f"the demo needs {LOW_MEMORY:g} GB" if low else ""
    )
    yield Finding(
        "GPU", ", ".join(gpu_names()) or "none: training a 7B model needs one; the demo does not"
    )
    yield from (_disk(name, path) for name, path in (("runs", runs_dir), ("$KORMED_HOME", home())))
    yield from (_packages(use, names) for use, names in PACKAGES.items())
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    yield Finding("versions", versions)


def _disk(name: str, path: Path) -> Finding:
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    remedy = f"free some space; the demo needs {LOW_DISK / 1e9:g} GB" if free < LOW_DISK else ""
    return Finding(f"disk of {name}", f"{free / 1e9:.1f} GB free at {path}", remedy)


def _packages(use: str, names: tuple[str, ...]) -> Finding:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding(f"packages for {use}", "all there")
    command = f"pip install -c constraints.txt -e '.[{EXTRAS[use]}]'"
    return Finding(f"packages for {use}", f"missing: {', '.join(missing)}", command)
