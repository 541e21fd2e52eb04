"""`kormed bundle`: the offline package for a hospital, made, signed and checked."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from kormed_edge.bundle import OUTSIDE_SUMS, Bundle, open_bundle
from kormed_edge.bundle_signing import fingerprint, is_locked, make_keys, read_private_key
from kormed_edge.errors import BundleError
from kormed_edge.options import RUN, RUNS_DIR
from kormed_edge.progress import console, progress

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SIZES = {"fat32": (4 << 30) - 1}


@click.group("bundle")
def bundle_command() -> None:
    """Make, sign and check the package that a machine without a network installs.

    \b
    Example: kormed bundle keygen kormed
             kormed bundle create --run demo --type Q4_K_M --version 1 --key kormed.key \\
                 --image kormed-edge.tar --out bundles
             kormed bundle check bundles/demo-1 --key kormed.pub
    """


@bundle_command.command("keygen")
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that locks the private key.")
def keygen_command(name: Path, passphrase: bool) -> None:
    """Write NAME.key, which signs and stays secret, and NAME.pub, which sites check with.

    \b
    Example: kormed bundle keygen kormed --passphrase
    """
    secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, default="",
                          show_default=False) if passphrase else None  # fmt: skip
    private, public = (name.with_name(name.name + end) for end in (".key", ".pub"))
    click.echo(make_keys(private, public, secret))
    console.print(
        f"{private} signs: keep it off machines with a network, and keep a copy.\n"
        f"{public} goes to the sites. Tell them the fingerprint above by another way.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@bundle_command.command("create")
@RUN
@click.option("--type", "type_", metavar="TYPE", help="Quantization, as Q4_K_M.")
@click.option("--version", required=True, help="1, 2, 3 or 1.4; a site refuses to go back.")
@click.option("--image", type=FILE, help="The edge image, from `docker save`.")
@click.option(
    "--delta", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="BUNDLE",
    help="Only the run's adapter, for sites that have BUNDLE; in place of --type and --image.",
)  # fmt: skip
@click.option("--key", required=True, type=FILE, help="The private key of `kormed bundle keygen`.")
@click.option("--name", help="Name of the bundle.  [default: the run's]")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bundles"),
    show_default=True, help="Folder of all bundles.",
)  # fmt: skip
@click.option(
    "--max-file-bytes", metavar="N",
    help="Split larger files; a number, or fat32 for sticks of that kind.",
)  # fmt: skip
@click.option(
    "--benchmark", is_flag=True, help="Take the answers of `kormed benchmark` too (CC BY-NC)."
)
@click.option(
    "--include-restricted", is_flag=True,
    help="Take AI Hub's questions and answers themselves, which must not be passed on.",
)  # fmt: skip
@click.option("--unverified", is_flag=True, help="Without a gate that passed; stamped everywhere.")
@click.option("--licence", "licences", type=FILE, multiple=True, help="A text more; repeatable.")
@click.option(
    "--constraints", type=click.Path(path_type=Path), default=Path("constraints-edge.txt"),
    show_default=True, help="The packages of the edge image, for the SBOM.",
)  # fmt: skip
@RUNS_DIR
def create_command(
    run_name: str, runs_dir: Path, type_: str | None, key: Path, out: Path, name: str | None,
    max_file_bytes: str | None, delta: Path | None, **others: Any,
) -> None:  # fmt: skip
    """Pack and sign a GGUF of a run with all that a site needs. Refuses unless its gate passed.

    \b
    Example: kormed bundle create --run demo --type Q4_K_M --version 1 --key kormed.key \\
                 --image kormed-edge.tar
             kormed bundle create --run demo2 --name demo --delta bundles/demo-1 --version 2 \\
                 --key kormed.key --unverified
    """
    if {type_ is None, others["image"] is None} != {delta is not None}:
        raise click.UsageError("give --type and --image, or --delta alone")
    if find_spec("eval") is None:
        raise BundleError("the gate is not installed here", "kormed-edge[eval], or kormed-train")
    from kormed_edge.bundle_build import Order, create_bundle
    from kormed_edge.bundle_delta import create_delta
    from kormed_edge.bundle_evidence import decide_gate

    order = Order(
        runs_dir / run_name, type_ or "", name or run_name,
        max_file_bytes=_size(max_file_bytes), **others,
    )  # fmt: skip
    secret = click.prompt("Passphrase", hide_input=True, err=True) if is_locked(key) else None
    signer = read_private_key(key, secret)
    with progress("bundle: bytes") as update:
        if delta:
            folder = create_delta(order, delta, signer, out, on_bytes=_Adder(update))
        else:
            gate = decide_gate(order.run, f"gguf:{order.type}")
            folder = create_bundle(order, gate, signer, out, on_bytes=_Adder(update))
    click.echo(folder)
    console.print(f"signed by {fingerprint(signer.public_key())}", highlight=False, soft_wrap=True)
    if folder.name != order.label:
        console.print("[bold red]UNVERIFIED[/]: no gate has passed for what is in it")


@bundle_command.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--key", required=True, type=FILE, help="The sender's public key, NAME.pub.")
@click.option("--installed", metavar="VERSION", help="Refuse a bundle that is older than this.")
def check_command(folder: Path, key: Path, installed: str | None) -> None:
    """Check signature, files and hashes; name the file and bytes that a copy got wrong.

    \b
    Example: kormed bundle check /media/stick/demo-1 --key kormed.pub
    """
    with progress("check: bytes", _total(folder)) as update:
        bundle = open_bundle(folder, key, installed=installed, on_bytes=_Adder(update))
    _show(bundle)


class _Adder:
    """Turns sizes of blocks into how far the work is."""

    def __init__(self, update: Any) -> None:
        self._update, self._done = update, 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._update(self._done)


def _total(folder: Path) -> int:
    names = (p for p in folder.rglob("*") if p.is_file() and p.name not in OUTSIDE_SUMS)
    return sum(path.stat().st_size for path in names)


def _size(text: str | None) -> int | None:
    if text is None or text in SIZES:
        return SIZES.get(text or "")
    if not text.isdecimal() or int(text) == 0:
        raise click.BadParameter(f"{text} is neither a number of bytes nor fat32")
    return int(text)


def _show(bundle: Bundle) -> None:
    described, statement = bundle.description, bundle.statement
    gate = described.gate
    console.print(
        f"{bundle.folder}: {statement.name} {statement.version}, signed {statement.signed}, "
        f"every file as signed\n"
        f"{Path(described.model.file).name}, gate {gate.reference} → {gate.candidate}: "
        f"{gate.outcome}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    if not statement.verified:
        console.print("[bold red]UNVERIFIED[/]: made without a gate that passed")
