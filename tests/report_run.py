"""A finished run's folders with what the report reads and nothing else; all texts are made up."""

import json

from matplotlib.figure import Figure

from eval.gate import decide
from eval.predictions import file_name
from eval.scores import score_arm
from kormed_edge.manifest import MANIFEST, BaseModelId, Manifest, write_json

ARMS = ("adapter", "gguf:Q4_K_M")
TRICK = (
    '4) 다<script>alert("x")</script><img src=http://x.invalid onerror=alert(1)>'
    '</dd></section><iframe srcdoc="<script>alert(2)</script>"></iframe>'
)
HARDWARE = {
    "machine": "x86_64", "system": "Linux", "python": "3.11", "cpu": "가상 CPU", "cores": 2,
    "memory_gb": 16.0, "gpu": [],
}  # fmt: skip


def choice(number, output):
    return {
        "qa_id": f"17{number:03}", "domain": "internal_medicine", "q_type": "multiple_choice",
        "question": f"지어낸 질문 {number}번의 답은?\n1) 가\n2) 나\n3) 라\n4) 다",
        "answer": "2) 나", "output": output, "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1,
    }  # fmt: skip


def essay(number, output):
    shape = {"q_type": "descriptive", "question": f"지어낸 서술 {number}", "answer": "쉬면 낫는다."}
    return {**choice(number, output), **shape}


def phrase(number, output):
    shape = {"q_type": "short_answer", "question": f"지어낸 단답 {number}", "answer": "휴식"}
    return {**choice(number, output), **shape}


REFERENCE = [*(choice(i, "2) 나") for i in range(6)), essay(6, "쉬면 낫는다.")]
CANDIDATE = [choice(0, TRICK), *REFERENCE[1:]]
MODEL = {"demo-Q4_K_M.gguf": {"sha256": "ab" * 32, "size": 5_000_000}}


def stage(run, name, settings, files=None):
    manifest = Manifest(
        stage=name, run=run.name, kit_version="0.1.0", git_commit=None, seconds=1.0, seed=42,
        created_utc="2026-01-02T03:04:05+00:00", settings=settings, inputs={}, files=files or {},
        libraries={"numpy": "2"}, hardware=HARDWARE,
        base=BaseModelId(id="HuggingFaceTB/SmolLM2-135M-Instruct", path="/secret/base"),
    )  # fmt: skip
    write_json(run / name / MANIFEST, manifest.model_dump())


def make_run(run, source="samples", reference=REFERENCE, candidate=CANDIDATE, base=()):
    """Write the folders of a run; `reference` and `candidate` are the gate's two arms."""
    for name in ("data", "adapter", "gguf", "eval"):
        (run / name).mkdir(parents=True)
    data = {"source": source, "scheme": "paper", "ratios": [0.8, 0.1, 0.1], "seed": 42}
    stage(run, "data", {"data": data})
    stage(run, "adapter", {"train": {"rank": 16}, "plan": dict.fromkeys(PLAN, 10)})
    export = {"export": {"types": ["Q4_K_M"]}, "models": {"Q4_K_M": "demo-Q4_K_M.gguf"}}
    stage(run, "gguf", export, MODEL)
    stage(run, "eval", {"eval": {"limit": None, "gate": {"margin": -0.02}}})
    write_json(run / "data" / "stats.json", STATS)
    write_json(run / "gguf" / "parity.json", PARITY)
    write_json(run / "adapter" / "memory.json", {"peak_rss_bytes": 1, "train_seconds": 2.0})
    (run / "adapter" / "log.jsonl").write_text('{"loss": 2.0, "step": 1}\n')
    Figure(figsize=(1, 1)).savefig(run / "data" / "distribution.png")
    predictions = {"base": base} if base else {}
    predictions |= zip(ARMS, (reference, candidate), strict=True)
    for arm, rows in predictions.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (run / "eval" / file_name(arm)).write_text("".join(lines), encoding="utf-8")
    scores = {arm: score_arm(rows) for arm, rows in predictions.items() if rows}
    write_json(run / "eval" / "scores.json", scores)
    verdict = decide(reference, candidate).model_dump(mode="json")
    verdict |= {"reference": ARMS[0], "candidate": ARMS[1]}
    write_json(run / "eval" / "verdict.json", verdict)
    return run


PLAN = (
    "trainable_parameters", "total_parameters", "printed_total", "weights_bytes", "samples",
    "cut_samples", "tokens_per_epoch", "steps",
)  # fmt: skip
STATS = {
    "records": 70, "splits": {"test": {"records": 7, "by_domain": {
        "internal_medicine": {"multiple_choice": 6, "short_answer": 0, "descriptive": 1}}}},
    "skipped": {"other files": 3},
    "options": {"test": {"per_question": {"4": 6}}}, "repaired": [], "overlap": [],
    "dropped": [{"file": "a.json", "key": "answer", "what": "지어낸 내용"}],
}  # fmt: skip
PARITY = {
    "passed": True,
    "checks": [
        {"name": "tokens demo.gguf", "passed": False, "expected": {"prompts": 7},
         "measured": {"differing": 1, "first": ["지어낸 질문 5번"]}},
    ],
    "types": {"Q4_K_M": {"fallbacks": {"token_embd.weight": {"asked": "Q4_K", "used": "Q8_0"}}}},
}  # fmt: skip
