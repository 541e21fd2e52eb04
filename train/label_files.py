"""The label files of AI Hub 71875, from zips or folders of any layout that its users have.

Nothing is extracted: zip members are read from memory. A name never decides whether a file is a
record, because AI Hub's zips hold UTF-8 names without the flag that says so; names only tell
source texts from labels and the published split.
"""

import os
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kormed_edge.errors import DataError
from train.reading import Origin

SOURCE_TEXTS = "source text files"
OTHER_FILES = "other files"

_ORIGINS: dict[str, Origin] = {
    "tl_": "training",
    "vl_": "validation",
    "training": "training",
    "validation": "validation",
}
_ORIGIN = re.compile(r"(tl_|vl_)|(?:\d+\.\s*)?(training|validation)$", re.IGNORECASE)
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:|\\|//")
_MAX_BYTES = 4_000_000
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """One file's name for messages, its published split if its place tells, and its bytes."""

    name: str
    origin: Origin | None
    data: bytes


def label_files(source: Path, skipped: Counter[str]) -> Iterator[LabelFile]:
    """Every `*.json` and `*.jsonl` of a file or folder, in the order of their names.

    Counts what it passes over in `skipped`. Raises `DataError` for a zip that is damaged or
    holds unsafe names.
    """
    source = source.resolve()
    above = (source.parent.name, source.name)
    for path in _walk(source):
        inner = path.relative_to(source).parts
        name = _shown("/".join(inner) or source.name)
        parts = [*above, *inner]
        if _is_source_text([source.name, *inner]):
            skipped[SOURCE_TEXTS] += 1
        elif path.suffix.lower() == ".zip":
            yield from _members(path, name, parts, skipped)
        elif path.suffix.lower() in (".json", ".jsonl") and not path.name.startswith("."):
            yield LabelFile(name, _origin(parts), _read(path, name))
        else:
            skipped[OTHER_FILES] += 1


def _walk(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    for folder, folders, files in os.walk(source):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))


def _members(
    path: Path, name: str, parts: Sequence[str], skipped: Counter[str]
) -> Iterator[LabelFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                yield from _member(archive, info, name, parts, skipped)
    except _DAMAGE as error:
        raise DataError(
            f"{name} cannot be read: {error}", "a whole zip file", "download it again from AI Hub"
        ) from error


def _member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    parts: Sequence[str],
    skipped: Counter[str],
) -> Iterator[LabelFile]:
    member = _readable(info)
    _check_member(info, member, name)
    inner = PurePosixPath(member.lstrip("/")).parts
    if info.is_dir():
        return
    if _is_source_text(inner):
        skipped[SOURCE_TEXTS] += 1
    elif not info.filename.lower().endswith(".json") or inner[-1].startswith("._"):
        skipped[OTHER_FILES] += 1
    else:
        origin = _origin([*parts, *inner])
        yield LabelFile(f"{name}/{'/'.join(inner)}", origin, archive.read(info))


def _check_member(info: zipfile.ZipInfo, member: str, name: str) -> None:
    """One leading "/" is normal for AI Hub; a name that could leave a folder is not."""
    raw = info.filename
    if _WINDOWS_ROOT.match(raw) or ".." in re.split(r"[/\\]", raw):
        raise DataError(
            f"{name} holds the unsafe name {member!r}",
            "names inside the zip's own folder",
            "do not use this file; download it again from AI Hub",
        )
    if info.file_size > _MAX_BYTES:
        raise DataError(
            f"{name}: {member} holds {info.file_size:,} bytes",
            f"one record, so at most {_MAX_BYTES:,} bytes",
            "do not use this file; download it again from AI Hub",
        )


def _readable(info: zipfile.ZipInfo) -> str:
    """The member's name, mended where Python took UTF-8 or CP949 bytes for CP437."""
    if info.flag_bits & 0x800:
        return info.filename
    for encoding in ("utf-8", "cp949"):
        try:
            return info.filename.encode("cp437").decode(encoding)
        except UnicodeError:
            continue
    return info.filename


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", "a readable file") from error


def _is_source_text(parts: Sequence[str]) -> bool:
    # macOS stores Hangul decomposed, so names are composed before they are compared.
    names = [unicodedata.normalize("NFC", part) for part in parts]
    return any("원천데이터" in name or name.upper().startswith(("TS_", "VS_")) for name in names)


def _origin(parts: Sequence[str]) -> Origin | None:
    """The published split; the innermost name that tells it wins."""
    for part in reversed(parts):
        if match := _ORIGIN.match(part):
            return _ORIGINS[(match[1] or match[2]).lower()]
    return None


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")
