"""A tiny random model as a GGUF, whose answers depend on every token of the prompt.

Its weights are fp32: with bf16 ones the logits of random weights, which are often almost equal,
would depend on how the prompt is cut into steps.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_models import make_base, rewrite_gguf

from export.convert import Provenance, write_gguf

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


def make_random_gguf(folder: Path) -> Path:
    """`folder`/base.gguf, and the same model for Hugging Face in `folder`/hf."""
    make_base(folder / "hf", max_position_embeddings=512)
    half = write_gguf(folder / "hf", None, folder / "half.gguf", NOBODY).path
    return rewrite_gguf(half, folder / "base.gguf", _widen, {"general.file_type": 0})


def _widen(tensors: dict[str, Any]) -> None:
    tensors |= {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
