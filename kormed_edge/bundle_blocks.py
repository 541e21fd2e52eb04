"""Large files in pieces: split for a file system that needs it, hashed block by block.

The hashes of blocks tell which bytes of a copy are damaged, so that only those are copied again.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from kormed_edge.errors import BundleError

BLOCK_BYTES = 4 << 20
BLOCKS = "blocks.json"
PART = ".part-"
MAX_PARTS = 1000
TOO_MANY = "too many"
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file: the bytes from `start` up to, not including, `end`."""

    path: str
    start: int
    end: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}, bytes {self.start} to {self.end - 1}"

    def copy_command(self, folder: Path) -> str:
        """The command that mends these bytes; SOURCE stands for the folder that was copied."""
        target = quote(str(folder / self.path))
        if self.what == TOO_MANY:
            return f"truncate --size {self.start} {target}"
        first = self.start // BLOCK_BYTES
        count = -(-self.end // BLOCK_BYTES) - first
        return (
            f"dd if=SOURCE/{self.path} of={target} bs={BLOCK_BYTES} "
            f"skip={first} seek={first} count={count} conv=notrunc"
        )


def copy_split(source: Path, target: Path, max_bytes: int | None, on_bytes: OnBytes) -> str:
    """Copy a file, as parts if it is larger than `max_bytes`; returns the whole's SHA-256.

    Parts are `NAME.part-000` and so on; `NAME.sha256`, in sha256sum's format, is how the installer
    checks what it joined.
    """
    size = source.stat().st_size
    whole = sha256()
    with source.open("rb") as file:
        if max_bytes is None or size <= max_bytes:
            _copy(file, target, size, whole.update, on_bytes)
            return whole.hexdigest()
        if size > max_bytes * MAX_PARTS:
            raise BundleError(f"{source} makes more than {MAX_PARTS} parts", "larger parts")
        for number, start in enumerate(range(0, size, max_bytes)):
            part = target.with_name(f"{target.name}{PART}{number:03}")
            _copy(file, part, min(max_bytes, size - start), whole.update, on_bytes)
    line = f"{whole.hexdigest()}  {target.name}\n"
    target.with_name(target.name + ".sha256").write_text(line, encoding="ascii")
    return whole.hexdigest()


def _copy(
    source: BinaryIO, target: Path, count: int, hear: Callable[[bytes], None], on_bytes: OnBytes
) -> None:
    with target.open("xb") as file:
        while count and (block := source.read(min(BLOCK_BYTES, count))):
            file.write(block)
            hear(block)
            on_bytes(len(block))
            count -= len(block)


def describe_blocks(
    folder: Path, names: Iterable[str], on_bytes: OnBytes
) -> tuple[dict[str, Any], dict[str, str]]:
    """What `blocks.json` holds, of every file its size and the SHA-256 of its blocks; and the
    SHA-256 of every file."""
    files, sums = {}, {}
    for name in names:
        sums[name], blocks, size = _hash(folder / name, on_bytes)
        files[name] = {"size": size, "sha256": blocks}
    return {"block_bytes": BLOCK_BYTES, "files": files}, sums


def _hash(path: Path, on_bytes: OnBytes) -> tuple[str, list[str], int]:
    """SHA-256 of a file and of its blocks, and its size. Follows no symbolic link."""
    whole, blocks, size = sha256(), [], 0
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(sha256(block).hexdigest())
            size += len(block)
            on_bytes(len(block))
    return whole.hexdigest(), blocks, size


def find_damage(folder: Path, sums: Mapping[str, str], on_bytes: OnBytes) -> list[Damage]:
    """Every byte range of a folder's files that is not what `sums` say, by whole blocks.

    Without a sound blocks.json, or for that file itself, the range is the whole file.
    """
    known = _read_blocks(folder, sums.get(BLOCKS))
    damages: list[Damage] = []
    for name, expected in sums.items():
        found, blocks, size = _hash(folder / name, on_bytes)
        if found != expected:
            damages += _compare(name, known.get(name), blocks, size)
    return damages


def _read_blocks(folder: Path, expected: str | None) -> dict[str, Any]:
    """The files of blocks.json, if it is the one that the sums name."""
    path = folder / BLOCKS
    if expected is None or path.stat().st_size > 1 << 26:
        return {}
    text = path.read_bytes()
    if sha256(text).hexdigest() != expected:
        return {}
    files: dict[str, Any] = json.loads(text)["files"]
    return files


def _compare(
    name: str, known: Mapping[str, Any] | None, blocks: list[str], size: int
) -> list[Damage]:
    if known is None:
        return [Damage(name, 0, max(size, 1), "not the file that was signed")]
    damages = []
    for index, expected in enumerate(known["sha256"]):
        start = index * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, known["size"])
        if index >= len(blocks):
            damages.append(Damage(name, start, known["size"], "missing"))
            break
        if blocks[index] != expected:
            damages.append(Damage(name, start, end, "damaged"))
    if size > known["size"]:
        damages.append(Damage(name, known["size"], size, TOO_MANY))
    return _joined(damages)


def _joined(damages: list[Damage]) -> list[Damage]:
    """Neighbouring ranges of one kind as one."""
    joined: list[Damage] = []
    for damage in damages:
        if joined and joined[-1].end == damage.start and joined[-1].what == damage.what:
            damage = Damage(damage.path, joined.pop().start, damage.end, damage.what)
        joined.append(damage)
    return joined
