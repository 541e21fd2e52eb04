"""Verification on site: a bundle's acceptance set answered here, compared, reported and signed."""

import resource
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.acceptance import Comparison, compare, site_thresholds
from eval.acceptance_folder import ANSWERS, PAGE, open_folder
from eval.acceptance_items import SealedSet, read_set, read_site_records
from eval.acceptance_options import OnSite
from eval.acceptance_report import describe, notices, write_report
from eval.predictions import Prediction, append_predictions, read_predictions, remaining
from kormed_edge import __version__
from kormed_edge.bundle import Bundle
from kormed_edge.bundle_build import CHAIN
from kormed_edge.bundle_installed import open_site
from kormed_edge.bundle_signing import fingerprint, read_public_key
from kormed_edge.config import EvalConfig
from kormed_edge.errors import EvalError
from kormed_edge.manifest import Manifest, hardware, library_versions, sha256_file
from kormed_edge.progress import Update, console, progress
from kormed_edge.records import Record
from kormed_edge.site_key import sign_files, site_key


def verify_on_site(asked: OnSite) -> Comparison:
    """Check the bundle, answer its acceptance set, compare, write and sign the report."""
    with progress("check: bytes") as update:
        bundle = open_site(asked.bundle, asked.key, on_bytes=_summing(update))
    model, adapter = _model(bundle), _adapter(bundle)
    builder = _builder(bundle)
    sets = _sets(bundle, asked)
    config = EvalConfig.model_validate(builder.settings["eval"])
    slots = asked.slots or config.slots
    key = site_key()
    with open_folder(asked.out, _identity(bundle, sets, slots)) as folder:
        answers: dict[Record, Prediction] = {}
        for known in sets:
            longest = _longest(known, config.max_new_tokens)
            answers |= _answer(known, model, folder, longest, slots, adapter)
        items = [item for known in sets for item in known.items]
        compared = compare(items, answers, site_thresholds())
        result = {
            **describe(bundle, builder, sets, compared),
            **_circumstances(folder, answers, slots),
            "bundle_key": fingerprint(read_public_key(asked.key)),
            "site_key": fingerprint(key.public_key()),
        }
        result["notices"] = [note.model_dump() for note in notices(result, _now())]
        names = write_report(folder, result, sets, compared.changed)
        sign_files(folder, names, key)
        _show(folder, result)
    return compared


def _model(bundle: Bundle) -> Path:
    model = bundle.description.model
    path = bundle.folder / model.file
    if not path.is_file():
        raise EvalError(
            f"{path} travels in {len(model.parts)} parts", "an installed bundle",
            "install it; then kormed verify --acceptance without --bundle",
        )  # fmt: skip
    return path


def _adapter(bundle: Bundle) -> Path | None:
    """What an update brings over the model."""
    delta = bundle.description.delta
    return bundle.folder / delta.adapter.file if delta else None


def _builder(bundle: Bundle) -> Manifest:
    """The manifest of the evaluation that made the sealed answers."""
    return Manifest.model_validate_json((bundle.folder / CHAIN["eval"]).read_bytes())


def _sets(bundle: Bundle, asked: OnSite) -> list[SealedSet]:
    """The bundle's sets, then the site's own; an item of two counts in the first."""
    records = read_site_records(asked.records) if asked.records else []
    found = [
        read_set(
            bundle.folder / sealed.file, name=Path(sealed.file).stem, source=sealed.source,
            open_texts=not sealed.restricted, records=records,
        )
        for sealed in bundle.description.acceptance
    ]  # fmt: skip
    if asked.records and not any(known.hashed > known.missing for known in found):
        raise EvalError(
            f"{asked.records}: none of its {len(records)} records is an item of the bundle",
            "the records that the sender evaluated, as `kormed data` writes them",
            "take the test.jsonl of your own `kormed data`",
        )
    found += [
        read_set(path, name=f"own-{n}", source="site", open_texts=False, records=records)
        for n, path in enumerate(asked.references, 1)
    ]
    sets: list[SealedSet] = []
    for known in found:
        sets.append(known.without(i.record for earlier in sets for i in earlier.items))
    return sets


def _identity(bundle: Bundle, sets: Sequence[SealedSet], slots: int) -> dict[str, Any]:
    """What must be the same for answers of a stopped verification to be worth keeping."""
    facts, versions = hardware(), library_versions()
    return {
        "bundle": bundle.statement.sums,
        "sets": {known.name: [known.sha256, len(known.items)] for known in sets},
        "slots": slots,
        "machine": [facts[name] for name in ("cpu", "cores", "gpu")],
        "versions": [__version__, versions.get("llama-cpp-python", "")],
    }


def _longest(known: SealedSet, default: int) -> int:
    """Longest answer in tokens: what cut the sealed ones, or else the evaluation's setting."""
    sealed = (item.sealed for item in known.items if item.sealed)
    return max((s["n_tokens"] for s in sealed if s["finish_reason"] == "length"), default=default)


def _answer(
    known: SealedSet, model: Path, folder: Path, longest: int, slots: int, adapter: Path | None
) -> dict[Record, Prediction]:
    """This machine's answers to a set, those of an earlier attempt among them."""
    from eval.arms import answer_with_gguf
    from eval.protocol import kit

    path = folder / ANSWERS / f"{known.name}.jsonl"
    records = [item.record for item in known.items]
    left = remaining(path, records)
    before = len(records) - len(left)
    if left:
        with progress(f"verify: {known.name}", len(records)) as update:
            answers = answer_with_gguf(model, left, kit(longest), slots, adapter)
            for count in append_predictions(path, answers):
                update(before + count)
    found = {row["qa_id"]: row for row in read_predictions(path)}
    return {record: found[record.qa_id] for record in records}


def _circumstances(
    folder: Path, answers: Mapping[Record, Prediction], slots: int
) -> dict[str, Any]:
    files = sorted((folder / ANSWERS).glob("*.jsonl"))
    return {
        "kit_version": __version__,
        "finished_utc": _now(),
        "seconds": round(sum(answer["seconds"] for answer in answers.values()), 1),
        "slots": slots,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answers": {file.name: sha256_file(file) for file in files},
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _summing(update: Update) -> Callable[[int], None]:
    """Turns sizes of blocks into how far the work is."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        update(done)

    return add


def _show(folder: Path, result: Mapping[str, Any]) -> None:
    colour = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}[result["outcome"]]
    items = result["items"]
    console.print(
        f"{items['compared']} of {items['total']} items compared: {items['identical']} answers "
        f"identical, {items['changed']} different\non site: [bold {colour}]{result['outcome']}[/]",
        highlight=False,
    )
    if result["only_small"]:
        console.print("  undecided only because the set is small: nothing seen is over a limit")
    for note in (*result["reasons"], *result["notices"]):
        console.print(f"  {note['en']}", highlight=False, markup=False)
    console.print(
        f"report: {folder / PAGE}, signed by {result['site_key']}", highlight=False, soft_wrap=True
    )
