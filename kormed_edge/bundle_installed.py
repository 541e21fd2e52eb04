"""A bundle as `install.sh` leaves it: parts joined, what an update takes from its base put beside
it, and a list more that says so.

Read as strictly as one on a stick. What a joined file must be is in its `.sha256`, which is signed
like every file; `INSTALLED`, the installer's own list, vouches for nothing.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from kormed_edge.bundle import (
    FROM_BASE,
    Bundle,
    damage_error,
    open_bundle,
    parse_sums,
    read_description,
    read_signed,
    require_same_files,
)
from kormed_edge.bundle_blocks import PART, OnBytes, find_damage
from kormed_edge.errors import BundleError

INSTALLED = "INSTALLED"


def open_site(folder: Path, public_key: Path, *, on_bytes: OnBytes = lambda _: None) -> Bundle:
    """A bundle, installed or not, of which every file is as signed; nothing is parsed before.

    Raises `BundleError` that names the first file that is not.
    """
    if not (folder / INSTALLED).exists():
        return open_bundle(folder, public_key, on_bytes=on_bytes)
    statement, sums = read_signed(folder, public_key)
    expected = dict(_joined(folder, sums))
    require_same_files(folder, {**expected, INSTALLED: ""})
    if damages := find_damage(folder, expected, on_bytes):
        raise damage_error(folder, damages)
    return Bundle(folder, statement, read_description(folder))


def _joined(folder: Path, sums: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The sums with every row of parts replaced by the whole that they make, and those of what an
    update took over."""
    if FROM_BASE in sums:
        yield from _taken_over(folder / FROM_BASE, sums[FROM_BASE]).items()
    for name, digest in sums.items():
        whole, part, number = name.rpartition(PART)
        if not part:
            yield name, digest
        elif int(number) == 0:
            yield whole, _whole_digest(folder / f"{whole}.sha256")


def _taken_over(path: Path, digest: str) -> dict[str, str]:
    content = path.read_bytes() if path.is_file() else b""
    if sha256(content).hexdigest() != digest:
        raise BundleError(f"{path} is not the file that was signed", digest, "install it again")
    return parse_sums(content)


def _whole_digest(path: Path) -> str:
    """The SHA-256 in a `.sha256` file; whether that file is the signed one is checked with all."""
    try:
        return path.read_bytes()[:64].decode("ascii", "replace")
    except OSError:
        raise BundleError(
            f"{path} is missing", "a whole installation", "install it again"
        ) from None
