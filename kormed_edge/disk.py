"""Disk space, checked before a stage writes instead of after it has failed."""

import shutil
from pathlib import Path

from kormed_edge.errors import DiskSpaceError


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise `DiskSpaceError` unless the disk that holds `folder` has `needed` bytes free."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskSpaceError(
            f"{folder}: {free / 1e9:.2f} GB free on this disk",
            f"at least {needed / 1e9:.2f} GB for {purpose}",
            "free some space, or put the runs on another disk with --runs-dir PATH",
        )
