import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_model import ANSWER

from eval.arms import answer_with_gguf
from eval.calibration_step import calibrate_arms, choose_calibrated, measure_arms
from eval.predictions import read_predictions
from kormed_edge.calibration import find_calibration
from kormed_edge.config import EvalConfig
from kormed_edge.errors import EvalError
from kormed_edge.manifest import sha256_file
from kormed_edge.records import Record
from kormed_edge.runs import ADAPTER_GGUF, open_stage

ARM = "gguf:Q8_0"
CHOICE = "무엇인가?\n1) 가\n2) 나\n3) 다"
VALID = [
    Record("a", "obgyn", "multiple_choice", CHOICE, "3) 다"),
    Record("b", "obgyn", "multiple_choice", CHOICE, "1) 가"),
    Record("c", "obgyn", "short_answer", "무엇인가?", ANSWER),
]


def config(**changes: Any) -> EvalConfig:
    return EvalConfig.model_validate({"max_new_tokens": 32, "slots": 2, **changes})


@pytest.fixture
def run(scripted_gguf: Path, tmp_path: Path) -> Path:
    """A run whose export is a model that always says the same."""
    run = tmp_path / "r"
    with open_stage(run, "data", {}) as data:
        assert data is not None
        lines = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in VALID)
        (data.folder / "valid.jsonl").write_text("".join(lines), encoding="utf-8")
    models = {"bf16": "r-bf16.gguf", "Q8_0": "r-Q8_0.gguf"}
    with open_stage(run, "gguf", {"models": models}) as gguf:
        assert gguf is not None
        for name in models.values():
            (gguf.folder / name).write_bytes(scripted_gguf.read_bytes())
    return run


def test_gate_s_candidate_is_calibrated_unless_others_are_named(run: Path) -> None:
    arms = ["base", "gguf:bf16", ARM]
    gate = {"candidate": ARM}
    assert choose_calibrated(config(gate=gate), arms, run) == [ARM]
    assert choose_calibrated(config(gate=gate), ["base"], run) == []
    assert choose_calibrated(config(gate={"candidate": "base"}), arms, run) == []
    assert choose_calibrated(config(calibrate=["gguf:bf16"]), arms, run) == ["gguf:bf16"]
    assert choose_calibrated(config(calibrate=[], gate=gate), arms, run) == []
    with pytest.raises(EvalError, match=r"eval\.calibrate: base is no GGUF"):
        choose_calibrated(config(calibrate=["base"]), arms, run)


def test_validation_split_is_answered_and_the_calibration_is_the_model_s(run: Path) -> None:
    with open_stage(run, "eval", {}) as draft:
        assert draft is not None
        found = calibrate_arms(run, [ARM], draft.folder, config(warn_below=0.6))
        answers = read_predictions(draft.folder / "valid-gguf-Q8_0.jsonl")
    assert [(p["qa_id"], p["output"]) for p in answers] == [(id, ANSWER) for id in "abc"]
    model = run / "gguf" / "r-Q8_0.gguf"
    assert find_calibration(model, sha256_file(model)) == found[ARM]
    assert found[ARM].threshold == 0.6
    counted = found[ARM].model_dump()
    assert (counted["options"]["n"], counted["text"]["n"]) == (2, 1)


def test_adapter_over_an_older_export_is_calibrated_for_both(
    run: Path, scripted_lora: Path, tmp_path: Path
) -> None:
    after = tmp_path / "after"
    shutil.copytree(run / "data", after / "data")
    base = run / "gguf" / "r-Q8_0.gguf"
    with open_stage(after, "adapter", {"base": str(base)}) as trained:
        assert trained is not None
    with open_stage(after, "gguf", {"models": {}}) as exported:
        assert exported is not None
        adapter = Path(shutil.copy(scripted_lora, exported.folder / ADAPTER_GGUF))
    arm = "lora:Q8_0"
    assert choose_calibrated(config(gate={"candidate": arm}), [arm], after) == [arm]
    with open_stage(after, "eval", {}) as draft:
        assert draft is not None
        found = calibrate_arms(after, [arm], draft.folder, config())
        answers = read_predictions(draft.folder / "valid-lora-Q8_0.jsonl")
    assert ANSWER not in {answer["output"] for answer in answers}
    digests = sha256_file(base), sha256_file(after / "gguf" / adapter.name)
    assert find_calibration(after / "gguf" / adapter.name, *digests) == found[arm]


def test_stopped_calibration_asks_only_what_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate_arms(run, [ARM], tmp_path, config())
    path = tmp_path / "valid-gguf-Q8_0.jsonl"
    first, *_ = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(first + '{"qa_id": "b", "cut', encoding="utf-8")
    asked: list[str] = []
    original = answer_with_gguf

    def noted(model: Path, records: list[Record], *others: Any) -> Any:
        asked.extend(record.qa_id for record in records)
        return original(model, records, *others)

    monkeypatch.setattr("eval.answering.answer_with_gguf", noted)
    assert calibrate_arms(run, [ARM], tmp_path, config()) == whole
    assert asked == ["b", "c"]


def test_measure_is_of_the_arms_that_answered_the_test_split(run: Path, tmp_path: Path) -> None:
    found = calibrate_arms(run, [ARM], tmp_path, config())
    assert measure_arms(found, tmp_path) == {}
    (tmp_path / "valid-gguf-Q8_0.jsonl").rename(tmp_path / "gguf-Q8_0.jsonl")
    measured = measure_arms(found, tmp_path)[ARM]
    assert measured.keys() == {"multiple_choice", "free_text"}
    assert measured["multiple_choice"]["error"]["value"] == 0.5


def test_empty_validation_split_leaves_no_calibration(run: Path, tmp_path: Path) -> None:
    (run / "data" / "valid.jsonl").write_text("")
    assert calibrate_arms(run, [ARM], tmp_path, config()) == {}
    assert not (tmp_path / "calibration-Q8_0.json").exists()


def test_a_limited_evaluation_asks_no_more_validation_items(run: Path, tmp_path: Path) -> None:
    calibrate_arms(run, [ARM], tmp_path, config(limit=1))
    answers = read_predictions(tmp_path / "valid-gguf-Q8_0.jsonl")
    assert [answer["qa_id"] for answer in answers] == ["a"]
