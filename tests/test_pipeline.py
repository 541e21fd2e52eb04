"""The real commands, from records to an answered question, with a tiny base model."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from aihub_tree import write_zip
from click.testing import CliRunner, Result
from tiny_models import make_base

from eval import protocol
from eval.answering import answer_all
from eval.arms import HuggingFaceArms, choose_arms
from kormed_edge.cli import main
from kormed_edge.errors import KormedError
from kormed_edge.manifest import manifest_hash, read_manifest, sha256_file
from kormed_edge.records import read_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
STAGES = ("data", "train", "export", "eval")
SETTINGS = {
    "data.ratios": "[0.9, 0.05, 0.05]",
    "train.max_steps": 4,
    "train.learning_rate": 0.01,  # a model without opinions has too many ties for parity
    "train.eval_steps": 2,
    "train.save_steps": 2,
    "train.max_length": 256,
    "export.types": "[Q8_0]",
    "export.parity_prompts": 2,
    "eval.batch_size": 4,
    "eval.max_new_tokens": 4,
    "eval.gate.candidate": "gguf:Q8_0",
}

# Ends its own process, as a power cut would, at the first sign of progress of one step.
KILLED_AT = """
import os, signal, sys
from rich.console import Console
title, *arguments = sys.argv[1:]
show = Console.print
def show_or_die(self, *objects, **options):
    if str(objects[:1]).find(title) >= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    show(self, *objects, **options)
Console.print = show_or_die
from kormed_edge.cli import main
main(arguments)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    # NF4 inference on a CPU takes widths that are a multiple of its block of 64 only.
    return make_base(folder, intermediate_size=128, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def arguments(runs: Path, command: str, base: Path | None) -> list[str]:
    options = ["--runs-dir", str(runs), "--run", "mini"]
    if base:
        settings = {**SETTINGS, "base": base, "data.source": ROOT / "samples"}
        options += ["--config", str(ROOT / "configs" / "demo.yaml")]
        options += [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    return [command, *options]


def kormed(runs: Path, command: str, *others: str, base: Path | None = None) -> Result:
    given = [*arguments(runs, command, base), *others]
    return CliRunner().invoke(main, given, catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(runs: Path, base: Path) -> Path:
    """A whole run whose evaluation was stopped once, after eight answers, and went on."""
    for command in STAGES[:-1]:
        assert kormed(runs, command, base=base).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceArms, "_answer_batch", stopping_after(2))
        assert kormed(runs, "eval", base=base).exit_code == 1
    assert len(lines(runs / "mini" / "eval.partial" / "base.jsonl")) == 8
    assert kormed(runs, "eval", base=base).exit_code == 0
    return runs / "mini"


def stopping_after(batches: int) -> Any:
    original = HuggingFaceArms._answer_batch
    left = iter(range(batches))

    def answer(self: HuggingFaceArms, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise KormedError("the power went out")
        return original(self, *arguments)

    return answer


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_stage_leaves_its_files_and_its_manifest(finished: Path) -> None:
    for stage, name in (
        ("data", "stats.json"), ("adapter", "adapter_model.safetensors"), ("adapter", "loss.png"),
        ("gguf", "mini-bf16.gguf"), ("gguf", "mini-Q8_0.gguf"), ("gguf", "parity.json"),
        ("eval", "scores.json"), ("eval", "verdict.json"), ("report", "index.html"),
    ):  # fmt: skip
        assert name in read_manifest(finished / stage).files
    assert sorted(path.name for path in finished.iterdir()) == [
        "adapter", "data", "eval", "gguf", "report",
    ]  # fmt: skip


def test_lone_gguf_is_traced_to_its_run(finished: Path) -> None:
    fields = gguf.GGUFReader(finished / "gguf" / "mini-Q8_0.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["kormed.run"] == "mini"
    assert found["general.base_model.0.name"] == "tiny"
    assert found["general.dataset.0.name"] == "samples"
    assert found["general.finetune"] == "nf4-qlora"
    assert found["kormed.onto"] == "nf4"
    for stage in ("adapter", "data"):
        assert manifest_hash(finished / stage).startswith(found[f"kormed.{stage}"])
        assert found[f"kormed.{stage}"]


def test_stopped_evaluation_answers_every_item_once(finished: Path) -> None:
    asked = sorted(record["qa_id"] for record in lines(finished / "data" / "test.jsonl"))
    for arm in ("base", "adapter", "gguf-bf16", "gguf-Q8_0"):
        answered = sorted(p["qa_id"] for p in lines(finished / "eval" / f"{arm}.jsonl"))
        assert answered == asked


def test_every_arm_has_scores_with_intervals(finished: Path) -> None:
    scores = json.loads((finished / "eval" / "scores.json").read_text(encoding="utf-8"))
    assert list(scores) == ["base", "adapter", "gguf:bf16", "gguf:Q8_0"]
    accuracy = scores["gguf:Q8_0"]["overall"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_few_items_are_not_a_pass(finished: Path, runs: Path) -> None:
    verdict = json.loads((finished / "eval" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["outcome"] != "PASS"
    assert kormed(runs, "verify").exit_code in (3, 4)


def test_second_run_makes_nothing_anew(finished: Path, runs: Path, base: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for command in STAGES:
        result = kormed(runs, command, base=base)
        assert result.exit_code == 0
        assert "finished already" in result.output
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.usefixtures("finished")
def test_question_is_answered_on_the_terminal(runs: Path) -> None:
    result = kormed(runs, "ask", "--type", "Q8_0", "--max-new-tokens", "4", "가장 먼저 할 검사는?")
    assert result.exit_code == 0
    assert "단독 진단이나 처방에 사용할 수 없습니다" in result.output


def test_changed_model_fails_verification_by_name(finished: Path, runs: Path) -> None:
    model = finished / "gguf" / "mini-Q8_0.gguf"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        result = kormed(runs, "verify")
    finally:
        model.write_bytes(whole)
    assert result.exit_code == 1
    assert "mini-Q8_0.gguf: contents differ" in result.output


def test_zips_as_ai_hub_ships_them_give_the_same_splits(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "71875"
    for folder in (ROOT / "samples").glob("*/02.라벨링데이터/*"):
        members = {f"/{p.name}": json.loads(p.read_text("utf-8-sig")) for p in folder.iterdir()}
        write_zip(source / folder.parts[-3] / "02.라벨링데이터" / f"{folder.name}.zip", members)
    settings = ("--set", f"data.source={source}", "--set", f"data.ratios={SETTINGS['data.ratios']}")
    config = ("--config", str(ROOT / "configs" / "demo.yaml"))
    assert kormed(tmp_path, "data", *config, *settings).exit_code == 0
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        ours, theirs = (run / "data" / name for run in (tmp_path / "mini", finished))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished run once more, without its export."""
    run = tmp_path / "mini"
    for stage in ("data", "adapter"):
        shutil.copytree(finished / stage, run / stage)
    return run


def test_both_merges_and_the_merged_folder_are_arms(copied: Path, base: Path) -> None:
    options = ("--onto", "nf4", "--onto", "original", "--keep-hf")
    compared = ("--set", "export.compare_imatrix=true")
    assert kormed(copied.parent, "export", *options, *compared, base=base).exit_code == 0
    assert choose_arms(None, copied) == [
        "base", "adapter", "merged", "gguf:bf16", "gguf:bf16-original", "gguf:Q8_0",
    ]  # fmt: skip
    names = set(read_manifest(copied / "gguf").files)
    assert {"adapter.gguf", "imatrix.gguf", "hf/model.safetensors"} <= names
    parity = json.loads((copied / "gguf" / "parity.json").read_text(encoding="utf-8"))
    assert set(parity["imatrix"]["mean_kld"]["Q8_0"]) == {"with", "without"}
    assert_each_arm_is_answered_by_its_model(copied)


def assert_each_arm_is_answered_by_its_model(run: Path) -> None:
    """In an order in which one model follows another."""
    used = {}
    answer = HuggingFaceArms.answer

    def noted(self: HuggingFaceArms, arm: str, *others: Any) -> Any:
        used[arm] = type(self.model).__name__.startswith("Peft")
        return answer(self, arm, *others)

    records = read_records(run / "data" / "test.jsonl")[:1]
    (run / "answers").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceArms, "answer", noted)
        arms = ("merged", "adapter", "base")
        answer_all(run, arms, records, protocol.kit(2), run / "answers", batch_size=1, slots=1)
    assert used == {"merged": False, "adapter": True, "base": True}


def test_adapter_trained_on_an_export_is_evaluated_over_it(finished: Path, tmp_path: Path) -> None:
    exported, arm = finished / "gguf", "lora:Q8_0"
    chosen = (f"eval.arms=[adapter, {arm}]", f"eval.gate.candidate={arm}")
    more = [part for setting in chosen for part in ("--set", setting)]
    for command in STAGES:
        result = kormed(tmp_path, command, *more, base=exported / "mini-bf16.gguf")
        assert result.exit_code == 0, result.output
    evaluated = read_manifest(tmp_path / "mini" / "eval")
    assert evaluated.settings["under"] == {arm: sha256_file(exported / "mini-Q8_0.gguf")}
    assert {"lora-Q8_0.jsonl", "calibration-lora-Q8_0.json"} <= set(evaluated.files)
    page = (tmp_path / "mini" / "report" / "index.html").read_text(encoding="utf-8")
    assert "adapter.gguf" in page


def test_export_that_fails_parity_is_marked_as_failed(copied: Path, base: Path) -> None:
    limit = ("--set", "export.max_kld={Q8_0: 0, BF16: 0}")
    result = kormed(copied.parent, "export", *limit, base=base)
    assert result.exit_code == 1
    assert "parity failed: logits Hugging Face → bf16, logits bf16 → Q8_0" in result.output
    assert not (copied / "gguf").exists()
    failed = {path.name for path in (copied / "gguf.failed").iterdir()}
    assert "mini-Q8_0.gguf.failed" in failed
    assert not any(name.endswith(".gguf") for name in failed)
    parity = json.loads((copied / "gguf.failed" / "parity.json").read_text(encoding="utf-8"))
    assert parity["passed"] is False
    assert kormed(copied.parent, "export", base=base).exit_code == 0
    assert not (copied / "gguf.failed").exists()


def test_unknown_type_stops_an_export_before_it_writes(copied: Path, base: Path) -> None:
    result = kormed(copied.parent, "export", "--set", "export.types=[Q9_9]", base=base)
    assert result.exit_code == 1
    assert "no GGUF type Q9_9" in result.output
    assert sorted(path.name for path in copied.iterdir()) == ["adapter", "data"]


@pytest.mark.parametrize("title", ["export: merge", "export: importance", "export: quantize"])
def test_killed_export_leaves_no_file_under_a_final_name(
    title: str, copied: Path, base: Path
) -> None:
    command = [sys.executable, "-c", KILLED_AT, title, *arguments(copied.parent, "export", base)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(path.name for path in copied.iterdir()) == ["adapter", "data", "gguf.partial"]
    assert kormed(copied.parent, "export", base=base).exit_code == 0
    assert sorted(path.name for path in copied.iterdir()) == ["adapter", "data", "gguf"]


def test_benchmark_asks_every_arm_in_two_ways(copied: Path, finished: Path) -> None:
    shutil.copytree(finished / "gguf", copied / "gguf")
    rows = copied.parent / "rows.jsonl"
    row = {"subject": "doctor", "answer": 2, **dict(zip("ABCDE", "가나다라마", strict=True))}
    text = [json.dumps(row | {"question": f"지어낸 질문 {i}?"}) + "\n" for i in range(5)]
    rows.write_text("".join([*text, json.dumps(row | {"subject": "nurse", "question": "?"})]))
    command = [
        "benchmark",
        "--runs-dir",
        str(copied.parent),
        "--run",
        "mini",
        "--source",
        str(rows),
    ]
    command += ["--subject", "doctor", "--sample", "4", "--max-new-tokens", "3"]
    command += ["--arm", "adapter", "--arm", "gguf:Q8_0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "LM_EVAL", replace(protocol.LM_EVAL, max_new_tokens=3))
        result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads((copied / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    assert written["n"] == 4
    for name in ("kormed", "lm-eval"):
        assert list(written[name]) == ["adapter", "gguf:Q8_0"]
        for scores in written[name].values():
            assert scores["by_subject"].keys() == {"doctor"}
    assert "likelihood" in written["kormed"]["adapter"]["overall"]
    asked = {p["qa_id"] for p in lines(copied / "benchmark" / "lm-eval-adapter.jsonl")}
    assert asked == {p["qa_id"] for p in lines(copied / "benchmark" / "kormed-gguf-Q8_0.jsonl")}
