"""The report of a run: one HTML file that a hospital can keep, print and read without a network.

Korean and English, figures inside the file. What the models wrote is text, never markup: jinja2
escapes all of it, and a Content-Security-Policy allows only the style and script of the kit.

AI Hub's records must not leave the building, nor may a model's answers that repeat them. A report
does. So questions and answers are shown for the kit's own samples alone; elsewhere only ids are.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eval.cases import Cases, largest_changes
from eval.predictions import Prediction, file_name, read_predictions
from eval.report_figures import draw_groups, draw_overall, draw_reliability
from eval.report_words import GROUPS, HINTS, LABELS, Words
from eval.scores import ItemScore, score_items
from eval.verdict import INCONCLUSIVE
from kormed_edge.errors import StageError
from kormed_edge.manifest import MANIFEST, Manifest, manifest_hash, read_manifest

STAGES = ("data", "adapter", "gguf", "eval")
TEMPLATES = Path(__file__).parent / "templates"
OPEN_SOURCE = "samples"  # the one value of data.source whose texts a report may show
_TOY_BASE = "SmolLM2-135M"


CASE_ARMS = ("base", "adapter")  # the paper's comparison: before and after fine-tuning

_GROUP_TABLES = (
    ("by_q_type", "rouge_ko_L"),
    ("by_q_type", "rouge_paper_L"),
    ("by_domain", "accuracy"),
    ("by_domain", "rouge_ko_L"),
)


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


class Flip(NamedTuple):
    """One item on which two arms differ, with both predictions."""

    qa_id: str
    reference: Prediction
    candidate: Prediction


def write_report(run: Path, folder: Path) -> Path:
    """Write index.html and its figures into `folder` from the finished stages of `run`.

    Equal inputs give equal bytes. Raises `StageError` for what a stage should have left.
    """
    evidence = _read_evidence(run)
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        "distribution": _image(run / "data" / "distribution.png"),
        "loss": _image(run / "adapter" / "loss.png"),
        **{path.stem: _image(path) for path in _draw_figures(evidence, folder)},
    }
    page = folder / "index.html"
    page.write_text(_render(_context(run, evidence, images)), encoding="utf-8")
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
    scores = evidence.scores
    names = {name: f"{words.ko}\n{words.en}" for name, words in GROUPS.items()}
    accuracy, rouge = "객관식 정확도 · accuracy", "ROUGE-L (한국어 · Korean)"
    has_choice = any("accuracy" in score["overall"] for score in scores.values())
    paths = [folder / "rouge.png", folder / "rouge_by_q_type.png", folder / "rouge_by_domain.png"]
    draw_overall(scores, "rouge_ko_L", rouge, paths[0])
    for group, path in zip(("by_q_type", "by_domain"), paths[1:], strict=True):
        draw_groups(scores, group, "rouge_ko_L", names, rouge, path)
    if has_choice:
        paths += [folder / "accuracy.png", folder / "accuracy_by_domain.png"]
        draw_overall(scores, "accuracy", accuracy, paths[3], _chance(evidence.stats))
        draw_groups(scores, "by_domain", "accuracy", names, accuracy, paths[4])
    believed = {arm: score for arm, score in scores.items() if score.get("reliability")}
    if believed:
        paths.append(folder / "reliability.png")
        draw_reliability(believed, "확신과 실제 정답률 · reliability", paths[-1])
    return paths


def _chance(stats: dict[str, Any]) -> float | None:
    """Share that blind guessing gets right on the test split's multiple choice."""
    counts = stats["options"]["test"]["per_question"]
    total = sum(counts.values())
    return sum(n / int(options) for options, n in counts.items()) / total if total else None


def _context(run: Path, evidence: Evidence, images: dict[str, Any]) -> dict[str, Any]:
    verdict, scores = evidence.verdict, evidence.scores
    data = evidence.manifests["data"].settings["data"]
    pairs = _pairs(run / "eval", verdict) if verdict["checks"] else []
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
        "limit": evidence.manifests["eval"].settings["eval"]["limit"],
        "reasons": [_labelled(note) for note in verdict["reasons"]],
        "checks": [_check_row(check) for check in verdict["checks"]],
        "counted": counted,
        "n_choice": counted["overall"].get("accuracy", {"n": 0})["n"],
        "score_rows": _score_rows(scores),
        "group_tables": [_group_table(scores, *names) for names in _GROUP_TABLES],
        "lost": _flips(pairs, before=True),
        "gained": _flips(pairs, before=False),
        "cases": _cases(run / "eval", scores),
        "case_arms": CASE_ARMS,
        "chance": _chance(evidence.stats),
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


ScoredPair = tuple[ItemScore, ItemScore, Flip]


def _pairs(folder: Path, verdict: Mapping[str, Any]) -> list[ScoredPair]:
    """Both gate arms' items by qa_id; the gate has found them to be about the same items."""
    rows, items = [], []
    for arm in (verdict["reference"], verdict["candidate"]):
        predictions = read_predictions(folder / file_name(arm))
        rows.append({row["qa_id"]: row for row in predictions})
        items.append({item.qa_id: item for item in score_items(predictions)})
    (a, b), (x, y) = rows, items
    return [(x[i], y[i], Flip(i, a[i], b[i])) for i in sorted(a)]


def _flips(pairs: list[ScoredPair], *, before: bool) -> list[Flip]:
    """Items that were right in the reference arm only (`before`), or in the candidate arm only."""
    return [
        flip
        for a, b, flip in pairs
        if a.values.get("accuracy") is before and b.values["accuracy"] is not before
    ]


def _cases(folder: Path, scores: Mapping[str, Any]) -> Cases | None:
    """What training changed most, where both arms were answered in full."""
    if not all(arm in scores for arm in CASE_ARMS):
        return None
    before, after = (read_predictions(folder / file_name(arm)) for arm in CASE_ARMS)
    return largest_changes(before, after)


def _check_row(check: Mapping[str, Any]) -> dict[str, Any]:
    needed = check["needed"] if check["outcome"] == INCONCLUSIVE else None
    return {**check, "needed": needed, "note": _labelled(check["note"])}


def _score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for metric in HINTS:
        row = _row([_number(score, metric) for score in scores.values()])
        rows.append({"label": LABELS[metric], "hint": HINTS[metric], "metric": metric, **row})
    return [row for row in rows if row["n"]]


def _number(score: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    if metric == "type_mean":
        metric, score = "rouge_paper_L", {"overall": score["type_mean"]}
    number: dict[str, Any] | None = score["overall"].get(metric)
    return number


def _row(cells: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Cells with their number of items, given once where all arms have the same."""
    counts = [cell["n"] for cell in cells if cell]
    return {"cells": cells, "n": " / ".join(f"{n:,}" for n in dict.fromkeys(counts))}


def _group_table(scores: Mapping[str, Any], group: str, metric: str) -> dict[str, Any]:
    groups = [score[group] for score in scores.values()]
    rows = [
        {"label": label, **_row([arm.get(name, {}).get(metric) for arm in groups])}
        for name, label in GROUPS.items()
    ]
    return {"label": LABELS[metric], "group": group, "rows": [row for row in rows if row["n"]]}


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


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share: f"{100 * share:.1f}",
        points=lambda share: f"{100 * share:+.1f}".replace("-", "−"),
        number=lambda value: f"{value:,}",
        gigabytes=lambda size: f"{size / 1e9:.2f} GB",
    )
    own = {kind: _read(TEMPLATES / f"report.{kind}") for kind in ("css", "js")}
    return environment.get_template("report.html.j2").render(
        **context,
        css=Markup(own["css"]),
        js=Markup(own["js"]),
        css_hash=_csp_hash(own["css"]),
        js_hash=_csp_hash(own["js"]),
    )


def _csp_hash(text: str) -> str:
    """A Content-Security-Policy source for exactly this text between its tags."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
