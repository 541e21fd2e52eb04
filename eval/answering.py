"""Arms at work: every item that has no prediction yet is answered, appended and counted."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from eval.arms import (
    MERGED,
    HuggingFaceArms,
    answer_with_gguf,
    gguf_files,
    lora_files,
    merged_folder,
)
from eval.predictions import (
    append_predictions,
    collect,
    file_name,
    rank_file,
    remaining,
)
from eval.protocol import Protocol
from kormed_edge.base import base_folder
from kormed_edge.manifest import read_manifest
from kormed_edge.progress import Update, ignore, progress
from kormed_edge.ranks import Rank, everywhere, this_rank
from kormed_edge.records import Record
from kormed_edge.runs import ADAPTER_GGUF


def answer_all(
    run: Path,
    arms: Sequence[str],
    records: Sequence[Record],
    protocol: Protocol,
    folder: Path,
    *,
    batch_size: int,
    slots: int,
    prefix: str = "",
) -> None:
    """Write a predictions file an arm into `folder`, its name after `prefix`; resumes.

    Hugging Face arms answer `batch_size` items at once, GGUF arms `slots`.
    Every rank answers its share of what is left. The files hold the predictions in the order of
    `records`, whoever answered them, and whenever.
    """
    files = {arm: folder / f"{prefix}{file_name(arm)}" for arm in arms}
    for path in files.values():
        collect(path, records)
    left = {arm: remaining(path, records) for arm, path in files.items()}
    asked = _portable(protocol, records)
    everywhere(_answer, _Work(run, len(records), files, left, asked, batch_size, slots))
    for path in files.values():
        collect(path, records)


def share(records: Sequence[Record], index: int, count: int) -> list[Record]:
    """One of `count` parts, which have about as many long questions each; in the order given."""
    by_length = sorted(records, key=lambda record: len(record.question), reverse=True)
    own = {record.qa_id for record in by_length[index::count]}
    return [record for record in records if record.qa_id in own]


@dataclass(frozen=True, slots=True)
class _Work:
    """What every rank is told: how many items an arm has, and those that its file lacks."""

    run: Path
    items: int
    files: Mapping[str, Path]
    left: Mapping[str, list[Record]]
    protocol: Protocol
    batch_size: int
    slots: int


def _portable(protocol: Protocol, records: Sequence[Record]) -> Protocol:
    """The protocol with its prompts written out; a function can not go to another process."""
    prompts = {record: protocol.prompt(record) for record in records}
    return replace(protocol, prompt=prompts.__getitem__)


def _answer(work: _Work) -> None:
    """Answer this rank's share of every arm, into the arm's file, or one beside it.

    The NF4 arms share one loaded model; a GGUF is loaded for its own arm only.
    """
    rank = this_rank()
    models = gguf_files(work.run / "gguf")
    under = lora_files(work.run)
    loaded: dict[bool, HuggingFaceArms] = {}  # one, by whether it is the merged model
    for arm, path in work.files.items():
        left = share(work.left[arm], rank.index, rank.count)
        if not left:
            continue
        if arm in models:
            answers = answer_with_gguf(models[arm], left, work.protocol, work.slots)
        elif arm in under:
            adapter = work.run / "gguf" / ADAPTER_GGUF
            answers = answer_with_gguf(under[arm], left, work.protocol, work.slots, adapter)
        else:
            if (arm == MERGED) not in loaded:
                loaded = {arm == MERGED: _load(work.run, arm)}
            answers = loaded[arm == MERGED].answer(arm, left, work.protocol, work.batch_size)
        own = rank_file(path, rank.index) if rank.count > 1 else path
        before = (work.items - len(work.left[arm])) // rank.count
        with _progress(path.stem, before + len(left), rank) as update:
            for count in append_predictions(own, answers):
                update(before + count)


def _progress(title: str, total: int, rank: Rank) -> AbstractContextManager[Update]:
    """How far the first rank is; the others have as much to do."""
    return progress(title, total) if rank.index == 0 else nullcontext(ignore)


def _load(run: Path, arm: str) -> HuggingFaceArms:
    merged = merged_folder(run / "gguf")
    if arm == MERGED and merged:
        return HuggingFaceArms.merged(merged)
    return HuggingFaceArms.nf4(base_folder(read_manifest(run / "adapter")), run / "adapter")
