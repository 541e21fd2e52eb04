"""Making a bundle out of a run: the same inputs give the same bytes, but for the time of signing.

Everything is written to `NAME-VERSION.partial`, which is renamed when it is signed.
"""

import json
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kormed_edge import __version__
from kormed_edge.bundle import (
    DESCRIPTION,
    SUMS,
    AcceptanceSet,
    Delta,
    Description,
    GateResult,
    Image,
    LargeFile,
    format_sums,
    parse_sums,
)
from kormed_edge.bundle_blocks import BLOCKS, PART, OnBytes, copy_split, describe_blocks
from kormed_edge.bundle_evidence import PASS, acceptance_sets, require_pass
from kormed_edge.bundle_signing import (
    NAME,
    SIGNATURE,
    SIGNED,
    VERSION,
    Statement,
    fingerprint,
)
from kormed_edge.bundle_texts import other_texts
from kormed_edge.calibration import BUNDLED, calibration_file, read_calibration
from kormed_edge.disk import require_space
from kormed_edge.errors import BundleError
from kormed_edge.manifest import MANIFEST, Manifest, manifest_hash, read_manifest
from kormed_edge.runs import require_stage
from kormed_edge.sbom import read_pins

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

IMAGE_FILE = "image/kormed-edge.tar"
CHAIN = {
    "data": "manifests/data.json",
    "adapter": "manifests/adapter.json",
    "gguf": f"model/{MANIFEST}",
    "eval": "manifests/eval.json",
    "report": f"report/{MANIFEST}",
}
"""Where the manifest of each stage stands; the GGUF's beside it, as `kormed serve` wants it."""
_REFERENCE = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]{0,199}")


@dataclass(frozen=True)
class Order:
    """What goes into a bundle. `max_file_bytes` is what the carrier's file system can hold; an
    update has no `image`."""

    run: Path
    type: str
    name: str
    version: str
    image: Path | None
    constraints: Path
    licences: tuple[Path, ...] = ()
    unverified: bool = False
    benchmark: bool = False
    include_restricted: bool = False
    max_file_bytes: int | None = None
    label: str = field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise BundleError(f"{self.name!r} cannot name a bundle", "A-Z a-z 0-9 _ -", "--name")
        if not re.fullmatch(VERSION, self.version):
            raise BundleError(f"{self.version!r} is no version", "numbers and dots, such as 3")
        object.__setattr__(self, "label", f"{self.name}-{self.version}")


def create_bundle(
    order: Order,
    gate: GateResult,
    key: "Ed25519PrivateKey",
    out: Path,
    *,
    signed_at: datetime | None = None,
    on_bytes: OnBytes = lambda _: None,
) -> Path:
    """Write and sign a bundle in `out`; returns its folder.

    `gate` is the verdict on the order's GGUF, from `decide_gate`. Raises `BundleError` for one
    that did not pass, unless the order is for an unverified bundle.
    """
    if not order.unverified:
        require_pass(gate, order.run.name)
    gguf = _gguf_file(order)
    if order.image is None:
        raise BundleError("no image was given", "the edge image", "--image, or --delta BUNDLE")
    size = gguf.stat().st_size + order.image.stat().st_size
    draft, final = open_draft(order, gate, out, size)
    model = place(gguf, draft, f"model/{gguf.name}", order.max_file_bytes, on_bytes)
    image = place(order.image, draft, IMAGE_FILE, order.max_file_bytes, on_bytes)
    _require_same(model, read_manifest(order.run / "gguf"), gguf)
    reference = image_reference(order.image)
    sets = acceptance_sets(
        order.run, f"gguf:{order.type}", benchmark=order.benchmark,
        include_restricted=order.include_restricted,
    )  # fmt: skip
    described = describe(
        order, gate, model, Image(**dict(image), reference=reference), acceptance=tuple(sets)
    )
    texts = {kept.file: content for kept, content in sets.items()} | chain_texts(order.run, CHAIN)
    texts |= calibration_text(order.run, f"gguf:{order.type}", "model", model.sha256)
    finish(draft, described, texts, order, key, signed_at or datetime.now(UTC), on_bytes)
    draft.rename(final)
    return final


def open_draft(order: Order, gate: GateResult, out: Path, size: int) -> tuple[Path, Path]:
    """An empty folder to write in, with room for `size` bytes, and the name that it will get."""
    verified = gate.outcome == PASS and not order.unverified
    final = out / (order.label + ("" if verified else "-UNVERIFIED"))
    if final.exists():
        raise BundleError(f"{final} exists", "a new version", "--version, or remove the folder")
    draft = final.with_name(final.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    require_space(out, size, "the bundle")
    draft.mkdir(parents=True)
    return draft, final


def image_reference(archive: Path) -> str:
    """Name and tag of the one image in what `docker save` or `podman save` wrote."""
    try:
        with tarfile.open(archive) as tar:
            listed = tar.extractfile("manifest.json")
            images: list[Any] = json.load(listed) if listed else []
        (image,) = images
        reference = str(image["RepoTags"][0])
    except (OSError, tarfile.TarError, KeyError, ValueError, IndexError, TypeError) as error:
        raise BundleError(
            f"{archive} is not an archive of one image with a name: {error}", "docker save",
            "docker save kormed-edge --output image.tar",
        ) from None  # fmt: skip
    if not _REFERENCE.fullmatch(reference):
        raise BundleError(f"{archive}: {reference!r} is no image name", "name:tag")
    return reference


def _gguf_file(order: Order) -> Path:
    folder = require_stage(order.run, "gguf")
    models = read_manifest(folder).settings["models"]
    if order.type not in models:
        raise BundleError(f"{folder} has no {order.type}", f"one of: {', '.join(models)}")
    return folder / str(models[order.type])


def place(
    source: Path, draft: Path, name: str, max_bytes: int | None, on_bytes: OnBytes
) -> LargeFile:
    """Copy a file into a draft, in parts if it must be."""
    (draft / name).parent.mkdir(exist_ok=True)
    digest = copy_split(source, draft / name, max_bytes, on_bytes)
    parts = sorted((draft / name).parent.glob(f"{Path(name).name}{PART}*"))
    return LargeFile(
        file=name, sha256=digest, size=source.stat().st_size,
        parts=tuple(part.relative_to(draft).as_posix() for part in parts),
    )  # fmt: skip


def _require_same(model: LargeFile, manifest: Manifest, gguf: Path) -> None:
    if manifest.files[gguf.name].sha256 != model.sha256:
        raise BundleError(f"{gguf} is not the file of its manifest", model.sha256, "kormed verify")


def describe(
    order: Order, gate: GateResult, model: LargeFile, image: Image,
    acceptance: tuple[AcceptanceSet, ...] = (), delta: Delta | None = None,
) -> Description:  # fmt: skip
    """What bundle.json says."""
    run = order.run
    base = read_manifest(run / "gguf").base
    return Description(
        name=order.name,
        version=order.version,
        verified=gate.outcome == PASS and not order.unverified,
        run=run.name,
        type=order.type,
        kit_version=__version__,
        base=base.model_copy(update={"path": ""}) if base else None,
        gate=gate,
        model=model,
        image=image,
        manifests={stage: manifest_hash(require_stage(run, stage)) for stage in CHAIN},
        acceptance=acceptance,
        delta=delta,
    )


def chain_texts(run: Path, chain: Mapping[str, str]) -> dict[str, bytes]:
    """The manifests of a run, named as `chain` has it, and its report."""
    texts = {name: (run / stage / MANIFEST).read_bytes() for stage, name in chain.items()}
    report = read_manifest(run / "report").files
    return texts | {f"report/{name}": (run / "report" / name).read_bytes() for name in report}


def finish(
    draft: Path, described: Description, texts: Mapping[str, bytes], order: Order,
    key: "Ed25519PrivateKey", at: datetime, on_bytes: OnBytes,
) -> None:  # fmt: skip
    """Write the texts, and those that every bundle has, and sign all of it."""
    # Without a word of updates, a whole bundle is read by images that know of none.
    shown = described.model_dump(mode="json", exclude=None if described.delta else {"delta"})
    text = json.dumps(shown, ensure_ascii=False, indent=2)
    others = other_texts(
        described, fingerprint(key.public_key()), read_pins(order.constraints), order.licences
    )
    for name, content in {DESCRIPTION: f"{text}\n".encode(), **texts, **others}.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_bytes(content)
    _sign(draft, described, key, at, on_bytes)


def calibration_text(
    run: Path, arm: str, folder: str, model: str, adapter: str | None = None
) -> dict[str, bytes]:
    """How sure an arm's model may be, in the bundle's folder where `kormed serve` looks; none if a
    run has none. `model` and `adapter` are their SHA-256."""
    path = run / "eval" / calibration_file(arm)
    if not path.is_file():
        return {}
    content = path.read_bytes()
    entry = read_manifest(path.parent).files.get(path.name)
    if entry is None or entry.sha256 != sha256(content).hexdigest():
        raise BundleError(f"{path} is not the file of its manifest", remedy="kormed verify")
    read_calibration(path, model, adapter)  # raises for another model's
    return {f"{folder}/{BUNDLED}": content}


def _sign(
    draft: Path, described: Description, key: "Ed25519PrivateKey", at: datetime, on_bytes: OnBytes
) -> None:
    names = sorted(
        path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()
    )
    blocks, digests = describe_blocks(draft, names, on_bytes)
    text = (json.dumps(blocks, indent=1) + "\n").encode()
    (draft / BLOCKS).write_bytes(text)
    sums = format_sums({**digests, BLOCKS: sha256(text).hexdigest()})
    parse_sums(sums)  # refuses a file name that the reader would refuse
    (draft / SUMS).write_bytes(sums)
    statement = Statement(
        described.name, described.version, described.verified,
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), sha256(sums).hexdigest(),
    ).text()  # fmt: skip
    (draft / SIGNED).write_bytes(statement)
    (draft / SIGNATURE).write_bytes(key.sign(statement))
