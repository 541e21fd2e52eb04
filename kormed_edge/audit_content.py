"""Texts of the audit log, sealed with AES-256-GCM under a key that is kept in a file of its own.

Whoever has the database without the key has no text. A sealed text is bound to its row: it cannot
be opened from another one.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from hashlib import sha256
from pathlib import Path
from typing import Any

from kormed_edge.audit_chain import canonical
from kormed_edge.errors import KormedError

KEY_BYTES = 32
NONCE_BYTES = 12
ID_BYTES = 8
VERSION = b"\x01"
_HEAD = len(VERSION) + ID_BYTES + NONCE_BYTES


class ContentError(KormedError):
    """A key file is missing, open to others or no key, or a text cannot be opened."""


def make_key(path: Path) -> str:
    """Write a new key, base64, for its owner alone; its id. `ContentError` if the file exists."""
    key = os.urandom(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ContentError(
            f"{path} cannot be made: {error.strerror}", "a new file", "choose another name"
        ) from None
    with open(descriptor, "wb") as file:
        file.write(b64encode(key) + b"\n")
    return key_id(key)


def read_key(path: Path) -> bytes:
    """The 32 bytes of a key file that only its owner can read; `ContentError` otherwise."""
    remedy = f"kormed audit keygen {path}"
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_bytes()
    except OSError as error:
        raise ContentError(
            f"{path} cannot be read: {error.strerror}", "a key file", remedy
        ) from None
    if mode & 0o077:
        raise ContentError(
            f"{path} has mode {mode:03o}", "600: for its owner alone", f"chmod 600 {path}"
        )
    try:
        key = b64decode(text.strip(), validate=True)
    except Base64Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ContentError(f"{path} is no key", f"{KEY_BYTES} bytes in base64", remedy)
    return key


def key_id(key: bytes) -> str:
    """What names a key and does not tell it."""
    return _id(key).hex()


def seal(key: bytes, value: Any, place: tuple[str, int, str]) -> bytes:
    """A JSON value sealed for the row at `place`: table, row id, request id."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    # Random nonces may not be used more than 2^32 times with one key: far beyond any service.
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, canonical(value), canonical(place))
    return VERSION + _id(key) + nonce + sealed


def unseal(key: bytes, sealed: bytes, place: tuple[str, int, str]) -> Any:
    """What was sealed for `place`. `ContentError` for another key, another row, or damage."""
    import json

    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    where, used = f"row {place[1]} of {place[0]}", sealed[1 : 1 + ID_BYTES]
    if sealed[:1] != VERSION or len(sealed) <= _HEAD:
        raise ContentError(f"{where} holds no sealed text")
    if used != _id(key):
        raise ContentError(
            f"{where} was sealed with key {used.hex()}, and this is {key_id(key)}",
            "the key file that the service had then",
        )
    try:
        nonce, text = sealed[_HEAD - NONCE_BYTES : _HEAD], sealed[_HEAD:]
        return json.loads(AESGCM(key).decrypt(nonce, text, canonical(place)))
    except InvalidTag:
        raise ContentError(
            f"{where} does not open: it was changed, or comes from another row"
        ) from None


def _id(key: bytes) -> bytes:
    return sha256(b"kormed audit key" + key).digest()[:ID_BYTES]
