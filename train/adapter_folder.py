"""What a finished training leaves in its folder, whichever trainer it was."""

import resource
import shutil
from pathlib import Path
from typing import Any

from kormed_edge.manifest import write_json
from train.arguments import CHECKPOINTS
from train.resuming import write_log

TOKENIZER_FILES = (
    "tokenizer*", "chat_template*", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip


def write_adapter(trainer: Any, base: Path, folder: Path, memory: dict[str, Any]) -> None:
    """Adapter, the base's tokenizer byte for byte, log and `memory.json`; checkpoints go.

    `memory` is what the caller knows besides the peaks that are measured here.
    """
    # "auto" would ask the hub whether the vocabulary was resized (peft#1452); it never is here.
    trainer.model.save_pretrained(
        str(folder), selected_adapters=["default"], save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for path in (path for pattern in TOKENIZER_FILES for path in base.glob(pattern)):
        shutil.copyfile(path, folder / path.name)
    write_log(folder / "log.jsonl", trainer.state.log_history)
    write_json(folder / "memory.json", memory | _peaks())
    shutil.rmtree(folder / CHECKPOINTS)


def _peaks() -> dict[str, int]:
    import torch

    # Linux counts in KiB.
    peaks = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        peaks["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        peaks["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return peaks
