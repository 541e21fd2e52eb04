"""Whole passes as CUDA graphs: recorded once for each size of pack, then replayed.

Saves: launching. A forward and backward pass of Qwen2.5-7B is some six thousand kernels; a CPU
takes longer to launch them than an H100 to run them on two thousand tokens. A replay is one call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Pack = dict[str, Any]
Pass = Callable[[Pack], torch.Tensor]


class PassGraphs:
    """`run` recorded for each size of pack that comes; all share one pool of memory.

    `run` must always do the same with tensors at the same places: what differs between calls must
    be in the pack, or in tensors that are overwritten between calls. It returns a scalar.
    """

    def __init__(self, run: Pass, model: Any, pool: Any, stream: torch.cuda.Stream) -> None:
        self._run = run
        self._model = model
        self._pool = pool
        self._stream = stream
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Pack, torch.Tensor]] = {}

    def __call__(self, pack: Pack) -> torch.Tensor:
        """What `run` returns for a pack on the GPU."""
        size = pack["input_ids"].shape[1]
        if size not in self._recorded:
            self._recorded[size] = self._record(pack)
        graph, inputs, result = self._recorded[size]
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                value.copy_(pack[name])
        graph.replay()
        return result.clone()

    def _record(self, pack: Pack) -> tuple[torch.cuda.CUDAGraph, Pack, torch.Tensor]:
        inputs = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in pack.items()
        }
        inputs["importance"].zero_()  # a rehearsal that leaves every gradient as it was
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), _two_layers(self._model):
            self._run(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = self._run(inputs)
        return graph, inputs, result


@contextmanager
def _two_layers(model: Any) -> Iterator[None]:
    """The first and the last layer alone. They share their compiled code with all others, so that
    a pass over them compiles everything and needs hardly any memory."""
    layers = model.layers
    model.layers = nn.ModuleList([layers[0], layers[-1]])
    try:
        yield
    finally:
        model.layers = layers
