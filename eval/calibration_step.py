"""The part of `kormed eval` that teaches a GGUF how sure it may be: the validation split, answered
by the model that is served, in the way in which the service asks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.answering import answer_all
from eval.arms import gguf_files, lora_files
from eval.calibrating import calibrate, measure
from eval.predictions import file_name, read_predictions
from eval.protocol import kit
from kormed_edge.calibration import Calibration, calibration_file
from kormed_edge.config import EvalConfig
from kormed_edge.errors import EvalError
from kormed_edge.manifest import read_manifest, sha256_file, write_json
from kormed_edge.records import read_records
from kormed_edge.runs import ADAPTER_GGUF

VALID = "valid-"
"""Before the name of a predictions file: it is about the validation split."""


def choose_calibrated(config: EvalConfig, arms: Sequence[str], run: Path) -> list[str]:
    """The GGUF arms to calibrate: those that are named, else the gate's candidate."""
    known = [*gguf_files(run / "gguf"), *lora_files(run)]
    if config.calibrate is None:
        return [arm for arm in arms if arm == config.gate.candidate and arm in known]
    unknown = [arm for arm in config.calibrate if arm not in known]
    if unknown:
        raise EvalError(
            f"eval.calibrate: {', '.join(unknown)} is no GGUF of this run",
            f"some of {', '.join(known)}", "export it first: --set export.types=[...]",
        )  # fmt: skip
    return list(config.calibrate)


def calibrate_arms(
    run: Path, arms: Sequence[str], folder: Path, config: EvalConfig
) -> dict[str, Calibration]:
    """Answer the validation split and write a calibration an arm into `folder`; resumes.

    An arm whose answers have no confidence is left out.
    """
    records = read_records(run / "data" / "valid.jsonl")[: config.limit]
    answer_all(
        run, arms, records, kit(config.max_new_tokens), folder,
        batch_size=config.batch_size, slots=config.slots, prefix=VALID,
    )  # fmt: skip
    found = {}
    for arm in arms:
        answers = read_predictions(folder / f"{VALID}{file_name(arm)}")
        model, adapter = _digests(run, arm)
        fitted = calibrate(answers, model, config.warn_below, adapter)
        if fitted.options or fitted.text:
            write_json(folder / calibration_file(arm), fitted.model_dump())
            found[arm] = fitted
    return found


def measure_arms(calibrations: dict[str, Calibration], folder: Path) -> dict[str, Any]:
    """What the calibrations are worth on the test split, by arm, where it was answered."""
    answers = {arm: read_predictions(folder / file_name(arm)) for arm in calibrations}
    return {arm: measure(found, calibrations[arm]) for arm, found in answers.items() if found}


def _digests(run: Path, arm: str) -> tuple[str, str | None]:
    """SHA-256 of the model that answers, and of the adapter over it."""
    exported, under = read_manifest(run / "gguf").files, lora_files(run)
    if arm in under:
        return sha256_file(under[arm]), exported[ADAPTER_GGUF].sha256
    return exported[gguf_files(run / "gguf")[arm].name].sha256, None
