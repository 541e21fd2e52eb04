"""A run is a folder; each stage writes one folder of it, under a temporary name until complete.

    with open_stage(run, "data", settings) as draft:
        if draft is not None:                # None: finished already with these settings
            write_into(draft.folder)

An unfinished stage lives in `NAME.partial` beside the place of the finished one. If its settings
are still the same when it is opened again, the stage finds its files there and goes on.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kormed_edge.errors import StageError
from kormed_edge.manifest import (
    MANIFEST,
    BaseModelId,
    check_files,
    manifest_hash,
    new_manifest,
    read_manifest,
    write_json,
)

ADAPTER_GGUF = "adapter.gguf"
"""The adapter in a run's export, as llama.cpp reads it over a model."""

STAGES = ("data", "sft", "adapter", "gguf", "eval", "report", "judge", "benchmark")
COMMANDS = {
    "data": "data",
    "sft": "train",
    "adapter": "train",
    "gguf": "export",
    "eval": "eval",
    "report": "eval",
    "judge": "judge",
    "benchmark": "benchmark",
}
_STATE = ".stage.json"


@dataclass
class StageDraft:
    """A stage that is being written. What is set here goes into the manifest."""

    folder: Path
    resumed: bool
    base: BaseModelId | None = None
    seed: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def require_stage(run: Path, stage: str) -> Path:
    """Folder of a finished stage, or `StageError` that names the command which makes it."""
    folder = run / stage
    if (folder / MANIFEST).is_file():
        return folder
    state = "is unfinished" if folder.exists() or _partial(run, stage).exists() else "is missing"
    raise StageError(
        f"{folder} {state}: it has no {MANIFEST}",
        f"the output of `kormed {COMMANDS[stage]}`",
        f"make {COMMANDS[stage]} RUN={run.name}",
    )


@contextmanager
def open_stage(
    run: Path,
    stage: str,
    settings: Mapping[str, Any],
    *,
    inputs: Sequence[str] = (),
    resumable: bool = False,
    force: bool = False,
) -> Iterator[StageDraft | None]:
    """Write one stage, or yield None when it is finished with the same settings and inputs.

    `inputs` are the stages it reads. A finished stage with other settings is an error unless
    `force`, which makes it anew. After an exception a resumable stage keeps its partial folder;
    any other leaves nothing.
    """
    hashes = {name: manifest_hash(require_stage(run, name)) for name in inputs}
    identity = json.loads(json.dumps({"settings": dict(settings), "inputs": hashes}))
    if not force and _is_finished(run, stage, identity):
        yield None
        return
    partial = _partial(run, stage)
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        draft, earlier = _open_partial(partial, identity, resumable)
        started = time.monotonic()
        try:
            yield draft
            (partial / _STATE).unlink()
            manifest = new_manifest(
                partial,
                stage=stage,
                run=run.name,
                seconds=earlier + time.monotonic() - started,
                settings={**settings, **draft.facts},
                inputs=hashes,
                base=draft.base,
                seed=draft.seed,
            )
            write_json(partial / MANIFEST, manifest.model_dump())
        except BaseException:
            _stop(partial, identity, earlier + time.monotonic() - started, resumable)
            raise
        _replace(run / stage, partial)


def _partial(run: Path, stage: str) -> Path:
    return run / f"{stage}.partial"


def _is_finished(run: Path, stage: str, identity: Mapping[str, Any]) -> bool:
    folder = run / stage
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    given, inputs = identity["settings"], identity["inputs"]
    changed = [name for name in given if manifest.settings.get(name) != given[name]]
    changed += [f"{name}/" for name in inputs if manifest.inputs.get(name) != inputs[name]]
    if not changed:
        return True
    raise StageError(
        f"{folder} was made with other settings: {', '.join(changed)}",
        "the same settings, or another run name",
        f"choose a new name with RUN=, or: kormed {COMMANDS[stage]} --run {run.name} --force",
    )


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Refuse a second process on the same run; the lock ends with the process, however it ends."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"{run} is being written by another process",
                "one process a run",
                "wait until it has ended, or stop it",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _open_partial(
    partial: Path, identity: Mapping[str, Any], resumable: bool
) -> tuple[StageDraft, float]:
    """The draft of a new or resumed stage, and the seconds that its earlier attempts took.

    A kill leaves a partial folder of any stage; what cannot resume must not inherit its files.
    """
    try:
        state = json.loads((partial / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        state = {}
    earlier = state.pop("seconds", 0.0)
    resumed = resumable and state == identity
    if not resumed:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_json(partial / _STATE, identity)
        earlier = 0.0
    return StageDraft(partial, resumed), earlier


def _stop(partial: Path, identity: Mapping[str, Any], seconds: float, resumable: bool) -> None:
    """Keep what a resumable stage has, with the time that it took; of any other leave nothing."""
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # other stages live there
            partial.parent.rmdir()
    elif partial.exists():
        (partial / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):  # a full disk must not hide the error that stopped the stage
            write_json(partial / _STATE, {**identity, "seconds": seconds})


def _replace(final: Path, partial: Path) -> None:
    """Put a complete stage in its place; an older one is removed only after it stood aside."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def verify_chain(run: Path) -> list[str]:
    """Every difference between a run's folders and their manifests, one line each."""
    if not run.is_dir():
        raise StageError(f"{run} does not exist", "a run folder", f"make demo RUN={run.name}")
    problems = []
    for stage in STAGES:
        folder = run / stage
        if not folder.exists():
            continue
        if not (folder / MANIFEST).is_file():
            problems.append(f"{folder}: unfinished, it has no {MANIFEST}")
            continue
        manifest = read_manifest(folder)
        problems += check_files(folder, manifest)
        for name, expected in manifest.inputs.items():
            source = run / name / MANIFEST
            if not source.is_file():
                problems.append(f"{folder}: its input {name}/ is missing")
            elif manifest_hash(run / name) != expected:
                problems.append(f"{folder}: made from another {name}/ than the one that is here")
    return problems
