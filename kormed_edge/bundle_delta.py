"""An update: a new adapter for the model of a bundle that sites have installed.

It holds the adapter as LoRA-GGUF, its chain of manifests and FROM_BASE, the names and hashes of
what the installer takes from the installed version. Some megabytes instead of gigabytes.

The adapter must have been trained on that bundle's own model, and the run's manifests show it: on
the GGUF of the bundle itself, or on another one of the same export, such as the bf16 one. How well
the two answer together no arm of the evaluation measures, so an update is never verified.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kormed_edge.bundle import (
    FROM_BASE,
    Delta,
    Description,
    GateResult,
    damage_error,
    format_sums,
    read_description,
    read_signed_by,
    require_same_files,
)
from kormed_edge.bundle_blocks import OnBytes, find_damage
from kormed_edge.bundle_build import (
    CHAIN,
    Order,
    chain_texts,
    describe,
    finish,
    open_draft,
    place,
)
from kormed_edge.bundle_evidence import require_pass
from kormed_edge.calibration import BUNDLED
from kormed_edge.errors import BundleError
from kormed_edge.manifest import MANIFEST, Manifest, read_manifest
from kormed_edge.runs import require_stage, verify_chain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ADAPTER = "adapter.gguf"
FOLDER = "adapter"
_TAKEN = (f"model/{MANIFEST}", f"model/{BUNDLED}")


def create_delta(
    order: Order,
    base: Path,
    key: "Ed25519PrivateKey",
    out: Path,
    *,
    signed_at: datetime | None = None,
    on_bytes: OnBytes = lambda _: None,
) -> Path:
    """Write and sign an update of the bundle in the folder `base`, whose type the order takes;
    returns its folder.

    Raises `BundleError` for a base that is damaged, signed with another key or an update itself,
    for an adapter that was trained on something else, and without `order.unverified`.
    """
    described, taken, sums = _read_base(base, key, on_bytes)
    gate = _unmeasured(described.type)
    if not order.unverified:
        require_pass(gate, order.run.name)
    _require_whole(order.run)
    gguf = require_stage(order.run, "gguf")
    _require_fit(gguf, base, described)
    adapter = gguf / ADAPTER
    draft, final = open_draft(order, gate, out, adapter.stat().st_size)
    placed = place(adapter, draft, f"{FOLDER}/{ADAPTER}", None, on_bytes)
    delta = Delta(base=f"{described.name}-{described.version}", base_sums=sums, adapter=placed)
    image = described.image.model_copy(update={"parts": ()})
    model = described.model.model_copy(update={"parts": ()})
    order = replace(order, type=described.type)
    whole = describe(order, gate, model, image, delta=delta)
    texts = chain_texts(order.run, {**CHAIN, "gguf": f"{FOLDER}/{MANIFEST}"})
    texts[FROM_BASE] = format_sums(taken)
    finish(draft, whole, texts, order, key, signed_at or datetime.now(UTC), on_bytes)
    draft.rename(final)
    return final


def _read_base(
    folder: Path, key: "Ed25519PrivateKey", on_bytes: OnBytes
) -> tuple[Description, dict[str, str], str]:
    """What the base says of itself, what an update takes from it, and the SHA-256 of its sums."""
    statement, sums = read_signed_by(folder, key.public_key(), "--key")
    require_same_files(folder, sums)
    if damages := find_damage(folder, sums, on_bytes):
        raise damage_error(folder, damages)
    described = read_description(folder)
    if described.delta:
        raise BundleError(
            f"{folder} is itself an update of {described.delta.base}", "a whole bundle",
            f"--delta {described.delta.base}",
        )  # fmt: skip
    large = (described.model, described.image)
    taken = {name: sums[name] for name in _TAKEN if name in sums}
    return described, taken | {file.file: file.sha256 for file in large}, statement.sums


def _unmeasured(type_: str) -> GateResult:
    why = "no arm of the evaluation answers with an installed file and an adapter beside it"
    return GateResult(
        reference="adapter", candidate=f"gguf:{type_}+adapter", outcome="INCONCLUSIVE",
        reasons=(why,),
    )  # fmt: skip


def _require_whole(run: Path) -> None:
    if problems := verify_chain(run):
        shown = "\n  ".join(problems[:20])
        raise BundleError(
            f"{run}: {len(problems)} difference(s) from its manifests:\n  {shown}",
            "the files that the stages wrote", f"kormed verify --run {run.name}",
        )  # fmt: skip


def _require_fit(gguf: Path, folder: Path, base: Description) -> None:
    """`BundleError` unless the adapter was trained on a GGUF of the base's export."""
    trained = read_manifest(gguf)
    if ADAPTER not in trained.files:
        raise BundleError(f"{gguf} has no {ADAPTER}", "the adapter as LoRA-GGUF", "kormed export")
    exported = Manifest.model_validate_json((folder / f"model/{MANIFEST}").read_bytes())
    revision = trained.base.revision if trained.base else None
    if revision not in {f"sha256:{entry.sha256}" for entry in exported.files.values()}:
        shown = f"{trained.base.id} {revision}" if trained.base else "an unnamed base"
        raise BundleError(
            f"the adapter of {gguf} was trained on {shown}",
            f"a GGUF of the export that made {base.name} {base.version}",
            f"train with --set base=runs/{base.run}/gguf/{base.run}-bf16.gguf",
        )
