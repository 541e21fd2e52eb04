"""A run whose GGUF really answers, so that its bundle can be verified on site; texts made up."""

import json
from pathlib import Path
from typing import Any

from bundle_run import Workshop, jsonl, make_image, stage
from scripted_model import ANSWER

from kormed_edge.bundle_signing import make_keys
from kormed_edge.records import Record

OPTIONS = "1) 휴식\n2) 운동\n3) 심전도"


def record(number: int, right: int = 3) -> Record:
    text = ["휴식", "운동", "심전도"][right - 1]
    return Record(
        f"17{number:03}", "internal_medicine", "multiple_choice",
        f"지어낸 질문 {number}번의 답은?\n{OPTIONS}", f"{right}) {text}",
    )  # fmt: skip


def prediction(number: int, output: str = ANSWER, right: int = 3) -> dict[str, Any]:
    own = record(number, right).to_dict()
    return {**own, "output": output, "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1}


def make_workshop(folder: Path, gguf: Path, rows: list[dict[str, Any]], source: str) -> Workshop:
    """Keys, an image and a finished run of `gguf` whose sealed answers are `rows`."""
    workshop = Workshop(folder)
    run, models = workshop.run, {"Q4_K_M": "demo-Q4_K_M.gguf"}
    records = jsonl({key: row[key] for key in Record.__slots__} for row in rows)
    stage(run, "data", {"test.jsonl": records}, data={"source": source})
    stage(run, "adapter", {"adapter_model.safetensors": b"weights"}, ("data",))
    stage(run, "gguf", {models["Q4_K_M"]: gguf.read_bytes()}, ("adapter",), models=models)
    answers = {"gguf-Q4_K_M.jsonl": jsonl(rows), "adapter.jsonl": jsonl(rows)}
    settings = {"max_new_tokens": 16, "slots": 2}
    stage(run, "eval", answers, ("data", "gguf"), eval=settings)
    stage(run, "report", {"index.html": b"<p>report"}, ("eval",))
    make_image(workshop.image)
    make_keys(workshop.private, workshop.public)
    workshop.pins.write_text("click==8.5.1\n")
    return workshop


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return result
