import json
from hashlib import sha256
from math import exp, log
from pathlib import Path
from typing import Any

import pytest

from kormed_edge.calibration import (
    BUNDLED,
    HIGH,
    LOW,
    MODERATE,
    Calibration,
    OptionScale,
    TextScale,
    calibration_file,
    find_calibration,
    level_of,
    read_calibration,
)
from kormed_edge.errors import EngineError
from kormed_edge.runs import open_stage

MODEL, OTHER, LORA = "ab" * 32, "cd" * 32, "ef" * 32


def calibration(**changes: Any) -> Calibration:
    settings = {
        "model_sha256": MODEL,
        "options": OptionScale(temperature=2.0, n=9),
        "text": TextScale(slope=2.0, intercept=1.0, n=4),
        "threshold": 0.5,
        "fit_version": "1",
    }
    return Calibration(**{**settings, **changes})


def write(path: Path, **changes: Any) -> Path:
    path.write_text(calibration(**changes).model_dump_json())
    return path


def test_temperature_above_one_makes_options_more_alike() -> None:
    # The square roots of 0.64, 0.32, 0.04 are 0.8, 0.5657, 0.2.
    scaled = calibration().of_options([0.64, 0.32, 0.04])
    assert scaled == pytest.approx([0.8 / 1.5657, 0.5657 / 1.5657, 0.2 / 1.5657], abs=1e-4)


def test_temperature_of_one_changes_nothing() -> None:
    same = calibration(options=OptionScale(temperature=1.0, n=9))
    assert same.of_options([0.7, 0.3]) == pytest.approx([0.7, 0.3])


def test_small_temperature_leaves_the_best_option() -> None:
    sharp = calibration(options=OptionScale(temperature=0.001, n=9))
    assert sharp.of_options([0.3, 0.2, 0.0]) == pytest.approx((1, 0, 0))


def test_text_is_judged_by_the_mean_of_its_tokens() -> None:
    expected = 1 / (1 + exp(-(2.0 * -0.5 + 1.0)))
    assert calibration().of_text([-0.2, -0.8]) == pytest.approx(expected)
    assert calibration().of_text([log(0.5)] * 3) == calibration().of_text([log(0.5)])


def test_extreme_text_is_no_overflow() -> None:
    steep = calibration(text=TextScale(slope=1e6, intercept=0, n=1))
    assert steep.of_text([-1e6]) == 0.0
    assert calibration().of_text([]) == 0.0


def test_what_was_not_fitted_is_not_told() -> None:
    bare = calibration(options=None, text=None)
    assert (bare.of_options([0.5, 0.5]), bare.of_text([-1.0])) == (None, None)
    assert calibration().of_options([]) is None


@pytest.mark.parametrize(
    ("confidence", "threshold", "level"),
    [(0.8, 0.5, HIGH), (0.79, 0.5, MODERATE), (0.5, 0.5, MODERATE), (0.49, 0.5, LOW),
     (0.85, 0.9, LOW), (0.9, 0.9, HIGH)],
)  # fmt: skip
def test_level_is_low_where_an_answer_is_warned_of(
    confidence: float, threshold: float, level: Any
) -> None:
    assert level_of(confidence, threshold) is level


def test_calibration_is_read_back(tmp_path: Path) -> None:
    assert read_calibration(write(tmp_path / "c.json"), MODEL) == calibration()


def test_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"is of the model {MODEL}"):
        read_calibration(write(tmp_path / "c.json"), OTHER)


@pytest.mark.parametrize(
    "change",
    [{"threshold": 2}, {"schema_version": 2}, {"more": 1}, {"model_sha256": "x"},
     {"options": {"temperature": 0, "n": 3}}, {"text": {"slope": -1, "intercept": 0, "n": 3}}],
)  # fmt: skip
def test_malformed_calibration_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**calibration().model_dump(), **change}))
    with pytest.raises(EngineError, match="is not a calibration of this kit"):
        read_calibration(path, MODEL)


def make_run(run: Path, *models: str) -> Path:
    """A run that was evaluated; returns its model."""
    with open_stage(run, "eval", {}) as draft:
        assert draft is not None
        for i, model in enumerate(models):
            write(draft.folder / calibration_file(f"gguf:Q{i}_0"), model_sha256=model)
        write(draft.folder / calibration_file("lora:Q8_0"), model_sha256=MODEL, adapter_sha256=LORA)
    (run / "gguf").mkdir()
    return run / "gguf" / "r-Q8_0.gguf"


def test_calibration_is_found_in_the_run_by_the_model_s_hash(tmp_path: Path) -> None:
    model = make_run(tmp_path / "r", OTHER, MODEL)
    assert find_calibration(model, MODEL) == calibration()
    assert find_calibration(model, "01" * 32) is None


def test_adapter_has_a_calibration_of_its_own(tmp_path: Path) -> None:
    model = make_run(tmp_path / "r", MODEL)
    adapter = model.with_name("adapter.gguf")
    assert find_calibration(adapter, MODEL, LORA) == calibration(adapter_sha256=LORA)
    assert find_calibration(adapter, OTHER, LORA) is None
    assert find_calibration(model, MODEL) == calibration()


def test_calibration_beside_an_adapter_must_be_of_both(tmp_path: Path) -> None:
    write(tmp_path / BUNDLED, adapter_sha256=LORA)
    adapter = tmp_path / "adapter.gguf"
    assert find_calibration(adapter, MODEL, LORA) == calibration(adapter_sha256=LORA)
    for model, lora in ((OTHER, LORA), (MODEL, OTHER), (MODEL, None)):
        with pytest.raises(EngineError, match="with the adapter"):
            find_calibration(adapter, model, lora)


def test_calibration_that_was_changed_after_its_stage_is_refused(tmp_path: Path) -> None:
    model = make_run(tmp_path / "r", MODEL)
    write(tmp_path / "r" / "eval" / calibration_file("gguf:Q0_0"), threshold=0.0)
    with pytest.raises(EngineError, match=r"calibration-Q0_0.json is not the file of its manifest"):
        find_calibration(model, MODEL)


def test_calibration_beside_the_model_must_be_its_own(tmp_path: Path) -> None:
    write(tmp_path / BUNDLED)
    assert find_calibration(tmp_path / "m.gguf", MODEL) == calibration()
    with pytest.raises(EngineError, match="is of the model"):
        find_calibration(tmp_path / "m.gguf", OTHER)


def test_model_on_its_own_has_none(tmp_path: Path) -> None:
    assert find_calibration(tmp_path / "gguf" / "m.gguf", sha256(b"m").hexdigest()) is None
