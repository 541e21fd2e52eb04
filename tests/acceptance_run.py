"""A run whose GGUF really answers, so that its bundle can be verified on site; texts made up."""

import json
from pathlib import Path
from typing import Any

from bundle_run import Workshop, install_update, jsonl, make_image, stage
from scripted_model import ANSWER

from eval.arms import answer_with_gguf
from eval.protocol import kit
from kormed_edge.bundle_delta import create_delta
from kormed_edge.bundle_signing import make_keys, read_private_key
from kormed_edge.manifest import sha256_file
from kormed_edge.records import Record
from kormed_edge.runs import ADAPTER_GGUF

LONGEST = 16
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


def make_run(
    run: Path, files: dict[str, bytes], rows: list[dict[str, Any]], source: str,
    revision: str | None = None, **facts: Any,
) -> None:  # fmt: skip
    """A finished run with `files` as its export, in which every arm said what `rows` have."""
    records = jsonl({key: row[key] for key in Record.__slots__} for row in rows)
    stage(run, "data", {"test.jsonl": records}, data={"source": source})
    stage(run, "adapter", {"adapter_model.safetensors": b"weights"}, ("data",))
    models = {"Q4_K_M": next(iter(files))}
    stage(run, "gguf", files, ("adapter",), revision, models=models)
    arms = ("adapter", "gguf-Q4_K_M", "lora-Q4_K_M")
    settings = {"max_new_tokens": LONGEST, "slots": 2}
    answers = {f"{arm}.jsonl": jsonl(rows) for arm in arms}
    stage(run, "eval", answers, ("data", "gguf"), eval=settings, **facts)
    stage(run, "report", {"index.html": b"<p>report"}, ("eval",))


def make_update(workshop: Workshop, gguf: Path, adapter: Path) -> Path:
    """The workshop's bundle, installed, and over it an update that brings `adapter`."""
    rows = list(answer_with_gguf(gguf, [record(n) for n in range(5)], kit(LONGEST), 2, adapter))
    digest = sha256_file(gguf)
    files = {"after-Q4_K_M.gguf": b"GGUF", ADAPTER_GGUF: adapter.read_bytes()}
    after = workshop.run.with_name("after")
    make_run(after, files, rows, "samples", f"sha256:{digest}", under={"lora:Q4_K_M": digest})
    base = workshop.bundle()
    key = read_private_key(workshop.private)
    order = workshop.order("4", run=after, type="", image=None, unverified=True)
    return install_update(create_delta(order, base, key, base.parent), base)


def make_workshop(folder: Path, gguf: Path, rows: list[dict[str, Any]], source: str) -> Workshop:
    """Keys, an image and a finished run of `gguf` whose sealed answers are `rows`."""
    workshop = Workshop(folder)
    make_run(workshop.run, {"demo-Q4_K_M.gguf": gguf.read_bytes()}, rows, source)
    make_image(workshop.image)
    make_keys(workshop.private, workshop.public)
    workshop.pins.write_text("click==8.5.1\n")
    return workshop


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return result
