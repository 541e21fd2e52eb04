"""Who made a bundle: Ed25519 keys, and the short statement that is signed.

`SIGNED` names the bundle, says whether the gate passed and when it was signed, and holds the
SHA-256 of `SHA256SUMS`, which holds that of every other file: one signature covers every byte.
Plain lines, because the installer, a shell script, reads them with nothing but sed.
"""

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from kormed_edge.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNED = "SIGNED"
SIGNATURE = "SIGNED.sig"
SIGNATURE_BYTES = 64
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
VERSION = r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,3}"
_STATEMENT = re.compile(
    rf"kormed-bundle 1\nname (?P<name>{NAME})\nversion (?P<version>{VERSION})\n"
    r"verified (?P<verified>yes|no)\nsigned (?P<signed>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z)\n"
    r"sums (?P<sums>[0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature vouches for. `signed` is UTC, `sums` the SHA-256 of SHA256SUMS."""

    name: str
    version: str
    verified: bool
    signed: str
    sums: str

    def text(self) -> bytes:
        verified = "yes" if self.verified else "no"
        return (
            f"kormed-bundle 1\nname {self.name}\nversion {self.version}\nverified {verified}\n"
            f"signed {self.signed}\nsums {self.sums}\n"
        ).encode()


def parse_statement(text: bytes) -> Statement:
    """The statement of bytes whose signature was checked; `BundleError` for any other form."""
    match = _STATEMENT.fullmatch(text.decode("ascii", "replace"))
    if match is None:
        raise BundleError(f"{SIGNED} is not a statement of this kit", "kormed-bundle 1")
    fields = match.groupdict()
    return Statement(
        fields["name"], fields["version"], fields["verified"] == "yes", fields["signed"],
        fields["sums"],
    )  # fmt: skip


def version_key(version: str) -> tuple[int, ...]:
    """What orders versions: 1.10 is newer than 1.9, and 1.0 is 1."""
    numbers = [int(part) for part in version.split(".")]
    return tuple(numbers + [0] * (4 - len(numbers)))


def make_keys(private: Path, public: Path, passphrase: str | None = None) -> str:
    """Write a new pair of keys as PEM, the private one for its owner alone.

    Returns the public key's fingerprint. `BundleError` if either file exists: a lost signing key
    can't be had again.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if taken := next((path for path in (private, public) if path.exists()), None):
        raise BundleError(f"{taken} exists", "a new file name", "choose another name")
    key = Ed25519PrivateKey.generate()
    lock: form.KeySerializationEncryption = form.NoEncryption()
    if passphrase:
        lock = form.BestAvailableEncryption(passphrase.encode())
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(
            form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
        )
    )  # fmt: skip
    return fingerprint(key.public_key())


def fingerprint(key: "Ed25519PublicKey") -> str:
    """SHA-256 of the key in DER, as `openssl pkey -pubin -outform DER | sha256sum` gives it."""
    from cryptography.hazmat.primitives import serialization as form

    der = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return sha256(der).hexdigest()


def read_private_key(path: Path, passphrase: str | None = None) -> "Ed25519PrivateKey":
    """A signing key that only its owner can read; `BundleError` for anything else."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read(path)
    if path.stat().st_mode & 0o077:
        raise BundleError(f"{path} is open to others", "mode 600", f"chmod 600 {path}")
    try:
        key = load_pem_private_key(text, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError) as error:  # TypeError: a passphrase too many or too few
        raise BundleError(f"{path}: {error}", "the private key of `kormed bundle keygen`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} is another kind of key", "Ed25519", "kormed bundle keygen")
    return key


def is_locked(path: Path) -> bool:
    """Whether a private key's file asks for a passphrase."""
    return b"ENCRYPTED PRIVATE KEY" in _read(path)


def read_public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        raise BundleError(f"{path} is not a public key", "the .pub file of the sender") from None
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path} is another kind of key", "Ed25519", "ask the sender for his")
    return key


def is_signed_by(key: "Ed25519PublicKey", text: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", "a key file") from None
