"""A bf16 GGUF made smaller by llama.cpp's own quantizer, and what it did to each tensor."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf

from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError

OnProgress = Callable[[int, int], None]

# The llama.cpp recipe of each name is a mixture; its base type is what most tensors get.
TYPES = {
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q6_K": gguf.GGMLQuantizationType.Q6_K,
    "Q5_K_M": gguf.GGMLQuantizationType.Q5_K,
    "Q5_K_S": gguf.GGMLQuantizationType.Q5_K,
    "Q4_K_M": gguf.GGMLQuantizationType.Q4_K,
    "Q4_K_S": gguf.GGMLQuantizationType.Q4_K,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "IQ4_XS": gguf.GGMLQuantizationType.IQ4_XS,
    "IQ4_NL": gguf.GGMLQuantizationType.IQ4_NL,
    "Q3_K_M": gguf.GGMLQuantizationType.Q3_K,
}
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_WHOLE_LOG_LINES = 8


@dataclass(frozen=True, slots=True)
class QuantizedGguf:
    """A finished file. `fallbacks`: tensors whose rows do not fit the asked type's blocks, and
    the type of smaller blocks that llama.cpp took instead; it costs size, not quality."""

    type: str
    path: Path
    bytes: int
    fallbacks: dict[str, str]


def quantize(
    source: Path, target: Path, type: str, on_progress: OnProgress | None = None
) -> QuantizedGguf:
    """Write `target` as `type`, a key of `TYPES`, from a bf16 GGUF.

    `on_progress` hears tensors done and tensors in all, as far as llama.cpp's log tells them.
    Raises `ExportError`; a failed run leaves no file.
    """
    if type not in TYPES:
        raise ExportError(f"GGUF type {type}", "one of " + ", ".join(TYPES))
    if not source.is_file():
        raise ExportError(f"no file {source}", "a bf16 GGUF", "kormed export")
    require_space(target.parent, source.stat().st_size, target.name)
    temporary = target.with_name(target.name + ".tmp")
    try:
        _run(source, temporary, type, on_progress)
        fallbacks = read_fallbacks(temporary, type)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return QuantizedGguf(type, target, target.stat().st_size, fallbacks)


def read_fallbacks(path: Path, type: str) -> dict[str, str]:
    """Matrices stored in smaller blocks than `type` has, because their rows did not divide."""
    block, _ = gguf.GGML_QUANT_SIZES[TYPES[type]]
    matrices = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1]
    return {
        tensor.name: tensor.tensor_type.name
        for tensor in matrices
        if gguf.GGML_QUANT_SIZES[tensor.tensor_type][0] < block
    }


def _run(source: Path, target: Path, type: str, on_progress: OnProgress | None) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = len(os.sched_getaffinity(0))
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}")
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        if on_progress and (match := _PROGRESS.search(text)):
            on_progress(int(match[1]), int(match[2]))

    with llama_log(on_line):
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
        )
    if failed:
        shown = " / ".join("".join(lines).strip().splitlines()[-_WHOLE_LOG_LINES:])
        raise ExportError(f"llama.cpp could not quantize {source}: {shown}", "a whole bf16 GGUF")


@contextmanager
def llama_log(on_line: Callable[[str], None]) -> Iterator[None]:
    """Send llama.cpp's log to `on_line` for a while; it is one setting of the whole process."""
    import llama_cpp

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    def forward(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        on_line(text.decode("utf-8", "replace"))

    # llama.cpp keeps only the address: this name is what keeps the function alive.
    callback = llama_cpp.llama_log_callback(forward)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)
