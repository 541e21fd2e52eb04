"""An update: a new adapter for the model of a bundle that sites have installed.

It holds the adapter as LoRA-GGUF, its chain of manifests and FROM_BASE, the names and hashes of
what the installer takes from the installed version. Some megabytes instead of gigabytes.

The adapter must have been trained on that bundle's own model, and the run's manifests show it: on
the GGUF of the bundle itself, or on another one of the same export, such as the bf16 one. How well
the two answer together the arm `lora:TYPE` of the run's evaluation says: its gate makes an update
verified, and its answers are the acceptance set.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kormed_edge.bundle import (
    FROM_BASE,
    AcceptanceSet,
    Delta,
    Description,
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
    calibration_text,
    chain_texts,
    describe,
    finish,
    open_draft,
    place,
)
from kormed_edge.bundle_evidence import UNDER, acceptance_sets, decide_gate, require_pass
from kormed_edge.calibration import BUNDLED
from kormed_edge.errors import BundleError
from kormed_edge.manifest import MANIFEST, Manifest, read_manifest
from kormed_edge.runs import ADAPTER_GGUF, require_stage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
    arm = f"lora:{described.type}"
    gate = decide_gate(order.run, arm)
    if not order.unverified:
        require_pass(gate, order.run.name)
    gguf = require_stage(order.run, "gguf")
    _require_fit(gguf, base, described)
    sets = _sets(order, arm, described.model.sha256)
    adapter = gguf / ADAPTER_GGUF
    draft, final = open_draft(order, gate, out, adapter.stat().st_size)
    placed = place(adapter, draft, f"{FOLDER}/{ADAPTER_GGUF}", None, on_bytes)
    delta = Delta(base=f"{described.name}-{described.version}", base_sums=sums, adapter=placed)
    image = described.image.model_copy(update={"parts": ()})
    model = described.model.model_copy(update={"parts": ()})
    order = replace(order, type=described.type)
    whole = describe(order, gate, model, image, acceptance=tuple(sets), delta=delta)
    texts = {kept.file: content for kept, content in sets.items()}
    texts |= chain_texts(order.run, {**CHAIN, "gguf": f"{FOLDER}/{MANIFEST}"})
    texts |= calibration_text(order.run, arm, FOLDER, model.sha256, placed.sha256)
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


def _sets(order: Order, arm: str, model: str) -> dict[AcceptanceSet, bytes]:
    """The answers of the arm that an update is, as acceptance sets; of an unverified one that was
    not evaluated none.

    `BundleError` if what answered under the adapter was another model than the base's.
    """
    answered = read_manifest(require_stage(order.run, "eval")).settings.get(UNDER, {}).get(arm)
    if answered is None and order.unverified:
        return {}
    if answered != model:
        raise BundleError(
            f"{arm} of {order.run} was answered with another model, {answered}", model,
            "evaluate over the GGUF that the base carries: kormed eval --force",
        )  # fmt: skip
    return acceptance_sets(
        order.run, arm, benchmark=order.benchmark, include_restricted=order.include_restricted
    )


def _require_fit(gguf: Path, folder: Path, base: Description) -> None:
    """`BundleError` unless the adapter was trained on a GGUF of the base's export."""
    trained = read_manifest(gguf)
    if ADAPTER_GGUF not in trained.files:
        raise BundleError(
            f"{gguf} has no {ADAPTER_GGUF}", "the adapter as LoRA-GGUF", "kormed export"
        )
    exported = Manifest.model_validate_json((folder / f"model/{MANIFEST}").read_bytes())
    revision = trained.base.revision if trained.base else None
    if revision not in {f"sha256:{entry.sha256}" for entry in exported.files.values()}:
        shown = f"{trained.base.id} {revision}" if trained.base else "an unnamed base"
        raise BundleError(
            f"the adapter of {gguf} was trained on {shown}",
            f"a GGUF of the export that made {base.name} {base.version}",
            f"train with --set base=runs/{base.run}/gguf/{base.run}-bf16.gguf",
        )
