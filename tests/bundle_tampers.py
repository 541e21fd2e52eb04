"""Changes to a bundle, each of which reader and installer must refuse."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from bundle_run import Workshop

from kormed_edge.bundle_signing import make_keys, parse_statement, read_private_key

Tamper = Callable[[Workshop, Path], None]
MODEL = "model/demo-Q4_K_M.gguf"


def flip(path: Path, at: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flipped(name: str) -> Tamper:
    return lambda _, folder: flip(folder / name)


def cut(name: str, left: int) -> Tamper:
    return lambda _, folder: os.truncate(folder / name, left)


def without(name: str) -> Tamper:
    return lambda _, folder: (folder / name).unlink()


def with_file(name: str) -> Tamper:
    def add(_: Workshop, folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("#!/bin/sh\ntouch /tmp/never\n")

    return add


def linked(name: str) -> Tamper:
    """The same bytes, but elsewhere, where they can change after the check."""

    def link(workshop: Workshop, folder: Path) -> None:
        away = workshop.folder / "away"
        (folder / name).rename(away)
        (folder / name).symlink_to(away)

    return link


def longer(_: Workshop, folder: Path) -> None:
    with (folder / MODEL).open("ab") as file:
        file.write(b"more")


def swapped(_: Workshop, folder: Path) -> None:
    first, second = folder / "units/kormed.service", folder / "units/kormed.container"
    content = first.read_bytes()
    second.replace(first)
    second.write_bytes(content)


def pipe(_: Workshop, folder: Path) -> None:
    (folder / "service.env").unlink()
    os.mkfifo(folder / "service.env")


def extra_pipe(_: Workshop, folder: Path) -> None:
    os.mkfifo(folder / "more")


def extra_link(_: Workshop, folder: Path) -> None:
    (folder / "more").symlink_to(MODEL)


def other_key(workshop: Workshop, folder: Path) -> None:
    private = workshop.folder / "other.key"
    make_keys(private, workshop.folder / "other.pub")
    text = (folder / "SIGNED").read_bytes()
    (folder / "SIGNED.sig").write_bytes(read_private_key(private).sign(text))


def older_statement(workshop: Workshop, folder: Path) -> None:
    older = workshop.bundle("2", out="older")
    for name in ("SIGNED", "SIGNED.sig"):
        shutil.copy(older / name, folder / name)


def older_sums(workshop: Workshop, folder: Path) -> None:
    older_statement(workshop, folder)
    shutil.copy(workshop.folder / "older/demo-2/SHA256SUMS", folder / "SHA256SUMS")


def older_model(_: Workshop, folder: Path) -> None:
    """Another file, with sums that fit, but not the signature."""
    flip(folder / MODEL)
    sums = (folder / "SHA256SUMS").read_text()
    line = next(line for line in sums.splitlines() if line.endswith(MODEL))
    digest = sha256((folder / MODEL).read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(sums.replace(line, f"{digest}  {MODEL}"))


def sign(workshop: Workshop, folder: Path, text: bytes | None = None) -> None:
    """Sign the sums as they are now, or any text at all, with the right key."""
    if text is None:
        sums = sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
        text = replace(parse_statement((folder / "SIGNED").read_bytes()), sums=sums).text()
    (folder / "SIGNED").write_bytes(text)
    (folder / "SIGNED.sig").write_bytes(read_private_key(workshop.private).sign(text))


def signed_line(name: str, digest: str = "") -> Tamper:
    """A line more in the sums, rightly signed: what a fault in the sender's tool could make."""

    def add(workshop: Workshop, folder: Path) -> None:
        (workshop.folder / "outside").write_text("outside")
        value = digest or sha256(b"outside").hexdigest()
        with (folder / "SHA256SUMS").open("a") as file:
            file.write(f"{value}  {name}\n")
        sign(workshop, folder)

    return add


def signed_statement(old: bytes, new: bytes) -> Tamper:
    def change(workshop: Workshop, folder: Path) -> None:
        text = (folder / "SIGNED").read_bytes()
        assert old in text
        sign(workshop, folder, text.replace(old, new))

    return change


TAMPERS: dict[str, Tamper] = {
    "model flipped": flipped(MODEL),
    "image flipped": flipped("image/kormed-edge.tar"),
    "installer flipped": flipped("install.sh"),
    "acceptance set flipped": flipped("acceptance/test.jsonl"),
    "sums flipped": flipped("SHA256SUMS"),
    "statement flipped": flipped("SIGNED"),
    "signature flipped": flipped("SIGNED.sig"),
    "model cut": cut(MODEL, 100),
    "model emptied": cut(MODEL, 0),
    "sums cut": cut("SHA256SUMS", 200),
    "signature cut": cut("SIGNED.sig", 63),
    "signature emptied": cut("SIGNED.sig", 0),
    "model longer": longer,
    "files swapped": swapped,
    "unsigned": without("SIGNED.sig"),
    "no statement": without("SIGNED"),
    "no sums": without("SHA256SUMS"),
    "file missing": without("report/index.html"),
    "extra file": with_file("extra.sh"),
    "extra file below": with_file("units/extra.sh"),
    "hidden file": with_file("model/.hidden"),
    "extra folder with a file": with_file("more/extra.sh"),
    "link to the model": linked(MODEL),
    "link to a folder": linked("units"),
    "link to the signature": linked("SIGNED.sig"),
    "pipe": pipe,
    "extra pipe": extra_pipe,
    "extra link": extra_link,
    "other key": other_key,
    "statement of an older version": older_statement,
    "statement and sums of an older version": older_sums,
    "other model with fitting sums": older_model,
    "path that leads out": signed_line("../outside"),
    "path that leads out below": signed_line("model/../../outside"),
    "absolute path": signed_line("/etc/hostname"),
    "path with a space": signed_line("a b"),
    "malformed hash": signed_line("units/kormed.service", "0" * 63),
    "line without its file": signed_line("zz/none"),
    "statement of another kind": signed_statement(b"bundle 1", b"bundle 2"),
    "name that leads out": signed_statement(b"name demo", b"name ../demo"),
    "version that is no number": signed_statement(b"version 3", b"version 3;id"),
    "sums of another file": signed_statement(b"sums ", b"sums 0"),
}
