"""Findings about a place of work: container engine, port, who may read which file."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kormed_edge.findings import Finding
from kormed_edge.port_owner import is_taken, owner
from kormed_edge.site_key import PRIVATE

ENGINES = ("docker", "podman")
_INSIDE = (Path("/.dockerenv"), Path("/run/.containerenv"))
_ANSWER_S = 20


def engine() -> Finding:
    """Docker or Podman: there, and answering. None is no problem: only a bundle needs one."""
    name = "container engine"
    if any(path.exists() for path in _INSIDE):
        return Finding(name, "not asked: this runs inside a container")
    found = [tool for tool in ENGINES if shutil.which(tool)]
    if not found:
        return Finding(name, "none: installing a bundle needs Docker or Podman")
    answers = {tool: _version(tool) for tool in found}
    shown = ", ".join(f"{tool} {version or 'does not answer'}" for tool, version in answers.items())
    if any(answers.values()):
        return Finding(name, shown)
    return Finding(
        name, shown, f"systemctl start {found[0]}; or run this as a user that may use it"
    )


def _version(tool: str) -> str | None:
    """The engine's version, not the client's, which is there without one."""
    form = "{{.Server.Version}}" if tool == "docker" else "{{.Client.Version}}"
    command = [tool, "version", "--format", form]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def port(number: int) -> Finding:
    """Free, or used by the service itself; by anyone else it is a problem."""
    name = f"port {number}"
    if not is_taken(number):
        return Finding(name, "free")
    by = owner(number)
    if by is not None and "kormed" in by and "serve" in by:
        return Finding(name, f"the service itself: {by}")
    found = f"used by {by}" if by else "used, by a process that this user may not see"
    return Finding(name, found, f"as root: ss -ltnp 'sport = :{number}'; or serve with --port")


def permissions(home: Path, audit: Path | None, api_keys: Path | None) -> Iterator[Finding]:
    """Home, and what must be its owner's alone: the site's key, the audit log, API keys."""
    yield _home(home)
    secrets = {"site key": home / PRIVATE, "audit log": audit, "API keys": api_keys}
    yield from (_secret(name, path) for name, path in secrets.items() if path is not None)


def _home(folder: Path) -> Finding:
    name = "$KORMED_HOME"
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, f"{folder} can not be written", "set KORMED_HOME to a folder of yours")
    if folder.exists() and folder.stat().st_mode & stat.S_IWOTH:
        return Finding(name, f"{folder} can be written by everyone", f"chmod o-w {folder}")
    return Finding(name, f"{folder}, writable")


def _secret(name: str, path: Path) -> Finding:
    if not path.exists():
        return Finding(name, f"{path}: none yet")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(name, f"{path} has mode {mode:03o}", f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return Finding(name, f"{path} can not be read", f"chown {os.getuid()} {path}")
    return Finding(name, f"{path}, mode {mode:03o}")
