import stat
import subprocess
from pathlib import Path

import pytest

from kormed_edge.bundle_signing import (
    Statement,
    is_locked,
    is_signed_by,
    make_keys,
    parse_statement,
    read_private_key,
    read_public_key,
    version_key,
)
from kormed_edge.errors import BundleError

STATEMENT = Statement("demo", "1.10", True, "2026-01-02T03:04:05Z", "a" * 64)


def keys(folder: Path, passphrase: str | None = None) -> tuple[Path, Path]:
    private, public = folder / "k.key", folder / "k.pub"
    make_keys(private, public, passphrase)
    return private, public


def test_private_key_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    before = private.read_bytes()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(BundleError, match="exists"):
        make_keys(private, public)
    assert private.read_bytes() == before


def test_signature_fits_its_key_and_text_only(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    signature = read_private_key(private).sign(b"text")
    assert is_signed_by(read_public_key(public), b"text", signature)
    assert not is_signed_by(read_public_key(public), b"texts", signature)
    make_keys(tmp_path / "o.key", tmp_path / "o.pub")
    assert not is_signed_by(read_public_key(tmp_path / "o.pub"), b"text", signature)


def test_openssl_takes_the_signature_and_gives_the_fingerprint(tmp_path: Path) -> None:
    private, public = tmp_path / "k.key", tmp_path / "k.pub"
    fingerprint = make_keys(private, public)
    (tmp_path / "text").write_bytes(STATEMENT.text())
    (tmp_path / "sig").write_bytes(read_private_key(private).sign(STATEMENT.text()))
    command = "openssl pkeyutl -verify -pubin -inkey k.pub -rawin -in text -sigfile sig"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    command = "openssl pkey -pubin -in k.pub -outform DER | sha256sum"
    shown = subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert shown.stdout.decode().split()[0] == fingerprint


def test_locked_key_needs_its_passphrase(tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "열쇠")
    assert is_locked(private)
    read_private_key(private, "열쇠")
    for wrong in (None, "다른 말"):
        with pytest.raises(BundleError):
            read_private_key(private, wrong)


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    private.chmod(0o640)
    with pytest.raises(BundleError, match="mode 600"):
        read_private_key(private)


def test_other_kinds_of_key_are_refused(tmp_path: Path) -> None:
    command = f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {tmp_path}/ec"
    subprocess.run(command.split(), check=True, capture_output=True)
    command = f"openssl pkey -in {tmp_path}/ec -pubout -out {tmp_path}/ec.pub"
    subprocess.run(command.split(), check=True)
    (tmp_path / "ec").chmod(0o600)
    with pytest.raises(BundleError, match="another kind of key"):
        read_private_key(tmp_path / "ec")
    with pytest.raises(BundleError, match="another kind of key"):
        read_public_key(tmp_path / "ec.pub")
    private, _ = keys(tmp_path)
    with pytest.raises(BundleError, match="not a public key"):
        read_public_key(private)


def test_statement_survives_its_text() -> None:
    assert parse_statement(STATEMENT.text()) == STATEMENT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"bundle 1", b"bundle 2"), (b"demo", b"../demo"), (b"1.10", b"1.01"), (b"1.10", b"v1"),
        (b"yes", b"true"), (b"\nsums", b"\nmore x\nsums"), (b"name demo\n", b""), (b"a\n", b"a"),
        (b"1.10", b"1.1.1.1.1"), (b"demo", b"\xea\xb0\x80"),
    ],
)  # fmt: skip
def test_any_other_statement_is_refused(old: bytes, new: bytes) -> None:
    text = STATEMENT.text()
    assert old in text
    with pytest.raises(BundleError):
        parse_statement(text.replace(old, new))


def test_versions_are_ordered_by_number() -> None:
    ordered = ["0.9", "1", "1.2", "1.10", "2", "10"]
    assert sorted(ordered, key=version_key) == ordered
    assert version_key("1") == version_key("1.0.0")
