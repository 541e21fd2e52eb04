"""The report of a verification on site: report.json, and the same as a page to file and print.

Texts are shown for open sets alone; of all others ids are. report.json holds no text of an item.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.acceptance import WORDING, Changed, Comparison
from eval.acceptance_folder import DATA, PAGE
from eval.acceptance_items import SealedSet
from eval.report_page import TEMPLATES
from eval.report_words import GROUPS, LABELS, Words
from eval.verdict import INCONCLUSIVE, Note
from kormed_edge.bundle import Bundle
from kormed_edge.cpu_features import cpu_flags, cpu_has, llama_system_info
from kormed_edge.manifest import Manifest, hardware, library_versions, write_json

SHOWN = 40  # changed answers of each kind with their texts; report.json lists all
KINDS = {
    "lost": Words("맞았다가 여기서 틀린 답", "right there, wrong here"),
    "gained": Words("틀렸다가 여기서 맞은 답", "wrong there, right here"),
    "other": Words("둘 다 틀렸으나 다른 선택", "wrong in both, another option"),
    "unknown": Words("해시만 있어 내용을 모르는 답", "different, and only its hash is here"),
    "text": Words("선택은 같고 글이 다른 답", "same option or none, other words"),
}
_LABELS = {**LABELS, WORDING: Words("문구 (글자 F1)", "wording (character F1)")}
_TOY_BASE = "SmolLM2-135M"


def describe(
    bundle: Bundle, builder: Manifest, sets: Sequence[SealedSet], compared: Comparison
) -> dict[str, Any]:
    """What report.json says of the bundle, both machines, the items and the verdict."""
    verdict = compared.verdict
    set_of = {item.record: known.name for known in sets for item in known.items}
    return {
        "kind": "kormed-acceptance",
        "schema_version": 1,
        **verdict.model_dump(mode="json", exclude={"changes"}),
        "only_small": compared.only_small,
        "items": {
            "total": sum(known.total for known in sets),
            "compared": sum(len(known.items) for known in sets),
            "missing": sum(known.missing for known in sets),
            "identical": compared.identical,
            "changed": len(compared.changed),
        },
        "sets": [_set(known) for known in sets],
        "changed": [_changed(change, set_of) for change in compared.changed],
        "bundle": _bundle(bundle),
        "machine": {**hardware(), "cpu_has": cpu_has(cpu_flags()), "llama": llama_system_info()},
        "builder": builder.hardware,
        "versions": library_versions(),
        "builder_versions": builder.libraries,
    }


def _set(known: SealedSet) -> dict[str, Any]:
    return {
        "name": known.name, "source": known.source, "sha256": known.sha256, "open": known.open,
        "compared": len(known.items), "hashed": known.hashed, "missing": known.missing,
    }  # fmt: skip


def _changed(change: Changed, set_of: Mapping[Any, str]) -> dict[str, Any]:
    record = change.item.record
    return {
        "set": set_of[record], "qa_id": record.qa_id, "domain": record.domain,
        "q_type": record.q_type, "kind": change.kind, "sealed_option": change.sealed_option,
        "option": change.option, "sealed_sha256": change.item.output_sha256,
    }  # fmt: skip


def _bundle(bundle: Bundle) -> dict[str, Any]:
    described, statement = bundle.description, bundle.statement
    delta = described.delta
    return {
        "name": statement.name, "version": statement.version, "verified": statement.verified,
        "signed": statement.signed, "sums": statement.sums,
        "base": described.base.id if described.base else None,
        "gate": described.gate.model_dump(mode="json"),
        "model": described.model.model_dump(mode="json", exclude={"parts"}),
        "adapter": delta.adapter.model_dump(mode="json", exclude={"parts"}) if delta else None,
        "image": described.image.model_dump(mode="json", exclude={"parts"}),
        "manifests": described.manifests,
    }  # fmt: skip


def notices(result: Mapping[str, Any], now: str) -> list[Note]:
    """What a reader must know beside the verdict. `now` is UTC as in a bundle's statement."""
    bundle, items = result["bundle"], result["items"]
    own = sum(known["source"] == "site" for known in result["sets"])
    found = (
        (not bundle["verified"], _UNVERIFIED),
        (now < bundle["signed"], _CLOCK),
        (items["missing"] > 0, _missing(items)),
        (own > 0, _OWN),
        (_TOY_BASE in (bundle["base"] or ""), _TOY),
    )
    return [note for true, note in found if true]


_UNVERIFIED = Note(
    en="UNVERIFIED bundle: its own gate has not passed. That this machine answers like the "
    "builder's says nothing about whether the model kept its accuracy.",
    ko="UNVERIFIED 번들: 번들 자체의 판정이 합격이 아닙니다. 이 장비가 제작 장비와 같은 답을 "
    "하더라도 모델의 정확도가 유지되었다는 뜻은 아닙니다.",
)
_CLOCK = Note(
    en="This machine's clock is before the time at which the bundle was signed: set it.",
    ko="이 장비의 시계가 번들 서명 시각보다 이릅니다. 시계를 맞추십시오.",
)
_OWN = Note(
    en="The site's own acceptance set is not covered by the sender's signature.",
    ko="기관 자체 검증 문항은 보낸 쪽의 서명에 포함되지 않습니다.",
)
_TOY = Note(
    en="SmolLM2-135M shows that the machinery works, not medicine.",
    ko="SmolLM2-135M은 장치가 작동함을 보일 뿐, 의학 지식을 보여 주지 않습니다.",
)


def _missing(items: Mapping[str, int]) -> Note:
    n, total = items["missing"], items["total"]
    return Note(
        en=f"{n:,} of {total:,} items travel as hashes only and were not compared; a site with its "
        "own copy of the records gives it with --records FILE.",
        ko=f"{total:,}문항 중 {n:,}문항은 해시만 있어 비교하지 않았습니다. 원본 문항을 가진 기관은 "
        "--records FILE로 지정할 수 있습니다.",
    )


def write_report(
    folder: Path, result: Mapping[str, Any], sets: Sequence[SealedSet], changed: Sequence[Changed]
) -> tuple[str, str]:
    """Write report.json and report.html; returns their names, which are to be signed."""
    write_json(folder / DATA, result)
    shown = {item.record for known in sets if known.open for item in known.items}
    groups = {kind: [c for c in changed if c.kind == kind] for kind in KINDS}
    page = _render(
        {
            **result,
            "groups": {kind: rows for kind, rows in groups.items() if rows},
            "kinds": KINDS,
            "shown": SHOWN,
            "is_shown": lambda change: change.item.record in shown,
            "labels": _LABELS,
            "words": GROUPS,
            "reasons": [_labelled(note) for note in result["reasons"]],
            "checks": [_row(check) for check in result["checks"]],
        }
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return PAGE, DATA


def _row(check: Mapping[str, Any]) -> dict[str, Any]:
    needed = check["needed"] if check["outcome"] == INCONCLUSIVE else None
    return {**check, "needed": needed, "note": _labelled(check["note"])}


def _labelled(note: Mapping[str, str]) -> Words:
    """A gate's note with the metric's name as a reader knows it."""
    label = _LABELS.get(note["en"].partition(": ")[0])
    if label is None:
        return Words(note["ko"], note["en"])
    name = note["en"].partition(": ")[0]
    return Words(*(note[k].replace(name, getattr(label, k), 1) for k in Words._fields))


def _render(context: Mapping[str, Any]) -> str:
    """All text is escaped; only the kit's own style and script run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        points=lambda share: f"{100 * share:+.2f}".replace("-", "−"),
        number=lambda value: f"{value:,}",
        gigabytes=lambda size: f"{size / 1e9:.2f} GB",
    )
    own = {kind: (TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js")}
    return environment.get_template("acceptance.html.j2").render(
        **context, css=Markup(own["css"]), js=Markup(own["js"]), csp=_policy(own)
    )


def _policy(own: Mapping[str, str]) -> str:
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in own.items()
    }
    return (
        f"default-src 'none'; style-src 'sha256-{hashes['css']}'; "
        f"script-src 'sha256-{hashes['js']}'; base-uri 'none'; form-action 'none'"
    )
