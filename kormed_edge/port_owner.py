"""Who listens on a port, from Linux's own tables."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def is_taken(port: int, proc: Path = PROC) -> bool:
    """Whether anything listens on a TCP port of this machine, on any address."""
    return bool(_inodes(port, proc))


def owner(port: int, proc: Path = PROC) -> str | None:
    """Command line of the process that listens; None if it is another user's, or in a container
    of which this one sees nothing."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port, proc)}
    for process in proc.iterdir():
        if process.name.isdecimal() and sockets & set(_links(process / "fd")):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            return f"{command} (process {process.name})"
    return None


def _inodes(port: int, proc: Path) -> set[str]:
    rows = (line.split() for line in _lines(proc))
    return {
        row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    }


def _lines(proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        if path.is_file():
            yield from path.read_text().splitlines()[1:]


def _links(folder: Path) -> Iterator[str]:
    """What a process has open; nothing where we may not look, or it has just ended."""
    try:
        for link in folder.iterdir():
            yield os.readlink(link)
    except OSError:
        return
