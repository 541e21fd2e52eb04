"""llama.cpp's context: the KV cache, one batch, and the logits of the last step.

Nothing here may be called from two threads at once.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kormed_edge.errors import EngineError
from kormed_edge.ggml import last_line
from kormed_edge.llama_log import llama_log
from kormed_edge.llama_model import LlamaModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Run:
    """Tokens that follow one another in one sequence."""

    sequence: int
    start: int
    """Position of the first token."""
    tokens: Sequence[int]
    output: bool
    """Whether the logits after the last token are wanted."""


class LlamaContext:
    """Room for `sequences` of together `cells` tokens, `batch` of which are decoded at a time."""

    def __init__(
        self, model: LlamaModel, *, cells: int, sequences: int, batch: int, threads: int
    ) -> None:
        import llama_cpp

        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = batch
        # By default llama.cpp makes room for the logits of a whole batch: 300 MB for Qwen2.5.
        parameters.n_outputs_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = True  # sequences can share cells, so a prefix is copied for nothing
        log: list[str] = []
        with llama_log(log.append):
            self._context: Any = llama_cpp.llama_init_from_model(model.pointer, parameters)
        if not self._context:
            raise EngineError(
                f"{model.path}: llama.cpp cannot make a context: {last_line(log)}",
                f"memory for {cells:,} tokens",
                "fewer slots, or a smaller --context",
            )
        self._memory: Any = llama_cpp.llama_get_memory(self._context)
        self._model = model
        self._adapter: str | None = None
        self._batch = Batch(batch)

    def decode(self, runs: Sequence[Run]) -> tuple[int, list[int]]:
        """llama.cpp's status, 0 when all is well, and the row of each run's logits."""
        import llama_cpp

        rows = self._batch.fill(runs)
        return llama_cpp.llama_decode(self._context, self._batch.struct), rows

    def logits(self, row: int) -> "NDArray[np.float32]":
        """The model's logits in that row, without a copy: gone with the next step."""
        import llama_cpp
        import numpy as np

        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._model.vocabulary,))

    def sample(self, chain: Any, row: int) -> int:
        """What a chain of llama.cpp's samplers chooses there; the chain remembers it."""
        import llama_cpp

        return int(llama_cpp.llama_sampler_sample(chain, self._context, row))

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop a sequence's keys and values from a position on."""
        import llama_cpp

        llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def share(self, source: int, target: int, end: int) -> None:
        """Let an empty sequence have the first `end` tokens of another; nothing is computed."""
        import llama_cpp

        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def apply(self, adapter: str | None) -> None:
        """Make an adapter, at its full scale, or none, the one that all runs are decoded with."""
        import llama_cpp

        if adapter == self._adapter:
            return
        chosen = [] if adapter is None else [self._model.adapters[adapter]]
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        if llama_cpp.llama_set_adapters_lora(self._context, pointers, len(chosen), scales):
            raise EngineError(f"llama.cpp cannot switch to adapter {adapter!r}")
        self._adapter = adapter

    def close(self) -> None:
        import llama_cpp

        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = None


class Batch:
    """llama.cpp's batch over numpy's memory, because filling it through ctypes is slow."""

    def __init__(self, size: int) -> None:
        import llama_cpp
        import numpy as np

        self._token, self._pos, self._sequence = (np.zeros(size, np.int32) for _ in range(3))
        self._output = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        first = self._sequence.ctypes.data
        self._sequences = np.arange(first, first + 4 * size, 4, dtype=np.uintp)
        self.struct = llama_cpp.llama_batch()
        fields: Any = llama_cpp.llama_batch._fields_
        kinds = dict(fields)
        for name, array in (
            ("token", self._token), ("pos", self._pos), ("n_seq_id", self._counts),
            ("seq_id", self._sequences), ("logits", self._output),
        ):  # fmt: skip
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def fill(self, runs: Sequence[Run]) -> list[int]:
        """Put runs into the batch; the row of each one's last token."""
        at, rows = 0, []
        for run in runs:
            end = at + len(run.tokens)
            self._token[at:end] = run.tokens
            self._pos[at:end] = range(run.start, run.start + len(run.tokens))
            self._sequence[at:end] = run.sequence
            self._output[at:end] = 0
            self._output[end - 1] = run.output
            at = end
            rows.append(end - 1)
        self.struct.n_tokens = at
        return rows
