"""API keys: made here, kept as hashes in a file, asked of every request."""

import hmac
import os
import re
import secrets
import stat
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from kormed_edge.errors import ConfigError
from kormed_edge.refusal import refusal

PREFIX = "kormed_"
"""What a key begins with, so that scanners for leaked secrets can know one."""
SCOPE_KEY = "kormed.key"
"""Where the name of the key stands in an ASGI scope."""
OPEN_PATHS = ("/healthz", "/readyz")
"""What anyone may ask; it tells no more than that a service is here, and with which model."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<hash>[0-9a-f]{64})")


def hash_key(key: str) -> str:
    """SHA-256 in hexadecimal, which is what a file holds.

    A slow hash protects what can be guessed; a key has 256 random bits, and nobody tries those.
    """
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> dict[str, str]:
    """Hashes by name from lines of `NAME:HASH`.

    Raises `ConfigError` when the file is missing, empty of meaning in some line, or open to anyone
    but its owner: who can write it can let himself in.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        lines = file.read_text("utf-8").splitlines() if not mode & 0o077 else []
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}", "a file of API keys",
            f"kormed keys add NAME --file {file}",
        ) from None  # fmt: skip
    if mode & 0o077:
        raise ConfigError(
            f"{file} has mode {mode:03o}", "600: for its owner alone", f"chmod 600 {file}"
        )
    found = [_LINE.fullmatch(line) for line in lines]
    if None in found:
        raise ConfigError(
            f"line {found.index(None) + 1} of {file} is not a key",
            "NAME:HASH, as `kormed keys add` writes it",
            f"kormed keys add NAME --file {file}, with the broken line taken out",
        )
    return {match["name"]: match["hash"] for match in found if match}


def write_keys(file: Path, keys: Mapping[str, str]) -> None:
    """Replace a file of keys in one step, readable for its owner alone from the start."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines(f"{name}:{hashed}\n" for name, hashed in keys.items())
    draft.replace(file)


def add_key(file: Path, name: str) -> str:
    """A new key, which is in no file and cannot be had again; `ConfigError` for a name in use."""
    keys = read_keys(file) if file.exists() else {}
    if not _LINE.fullmatch(f"{name}:{'0' * 64}"):
        raise ConfigError(
            f"{name!r} cannot name a key", "1 to 64 of A-Z a-z 0-9 . _ -", "kormed keys add ward-3"
        )
    if name in keys:
        raise ConfigError(
            f"{file} has a key named {name}", "a new name",
            f"kormed keys remove {name} --file {file}, if the key is to be replaced",
        )  # fmt: skip
    key = PREFIX + secrets.token_urlsafe(32)
    write_keys(file, {**keys, name: hash_key(key)})
    return key


def remove_key(file: Path, name: str) -> None:
    keys = read_keys(file)
    if name not in keys:
        known = ", ".join(keys) or "none"
        raise ConfigError(f"{file} has no key {name}", f"one of: {known}", "kormed keys list")
    write_keys(file, {known: hashed for known, hashed in keys.items() if known != name})


def name_of(key: str, keys: Mapping[str, str]) -> str | None:
    """Whose key this is; takes the same time whichever entry it is, and when it is none."""
    hashed = hash_key(key)
    matches = [name for name, known in keys.items() if hmac.compare_digest(known, hashed)]
    return matches[0] if matches else None


class RequireKey:
    """ASGI middleware: 401 without `Authorization: Bearer KEY`, except on open paths.

    `/metrics` is not open: how many ask, when, and for how long is nobody else's business, and a
    scraper can send a key.
    """

    def __init__(
        self, app: ASGIApp, keys: Mapping[str, str], *, open_paths: Collection[str] = OPEN_PATHS
    ) -> None:
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = name_of(_bearer(scope), self._keys)
        if name is None and scope["path"] not in self._open:
            answer = refusal(
                401,
                "an API key is needed: send the header Authorization: Bearer KEY",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            return await answer(scope, receive, send)
        if name is not None:
            scope[SCOPE_KEY] = name
        await self._app(scope, receive, send)


def _bearer(scope: Scope) -> str:
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, key = (
        values[0].decode("latin-1").partition(" ") if len(values) == 1 else ("", "", "")
    )
    return key.strip() if scheme.lower() == "bearer" else ""
