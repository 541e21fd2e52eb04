"""Manifests: what a finished stage holds, what it was made from, and the check of both.

`manifest.json` is written last, so that its presence means that the stage is finished. It names
every file of its folder with size and SHA-256, and the manifests of the stages before it by
their own hash; following those hashes is the chain that `kormed verify` walks.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kormed_edge import __version__
from kormed_edge.errors import StageError

MANIFEST = "manifest.json"
SCHEMA: Literal[1] = 1
LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "accelerate",
    "llama-cpp-python", "gguf", "rouge-score", "kiwipiepy", "numpy", "scipy",
)  # fmt: skip


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size: int = Field(description="bytes")


class BaseModelId(BaseModel):
    """Which base model a stage stands on, wherever its files lie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    revision: str | None = None
    path: str
    license: str = Field("", description="as the model's card or file names it")


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA
    stage: str
    run: str
    kit_version: str
    git_commit: str | None
    created_utc: str
    seconds: float = Field(description="wall time of the stage, over all its attempts")
    base: BaseModelId | None
    seed: int | None
    settings: dict[str, Any]
    inputs: dict[str, str] = Field(description="stage name to SHA-256 of its manifest.json")
    files: dict[str, FileEntry]
    libraries: dict[str, str]
    hardware: dict[str, Any]


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex; `on_bytes` hears the size of every block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def describe_files(folder: Path) -> dict[str, FileEntry]:
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256_file(path), size=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


def new_manifest(
    folder: Path,
    *,
    stage: str,
    run: str,
    seconds: float,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    base: BaseModelId | None,
    seed: int | None,
) -> Manifest:
    return Manifest(
        stage=stage,
        run=run,
        kit_version=__version__,
        git_commit=git_commit(),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        base=base,
        seed=seed,
        settings=dict(settings),
        inputs=dict(inputs),
        files=describe_files(folder),
        libraries=library_versions(),
        hardware=hardware(),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a finished stage's manifest; `StageError` when there is none or it is not ours."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(
            f"{folder} has no {MANIFEST}: the stage that writes it has not finished",
            "a finished stage",
            f"make {_command_of(folder.name)} RUN={folder.parent.name}",
        ) from None
    except ValidationError as error:
        raise StageError(
            f"{path} is not a manifest of this kit: {error.errors()[0]['msg']}",
            f"manifest schema {SCHEMA}",
            "restore the file, or run the stage again with --force",
        ) from None


def manifest_hash(folder: Path) -> str:
    return sha256_file(folder / MANIFEST)


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Differences between a folder and its manifest, one line each; none means intact."""
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != entry.size:
            problems.append(f"{path}: {path.stat().st_size} bytes, expected {entry.size}")
        elif sha256_file(path) != entry.sha256:
            problems.append(f"{path}: contents differ from the manifest")
    known = {*manifest.files, MANIFEST}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    extra = [path for path in found if path.relative_to(folder).as_posix() not in known]
    return problems + [f"{path}: not in the manifest" for path in extra]


def git_commit() -> str | None:
    """Commit of the kit: what an image was labelled with, else the checkout's, else nothing."""
    if commit := os.environ.get("KORMED_COMMIT"):
        return commit
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(total_memory() / 1e9, 1),
        "gpu": gpu_names(),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), "")


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_names() -> list[str]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()


def _command_of(stage: str) -> str:
    return {"adapter": "train", "gguf": "export", "report": "eval"}.get(stage, stage)
