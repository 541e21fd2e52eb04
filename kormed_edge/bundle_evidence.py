"""What a run proves about one GGUF: the gate's verdict, and the items that travel as proof.

AI Hub's records must not be redistributed, nor answers that repeat them. Of items that are not
known to be open, only hashes travel: a site that has the data itself can still compare.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kormed_edge.bundle import AcceptanceSet, GateResult
from kormed_edge.errors import BundleError
from kormed_edge.manifest import read_manifest
from kormed_edge.records import Record
from kormed_edge.runs import require_stage, verify_chain

PASS = "PASS"
UNDER = "under"
"""In the manifest of an evaluation: SHA-256 of the model under the adapter, by `lora:` arm."""
LICENCES = {"samples": "Apache-2.0", "kormedmcqa": "CC-BY-NC-2.0"}
RESTRICTED_LICENCE = "not to be redistributed"
_SUBJECTS = {"doctor", "nurse", "pharm", "dentist"}
_KEPT = (
    "qa_id", "domain", "q_type", "question", "answer", "output", "finish_reason", "n_tokens",
    "option_probabilities",
)  # fmt: skip
Item = dict[str, Any]


def decide_gate(run: Path, arm: str) -> GateResult:
    """The gate, decided anew from a run whose files are all as its manifests say.

    INCONCLUSIVE if it judged another arm than this one. Raises `BundleError` for a damaged run.
    """
    from eval.commands import decide_from_files
    from kormed_edge.config import EvalConfig

    if problems := verify_chain(run):
        shown = "\n  ".join(problems[:20])
        raise BundleError(
            f"{run}: {len(problems)} difference(s) from its manifests:\n  {shown}",
            "the files that the stages wrote", f"kormed verify --run {run.name}",
        )  # fmt: skip
    folder = require_stage(run, "eval")
    config = EvalConfig.model_validate(read_manifest(folder).settings["eval"])
    gate = config.gate
    if gate.candidate != arm:
        other = f"it judged {gate.candidate}, not {arm}: set eval.gate.candidate"
        return GateResult(
            reference=gate.reference, candidate=gate.candidate, outcome="INCONCLUSIVE",
            reasons=(other,),
        )  # fmt: skip
    verdict = decide_from_files(run, folder, config)
    reasons = tuple(reason["en"] for reason in verdict["reasons"])
    return GateResult(
        reference=verdict["reference"], candidate=verdict["candidate"],
        outcome=verdict["outcome"], reasons=reasons,
    )  # fmt: skip


def require_pass(gate: GateResult, run: str) -> None:
    if gate.outcome != PASS:
        reasons = "".join(f"\n  {reason}" for reason in gate.reasons)
        raise BundleError(
            f"the gate of {run} says {gate.outcome} for {gate.candidate}{reasons}", PASS,
            "see docs/verify.md; --unverified makes a bundle that says so everywhere",
        )  # fmt: skip


def acceptance_sets(
    run: Path, arm: str, *, benchmark: bool, include_restricted: bool
) -> dict[AcceptanceSet, bytes]:
    """The acceptance sets of an arm with the bytes of their files: the test split's, and with
    `benchmark` KorMedMCQA's as `kormed benchmark` asked it."""
    from eval.predictions import file_name, read_predictions

    source = str(read_manifest(require_stage(run, "data")).settings["data"]["source"])
    files = {"test": require_stage(run, "eval") / file_name(arm)}
    if benchmark:
        files["kormedmcqa"] = require_stage(run, "benchmark") / f"kormed-{file_name(arm)}"
    sets = {}
    for name, path in files.items():
        items = read_predictions(path)
        if not items:
            raise BundleError(f"{path} has no predictions", f"those of {arm}", "kormed eval")
        described, content = _seal(name, items, source, include_restricted)
        sets[described] = content
    return sets


def _seal(
    name: str, items: Sequence[Item], source: str, include_restricted: bool
) -> tuple[AcceptanceSet, bytes]:
    origin = "kormedmcqa" if {item["domain"] for item in items} <= _SUBJECTS else source
    restricted = origin not in LICENCES
    texts = include_restricted or not restricted
    lines = [_open_item(item) if texts else _hashed_item(item) for item in items]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    described = AcceptanceSet(
        file=f"acceptance/{name}.jsonl",
        source=origin if not restricted else "restricted",  # a path tells about the machine
        n=len(items),
        restricted=restricted,
        texts=texts,
        licence=LICENCES.get(origin, RESTRICTED_LICENCE),
    )
    return described, content.encode()


def _open_item(item: Item) -> Item:
    return {key: item[key] for key in _KEPT if key in item}


def _hashed_item(item: Item) -> Item:
    """What tells whether a site's own copy of an item, and its answer, are the same as here."""
    return {
        "qa_id_sha256": _hash(item["qa_id"]),
        "record_sha256": hash_record(Record(**{key: item[key] for key in Record.__slots__})),
        "output_sha256": _hash(item["output"]),
    }


def hash_record(record: Record) -> str:
    """SHA-256 over a record's fields as compact JSON with sorted keys, UTF-8."""
    fields = record.to_dict()
    return _hash(json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")))


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
