"""The bundle: the offline package of a model, and the strict reader of one.

    NAME-VERSION/
      SIGNED, SIGNED.sig   what was signed, and its Ed25519 signature
      SHA256SUMS           every other file, in sha256sum's format
      bundle.json          what this is; blocks.json, the hashes of its 4 MiB blocks
      model/ image/        GGUF with the manifest that `kormed serve` asks for; the edge image
      manifests/ report/   the chain of manifests; the report
      acceptance/          items with the predictions that were verified
      licences/ sbom.cdx.json
      install.sh units/ GUIDE.ko.html

An update (`delta`) has no image, and in place of model/ it has adapter/ and FROM_BASE, the list of
what is taken from the version that it stands on.

Nothing is parsed, loaded or run before the signature, the set of files and every hash are right.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kormed_edge.bundle_blocks import Damage, OnBytes, find_damage
from kormed_edge.bundle_signing import (
    SIGNATURE,
    SIGNATURE_BYTES,
    SIGNED,
    Statement,
    is_signed_by,
    parse_statement,
    read_public_key,
    version_key,
)
from kormed_edge.errors import BundleError
from kormed_edge.manifest import BaseModelId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SUMS = "SHA256SUMS"
DESCRIPTION = "bundle.json"
FROM_BASE = "FROM_BASE"
OUTSIDE_SUMS = (SIGNED, SIGNATURE, SUMS)
# No name that is absolute, hidden, or leads out of the folder can match.
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({_PART}(?:/{_PART}){{0,7}})\n")
_MAX_BYTES = {SIGNED: 1 << 10, SIGNATURE: SIGNATURE_BYTES, SUMS: 1 << 20}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LargeFile(_Frozen):
    """A file that a bundle carries whole or, if `parts` are named, cut into them."""

    file: str
    sha256: str
    size: int = Field(description="bytes")
    parts: tuple[str, ...] = ()


class Image(LargeFile):
    reference: str = Field(description="name and tag that the archive gives its image")


class AcceptanceSet(_Frozen):
    """Items with the predictions of the arm in the bundle."""

    file: str
    source: str
    n: int
    restricted: bool = Field(description="not to be passed on")
    texts: bool = Field(description="questions and answers are here, not only their hashes")
    licence: str


class Delta(_Frozen):
    """An update of an installed version: an adapter for its model, which is not in the bundle."""

    base: str = Field(description="NAME-VERSION that must be installed")
    base_sums: str = Field(description="SHA-256 of its SHA256SUMS")
    adapter: LargeFile


class GateResult(_Frozen):
    """The verdict on the very file that the bundle carries."""

    reference: str
    candidate: str
    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reasons: tuple[str, ...] = ()


class Description(_Frozen):
    """bundle.json. It holds no time, so that equal inputs give equal bytes."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    verified: bool
    run: str
    type: str
    kit_version: str
    base: BaseModelId | None
    gate: GateResult
    model: LargeFile
    image: Image
    manifests: dict[str, str] = Field(description="stage to SHA-256 of its manifest.json")
    acceptance: tuple[AcceptanceSet, ...]
    delta: Delta | None = Field(None, description="what an update stands on, and brings")


@dataclass(frozen=True)
class Bundle:
    """A folder whose signature, files and hashes were right when it was opened."""

    folder: Path
    statement: Statement
    description: Description


def open_bundle(
    folder: Path,
    public_key: Path,
    *,
    installed: str | None = None,
    on_bytes: OnBytes = lambda _: None,
) -> Bundle:
    """Check everything with the public key alone, then read what the bundle says of itself.

    `installed` is the version that this one must not be older than. Raises `BundleError` that
    names the first file, and the byte range, that is not as signed.
    """
    statement, sums = read_signed(folder, public_key)
    require_same_files(folder, sums)
    if damages := find_damage(folder, sums, on_bytes):
        raise damage_error(folder, damages)
    description = read_description(folder)
    own = (statement.name, statement.version, statement.verified)
    if own != (description.name, description.version, description.verified):
        raise BundleError(f"{folder / DESCRIPTION} is of another bundle", " ".join(map(str, own)))
    if installed is not None and version_key(statement.version) < version_key(installed):
        raise BundleError(
            f"{folder} is version {statement.version}", f"{installed}, which is installed, or newer"
        )
    return Bundle(folder, statement, description)


def read_signed(folder: Path, public_key: Path) -> tuple[Statement, dict[str, str]]:
    """The statement and the sums of a bundle whose signature is right, whatever else is in it."""
    return read_signed_by(folder, read_public_key(public_key), str(public_key))


def read_signed_by(
    folder: Path, key: "Ed25519PublicKey", shown: str
) -> tuple[Statement, dict[str, str]]:
    """The same with a key at hand, which errors call `shown`."""
    text, signature, sums = (_small(folder, name) for name in (SIGNED, SIGNATURE, SUMS))
    if not is_signed_by(key, text, signature):
        raise BundleError(
            f"{folder / SIGNED} was not signed with the private key of {shown}",
            "the sender's signature",
            "copy SIGNED and SIGNED.sig again; if that fails, do not use this bundle",
        )
    statement = parse_statement(text)
    if sha256(sums).hexdigest() != statement.sums:
        raise BundleError(f"{folder / SUMS} is not the file that was signed", statement.sums)
    return statement, parse_sums(sums)


def parse_sums(text: bytes) -> dict[str, str]:
    """File names with their SHA-256, as `format_sums` wrote them and not otherwise."""
    sums = {name: digest for digest, name in _LINE.findall(text.decode("ascii", "replace"))}
    if format_sums(sums) != text or len({name.lower() for name in sums}) != len(sums):
        raise BundleError(f"{SUMS} is malformed", "sorted lines of plain relative file names")
    return sums


def format_sums(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode("ascii")


def require_same_files(folder: Path, sums: Mapping[str, str]) -> None:
    """Raise `BundleError` unless the folder has just the files that were signed, as plain files."""
    expected = {*sums, *OUTSIDE_SUMS}
    found = set(_files(folder))
    if missing := sorted(expected - found):
        raise BundleError(f"{folder / missing[0]} is missing", "a whole copy", "copy it again")
    if extra := sorted(found - expected):
        raise BundleError(f"{folder / extra[0]!s} is not part of the bundle", remedy="remove it")


def damage_error(folder: Path, damages: list[Damage]) -> BundleError:
    lines = "\n  ".join(str(damage) for damage in damages[:20])
    commands = "\n          ".join(damage.copy_command(folder) for damage in damages[:20])
    return BundleError(
        f"{folder}: {len(damages)} range(s) are not what was signed\n  {lines}",
        "the bytes that were signed",
        f"copy again, or only what differs:\n          {commands}",
    )


def _small(folder: Path, name: str) -> bytes:
    """A short file, read before anything is known to be true of it."""
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}", "a bundle of this kit") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES[name]:
            raise BundleError(f"{path} is no plain file of its size", "a bundle of this kit")
        content = file.read(_MAX_BYTES[name])
    if name == SIGNATURE and len(content) != SIGNATURE_BYTES:
        raise BundleError(f"{path} has {len(content)} bytes", f"{SIGNATURE_BYTES}")
    return content


def _files(folder: Path, prefix: str = "") -> Iterator[str]:
    """Paths of all files below a folder; anything but plain files and folders is an error."""
    with os.scandir(folder / prefix) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    if prefix and not listed:
        raise BundleError(f"{folder / prefix} is empty", remedy="remove it")
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield prefix + entry.name
        else:
            raise BundleError(f"{entry.path} is no plain file", "files and folders only")


def read_description(folder: Path) -> Description:
    try:
        return Description.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{folder / DESCRIPTION}: {error}", "bundle schema 1") from None
