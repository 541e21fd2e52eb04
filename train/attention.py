"""Causal attention within each sample of a pack, and nowhere else.

Saves: the dense mask of a packed batch (tokens² of it a layer) and the products that it would
throw away. FlashAttention, as torch ships it, is told where samples end instead (Dao 2023).
"""

from inspect import signature
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed"
_GROUPED = "enable_gqa" in signature(varlen_attn).parameters
FEWER_HEADS: dict[str, Any] = {"enable_gqa": True} if _GROUPED else {}
"""Keys and values have fewer heads than queries; before torch 2.12 that needed no permission."""


def attend_packed(
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (1, heads, tokens, size), key and value with the
    model's fewer heads; `cu_seq_lens_q` (samples + 1) says where samples begin. Returns
    (1, tokens, heads, size).
    """
    if query.is_cuda:
        return _flash(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask = _same_sample(cu_seq_lens_q, query.shape[2])
    output = scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    return output.transpose(1, 2), None


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bounds: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    causal = (-1, 0)
    output: Any = varlen_attn(
        q, k, v, bounds, bounds, longest, longest,
        scale=scaling, window_size=causal, **FEWER_HEADS,
    )  # fmt: skip
    return output[None]  # type: ignore[no-any-return]


def _same_sample(bounds: torch.Tensor, tokens: int) -> torch.Tensor:
    """True where a token may look: itself and what came before it in its own sample."""
    place = torch.arange(tokens, device=bounds.device)
    sample = torch.searchsorted(bounds, place, right=True)
    return (sample[:, None] == sample[None]) & (place[:, None] >= place[None])


AttentionInterface.register(NAME, attend_packed)
