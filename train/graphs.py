"""Whole passes as CUDA graphs: recorded once for each size of pack, then replayed.

Saves: launching. A forward and backward pass of Qwen2.5-7B is some six thousand kernels; a CPU
takes longer to launch them than an H100 to run them on two thousand tokens. A replay is one call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

Pack = dict[str, Any]
Pass = Callable[[Pack], torch.Tensor]


class Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Pack
    result: torch.Tensor

    def replay(self, pack: Pack) -> torch.Tensor:
        for name, value in self.inputs.items():
            if isinstance(value, torch.Tensor):
                value.copy_(pack[name])
        self.graph.replay()
        return self.result.clone()


class PassGraphs:
    """Passes recorded for each size of pack that comes; all share one pool of memory.

    A pass must always do the same with tensors at the same places: what differs between calls must
    be in the pack, or in tensors that are overwritten between calls. It returns a scalar.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._rehearsed: set[tuple[str, int]] = set()
        self._recorded: dict[tuple[str, int], Recording] = {}

    def __call__(self, run: Pass, pack: Pack) -> torch.Tensor:
        """What `run` returns for a pack on the GPU."""
        key = run.__name__, pack["input_ids"].shape[1]
        if key not in self._rehearsed:
            self._forget()
            self._rehearse(run, pack)
            self._rehearsed.add(key)
        if key not in self._recorded:
            self._recorded[key] = self._record(run, pack)
        return self._recorded[key].replay(pack)

    def _forget(self) -> None:
        """A rehearsal needs memory of its own. The recorded passes hold that of a whole step until
        the last of them is gone; to record them again takes a second, nothing being compiled."""
        torch.cuda.synchronize()
        self._recorded.clear()
        torch.cuda.empty_cache()
        self._pool = torch.cuda.graph_pool_handle()

    def _rehearse(self, run: Pass, pack: Pack) -> None:
        """Compile, and let the libraries take what they take at a first call."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), _two_layers(self._model):
            # No token counts, so that every gradient is left as it was.
            run(pack | {"importance": torch.zeros_like(pack["importance"])})
        torch.cuda.current_stream().wait_stream(self._stream)

    def _record(self, run: Pass, pack: Pack) -> Recording:
        inputs = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in pack.items()
        }
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = run(inputs)
        return Recording(graph, inputs, result)


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
