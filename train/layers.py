"""Decoder layers compiled, and as many of them recomputed as memory asks for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

PACK_MULTIPLE = 256
"""Tokens. A layer is compiled once for every size of pack (10 to 20 s), so there are few sizes; at
two packs of 2,160 tokens a step the padding is 3 %."""


def compile_layers(model: Any) -> None:
    """Compile each decoder layer with torch's inductor; all layers share one compiled graph.

    Saves: most of the small kernels, and writing out what lies between them. Sizes are fixed:
    with a symbolic number of tokens inductor took minutes to compile one layer.
    """
    torch._dynamo.config.recompile_limit = 64
    # The first layer's input would need no gradient, and be compiled for that alone.
    model.enable_input_require_grads()
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)


def recompute_layers(model: Any, count: int) -> None:
    """The first `count` decoder layers keep only their input, and are computed again in the
    backward pass (Chen et al. 2016): a third more arithmetic for those layers.

    Around compiled code, not within it, where inductor may keep what it was told to recompute.
    """
    for layer in model.model.layers[:count]:
        layer.forward = partial(_recompute, layer.forward)


def _recompute(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
