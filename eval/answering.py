"""Arms at work: every item that has no prediction yet is answered, appended and counted."""

from collections.abc import Sequence
from pathlib import Path

from eval.arms import (
    MERGED,
    HuggingFaceArms,
    answer_with_gguf,
    gguf_files,
    merged_folder,
)
from eval.predictions import append_predictions, file_name, remaining
from eval.protocol import Protocol
from kormed_edge.base import base_folder
from kormed_edge.manifest import read_manifest
from kormed_edge.progress import progress
from kormed_edge.records import Record


def answer_all(
    run: Path,
    arms: Sequence[str],
    records: Sequence[Record],
    protocol: Protocol,
    folder: Path,
    *,
    batch_size: int,
    prefix: str = "",
) -> None:
    """Write a predictions file an arm into `folder`, its name after `prefix`; resumes.

    The NF4 arms share one loaded model; a GGUF is loaded for its own arm only.
    """
    models = gguf_files(run / "gguf")
    loaded: dict[bool, HuggingFaceArms] = {}  # one, by whether it is the merged model
    for arm in arms:
        path = folder / f"{prefix}{file_name(arm)}"
        left = remaining(path, records)
        if not left:
            continue
        if arm in models:
            answers = answer_with_gguf(models[arm], left, protocol)
        else:
            if (arm == MERGED) not in loaded:
                loaded = {arm == MERGED: _load(run, arm)}
            answers = loaded[arm == MERGED].answer(arm, left, protocol, batch_size)
        with progress(f"{prefix}{arm}", len(records)) as update:
            for count in append_predictions(path, answers):
                update(len(records) - len(left) + count)


def _load(run: Path, arm: str) -> HuggingFaceArms:
    merged = merged_folder(run / "gguf")
    if arm == MERGED and merged:
        return HuggingFaceArms.merged(merged)
    return HuggingFaceArms.nf4(base_folder(read_manifest(run / "adapter")), run / "adapter")
