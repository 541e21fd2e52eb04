"""A finished stage of one run carried into another, so that both start from the same files.

The copy has the manifest of the original, byte for byte; what is made from it there names the
same hash as what is made from it here.
"""

import shutil
from pathlib import Path

from kormed_edge.disk import require_space
from kormed_edge.errors import StageError
from kormed_edge.manifest import MANIFEST, check_files, manifest_hash, read_manifest
from kormed_edge.runs import require_stage


def carry_stage(source: Path, stage: str, run: Path, name: str, *, force: bool = False) -> Path:
    """Copy `stage` of the run `source` into the run `run` as `name`, unless it is there already.

    Raises `StageError` if another one is there and not `force`, or if the original is damaged.
    """
    original = require_stage(source, stage)
    target = run / name
    if _is_same(original, target):
        return target
    if target.exists() and not force:
        raise StageError(
            f"{target} is not a copy of {original}",
            "the stage that the run began with",
            "choose another run name, or --force, which carries it anew",
        )
    manifest = read_manifest(original)
    require_space(run, sum(entry.size for entry in manifest.files.values()), f"a copy of {stage}")
    if problems := check_files(original, manifest):
        raise StageError(problems[0], "a stage as its manifest says", "make it anew with --force")
    _copy(original, target)
    return target


def _is_same(original: Path, target: Path) -> bool:
    return (target / MANIFEST).is_file() and manifest_hash(original) == manifest_hash(target)


def _copy(original: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.carried")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(original, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
