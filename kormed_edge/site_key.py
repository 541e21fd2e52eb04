"""A site's own signing key, made at its first use, and detached signatures over files with it.

It says that a report was made on this machine and not changed since. It is not the key of bundles:
that one never leaves the builder.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kormed_edge.bundle_signing import fingerprint, make_keys, read_private_key
from kormed_edge.errors import BundleError
from kormed_edge.home import home

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE, PUBLIC = "site.key", "site.pub"
SIGNATURE = ".sig"


def site_key(folder: Path | None = None) -> "Ed25519PrivateKey":
    """The key in `folder`, by default `$KORMED_HOME`; mode 600, made if there is none.

    Raises `BundleError` for a key that others can read, or a folder that can not be written.
    """
    folder = folder or home()
    private = folder / PRIVATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not private.exists():
            make_keys(private, folder / PUBLIC)
    except OSError as error:
        raise BundleError(
            f"{folder}: {error.strerror}, so no key of this site can be kept there",
            "a folder that stays, writable for this user", "set KORMED_HOME to one",
        ) from None  # fmt: skip
    return read_private_key(private)


def sign_files(folder: Path, names: Iterable[str], key: "Ed25519PrivateKey") -> str:
    """Write `NAME.sig` beside each file, and the public key; returns the key's fingerprint.

    Each can be checked with openssl alone:
    openssl pkeyutl -verify -pubin -inkey site.pub -rawin -in NAME -sigfile NAME.sig
    """
    from cryptography.hazmat.primitives import serialization as form

    public = key.public_key()
    (folder / PUBLIC).write_bytes(
        public.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    for name in names:
        (folder / (name + SIGNATURE)).write_bytes(key.sign((folder / name).read_bytes()))
    return fingerprint(public)
