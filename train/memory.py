"""What training needs of a GPU's memory, before it starts and after it ran out."""

from typing import Any

from kormed_edge.config import TrainConfig
from kormed_edge.errors import TrainError
from train.loss import CHUNK

BF16 = 2
FP32 = 4
STATES = {"adamw_8bit": 2, "paged_adamw_8bit": 0, "adamw_torch": 4}
"""Bytes of optimizer state a parameter on the GPU; a paged one lives in the host's memory."""


def expected_peak(shape: Any, config: TrainConfig, weights: int, trainable: int) -> int:
    """Bytes on the GPU at the fullest moment of a step, allocator's slack left out.

    `shape` is the base's transformers configuration. A layer that is not recomputed keeps for each
    token its input, queries, keys, values, attention's output, the residual behind it, and both
    halves of the MLP; one that is keeps its input. Measured beside it: docs/performance.md.
    """
    hidden: int = shape.hidden_size
    wide: int = shape.intermediate_size
    layers: int = shape.num_hidden_layers
    heads: int = hidden // shape.num_attention_heads * shape.num_key_value_heads
    tokens = config.tokens_per_batch or config.batch_size * config.max_length
    recomputed = config.recomputed(layers)
    kept = (4 * hidden + 2 * heads + 2 * wide) * (layers - recomputed) + hidden * recomputed
    layer_at_work = (6 * hidden + 5 * wide) * tokens + wide * hidden
    logits: int = CHUNK * shape.vocab_size * (BF16 + 2 * FP32)
    adapter = trainable * (BF16 + STATES[config.optimizer])
    return weights + adapter + logits + BF16 * (kept * tokens + layer_at_work)


def out_of_memory(error: Exception, config: TrainConfig, layers: int) -> TrainError:
    """What it needed, what the card has, and which setting to change."""
    import torch

    reserved = torch.cuda.max_memory_reserved() / 1e9
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info())
    wanted = str(error).split(". GPU")[0]
    return TrainError(
        f"out of memory on the GPU: {reserved:.1f} GB were reserved. {wanted}",
        f"a card with more than its {total:.1f} GB, {free:.1f} GB of them free",
        _remedy(config, layers),
    )


def _remedy(config: TrainConfig, layers: int) -> str:
    if config.recomputed(layers) < layers:
        more = min(layers, config.recomputed(layers) + max(1, layers // 4))
        return f"recompute more layers: --set train.gradient_checkpointing={more}"
    if config.tokens_per_batch and config.tokens_per_batch > config.max_length:
        return f"shorten the packs: --set train.tokens_per_batch={config.max_length}"
    if config.batch_size > 1 and not config.tokens_per_batch:
        half = config.batch_size // 2
        return (
            f"--set train.batch_size={half} --set train.gradient_accumulation="
            f"{config.samples_per_step // half}"
        )
    return f"shorten the samples: --set train.max_length={config.max_length // 2}"
