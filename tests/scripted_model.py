"""A tiny model that answers one fixed text to every question, so that tests can be exact.

Attention and MLP write nothing, so the next token depends on the last one only: the head's row of
each token of the answer is the embedding of the token before it.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import edit_tensors, make_base
from transformers import AutoTokenizer

ANSWER = "3) 심전도"
STRENGTH = 4.0


def make_scripted(folder: Path, answer: str = ANSWER) -> Path:
    """A qwen2 base folder; every layer's width can be held in NF4 on a CPU."""
    make_base(folder, intermediate_size=128, max_position_embeddings=4096)
    weights = load_file(folder / "model.safetensors")
    silent = {n: torch.zeros_like(w) for n, w in weights.items() if n.endswith(_OUTPUTS)}
    embeddings = weights["model.embed_tokens.weight"]
    head = torch.zeros_like(embeddings)
    chain = script(folder, answer)
    assert len(set(chain)) == len(chain), "a repeated token would have two next ones"
    for token, following in pairwise(chain):
        head[following] = STRENGTH * torch.nn.functional.normalize(embeddings[token], dim=0)
    norm = {"model.norm.weight": torch.ones_like(weights["model.norm.weight"])}
    edit_tensors(folder / "model.safetensors", **silent, **norm, **{"lm_head.weight": head})
    return folder


_OUTPUTS = ("o_proj.weight", "down_proj.weight")


def script(folder: Path, answer: str = ANSWER) -> list[int]:
    """Ids of the prompt's last token, the answer, and the end."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = tokenizer(f"\n{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    return ids
