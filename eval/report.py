"""The report of a run: one HTML file that a hospital can keep, print and read without a network.

Korean and English, figures inside the file. What the models wrote is text, never markup: jinja2
escapes all of it, and a Content-Security-Policy allows only the style and script of the kit.

AI Hub's records must not leave the building, nor may a model's answers that repeat them. A report
does. So questions and answers are shown for the kit's own samples alone; elsewhere only ids are.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eval.cases import Cases, largest_changes
from eval.flips import Flips, find_flips
from eval.predictions import file_name, read_predictions
from eval.report_confidence import KINDS, certainty_tables, reliability_lines
from eval.report_figures import draw_groups, draw_loss, draw_overall, draw_reliability
from eval.report_page import render_page
from eval.report_tables import (
    domain_rows,
    problem_counts,
    record_counts,
    score_rows,
    type_groups,
)
from eval.report_words import GROUPS, HINTS, LABELS, SKIPPED, Words
from eval.verdict import INCONCLUSIVE
from kormed_edge.errors import StageError
from kormed_edge.manifest import MANIFEST, Manifest, manifest_hash, read_manifest
from kormed_edge.runs import ADAPTER_GGUF

STAGES = ("data", "adapter", "gguf", "eval")
OPEN_SOURCE = "samples"  # the one value of data.source whose texts a report may show
CASE_ARMS = ("base", "adapter")  # the paper's comparison: before and after fine-tuning
_TOY_BASE = "SmolLM2-135M"
_DOMAIN_TABLES = ("accuracy", "rouge_ko_L")


class Evidence(NamedTuple):
    """What the stages of a run left for the report."""

    manifests: dict[str, Manifest]
    hashes: dict[str, str]
    stats: dict[str, Any]
    parity: dict[str, Any]
    memory: dict[str, Any]
    log: list[dict[str, Any]]
    scores: dict[str, Any]
    verdict: dict[str, Any]


def write_report(run: Path, folder: Path) -> Path:
    """Write index.html and its figures into `folder` from the finished stages of `run`.

    Equal inputs give equal bytes. Raises `StageError` for what a stage should have left.
    """
    evidence = _read_evidence(run)
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        "distribution": _image(run / "data" / "distribution.png"),
        **{path.stem: _image(path) for path in _draw_figures(evidence, folder)},
    }
    page = folder / "index.html"
    page.write_text(render_page(_context(run, evidence, images)), encoding="utf-8")
    return page


def _read_evidence(run: Path) -> Evidence:
    log = _read(run / "adapter" / "log.jsonl").split("\n")
    return Evidence(
        manifests={stage: read_manifest(run / stage) for stage in STAGES},
        hashes={stage: manifest_hash(run / stage) for stage in STAGES},
        stats=json.loads(_read(run / "data" / "stats.json")),
        parity=json.loads(_read(run / "gguf" / "parity.json")),
        memory=json.loads(_read(run / "adapter" / "memory.json")),
        log=[json.loads(line) for line in log if line],
        scores=json.loads(_read(run / "eval" / "scores.json")),
        verdict=json.loads(_read(run / "eval" / "verdict.json")),
    )


def _read(path: Path) -> str:
    return _bytes(path).decode("utf-8")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StageError(
            f"{path} is missing",
            f"a file of the finished stage {path.parent.name}",
            "restore the file, or run the stage again with --force",
        ) from None


def _image(path: Path) -> dict[str, Any]:
    """A PNG as a data URI, with its size from the header so that the page does not jump."""
    content = _bytes(path)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return {"uri": uri, "width": width, "height": height}


def _draw_figures(evidence: Evidence, folder: Path) -> list[Path]:
    """Fig. 2, Fig. 3 (a) to (d), and two more that the paper has not; those that have data."""
    scores = evidence.scores
    rouge, accuracy = "ROUGE-L (한국어 · Korean)", "객관식 정확도 · accuracy"
    draw_loss(evidence.log, "손실 · loss", folder / "loss.png")
    draw_overall(scores, "rouge_ko_L", f"(a) {rouge}", folder / "rouge.png")
    for letter, group in (("b", "by_q_type"), ("c", "by_domain")):
        title, path = f"({letter}) ROUGE-L, {_BY[group]}", folder / f"rouge_{group}.png"
        draw_groups(scores, group, "rouge_ko_L", _GROUP_NAMES, title, path)
    names = ["loss", "rouge", "rouge_by_q_type", "rouge_by_domain"]
    if any("accuracy" in score["overall"] for score in scores.values()):
        path, chance = folder / "accuracy.png", _chance(evidence.stats)
        draw_overall(scores, "accuracy", f"(d) {accuracy}", path, chance)
        path = folder / "accuracy_by_domain.png"
        title = "진료과별 정확도 · accuracy by department"
        draw_groups(scores, "by_domain", "accuracy", _GROUP_NAMES, title, path)
        names += ["accuracy", "accuracy_by_domain"]
    if arms := _believed(evidence):
        title = "확신과 실제 정답률 · reliability"
        draw_reliability(scores, arms, title, folder / "reliability.png")
        names.append("reliability")
    for kind, lines in reliability_lines(scores, evidence.verdict["candidate"]).items():
        title, name = f"{KINDS[kind].ko} · {KINDS[kind].en}", f"calibration_{kind}"
        draw_reliability(lines, list(lines), title, folder / f"{name}.png")
        names.append(name)
    return [folder / f"{name}.png" for name in names]


_GROUP_NAMES = {name: f"{words.ko}\n{words.en}" for name, words in GROUPS.items()}
_BY = {"by_q_type": "문항 유형별 · by question type", "by_domain": "진료과별 · by department"}


def _believed(evidence: Evidence) -> list[str]:
    """The gate's two arms, where they have option probabilities: more lines hide one another."""
    pair = (evidence.verdict["reference"], evidence.verdict["candidate"])
    return [arm for arm in pair if evidence.scores.get(arm, {}).get("reliability")]


def _chance(stats: dict[str, Any]) -> float | None:
    """Share that blind guessing gets right on the test split's multiple choice."""
    counts = stats["options"]["test"]["per_question"]
    total = sum(counts.values())
    return sum(n / int(options) for options, n in counts.items()) / total if total else None


def _context(run: Path, evidence: Evidence, images: dict[str, Any]) -> dict[str, Any]:
    verdict, scores = evidence.verdict, evidence.scores
    data = evidence.manifests["data"].settings["data"]
    settings = evidence.manifests["eval"].settings["eval"]
    splits, counts = record_counts(evidence.stats)
    # A gate that was asked about an arm that was not evaluated fails, and is reported all the same.
    counted = scores.get(verdict["reference"]) or next(iter(scores.values()))
    base = evidence.manifests["eval"].base
    return {
        **evidence._asdict(),
        "run": run.name,
        "images": images,
        "base": base,
        "is_toy": base is not None and _TOY_BASE in base.id,
        "is_sample": data["source"] == OPEN_SOURCE,
        "source": Path(data["source"]).name,  # the rest of a path tells about the machine
        "limit": settings["limit"],
        "is_partial": settings["limit"] is not None or settings.get("sample", "all") != "all",
        "reasons": [_labelled(note) for note in verdict["reasons"]],
        "checks": [_check_row(check) for check in verdict["checks"]],
        "counted": counted,
        "n_choice": counted["overall"].get("accuracy", {"n": 0})["n"],
        "score_rows": score_rows(scores),
        "type_groups": {family: type_groups(scores, family) for family in ("ko", "paper")},
        "domain_tables": {metric: domain_rows(scores, metric) for metric in _DOMAIN_TABLES},
        "certainties": certainty_tables(scores),
        "confidence_kinds": KINDS,
        "flips": _flips(run / "eval", verdict),
        "cases": _cases(run / "eval", scores),
        "case_arms": CASE_ARMS,
        "chance": _chance(evidence.stats),
        "splits": splits,
        "record_counts": counts,
        "dropped": problem_counts(evidence.stats["dropped"]),
        "repaired": problem_counts(evidence.stats["repaired"]),
        "skipped_words": SKIPPED,
        "candidate_file": _candidate_file(evidence),
        "hardware": _shared(evidence.manifests, lambda m: _hardware(m.hardware)),
        "libraries": _shared(evidence.manifests, lambda m: _versions(m.libraries)),
        "labels": LABELS,
        "hints": HINTS,
        "groups": GROUPS,
        "manifest_name": MANIFEST,
    }


def _labelled(note: Mapping[str, str]) -> Words:
    """A gate's note with the metric's name as a reader knows it."""
    name, colon, _ = note["en"].partition(": ")
    label = LABELS.get(name) if colon else None
    if label is None:
        return Words(note["ko"], note["en"])
    return Words(*(note[k].replace(name, getattr(label, k), 1) for k in Words._fields))


def _flips(folder: Path, verdict: Mapping[str, Any]) -> Flips | None:
    """Where the gate found both arms to be about the same items and made its checks."""
    if not verdict["checks"]:
        return None
    arms = (verdict["reference"], verdict["candidate"])
    return find_flips(*(read_predictions(folder / file_name(arm)) for arm in arms))


def _candidate_file(evidence: Evidence) -> dict[str, Any] | None:
    """Name, size and SHA-256 of the GGUF that the verdict is about."""
    manifest, arm = evidence.manifests["gguf"], evidence.verdict["candidate"]
    kind, _, type_ = arm.partition(":")
    models = manifest.settings.get("models", {})
    name = ADAPTER_GGUF if kind == "lora" else models.get(type_)
    return {"name": name, **manifest.files[name].model_dump()} if name else None


def _cases(folder: Path, scores: Mapping[str, Any]) -> Cases | None:
    """What training changed most, where both arms were answered in full."""
    if not all(arm in scores for arm in CASE_ARMS):
        return None
    before, after = (read_predictions(folder / file_name(arm)) for arm in CASE_ARMS)
    return largest_changes(before, after)


def _check_row(check: Mapping[str, Any]) -> dict[str, Any]:
    needed = check["needed"] if check["outcome"] == INCONCLUSIVE else None
    return {**check, "needed": needed, "note": _labelled(check["note"])}


def _shared(manifests: Mapping[str, Manifest], describe: Any) -> dict[str, list[str]]:
    """Stages by a description of theirs, so that what they share is said once."""
    stages: dict[str, list[str]] = {}
    for stage, manifest in manifests.items():
        stages.setdefault(describe(manifest), []).append(stage)
    return stages


def _hardware(facts: Mapping[str, Any]) -> str:
    gpus = ", ".join(facts["gpu"]) or "GPU –"
    return (
        f"{facts['cpu']} ({facts['machine']}), {facts['cores']} cores, {facts['memory_gb']} GB, "
        f"{gpus}; {facts['system']}, Python {facts['python']}"
    )


def _versions(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
