"""A bf16 GGUF made smaller by llama.cpp's own quantizer, and what it did to each tensor."""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf

from export.imatrix import FILE, Columns, ImportanceMatrix
from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError
from kormed_edge.llama_log import llama_log

OnProgress = Callable[[int, int], None]

# Names that llama.cpp has, but that quantize nothing, or only the experts of a mixture, or that
# it reads and does not write.
_OTHER_TYPES = {"F16", "BF16", "MXFP4_MOE", "NVFP4"}
# Types that give some tensor of a block so few bits that llama.cpp refuses to choose them blindly.
# Source: `tensor_requires_imatrix` and the recipes in llama.cpp's src/llama-quant.cpp.
_FEWEST_BITS = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"}
NEED_IMATRIX = _FEWEST_BITS | {"IQ3_XS", "Q2_K_S"}

_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_FALLBACK = re.compile(
    r"warning: (?P<name>\S+)\s+- ncols\s+(?P<columns>\d+) not divisible by.+?"
    r"required for type\s+(?P<asked>\w+)\).*?-> falling back to\s+(?P<used>\w+)"
)
_FALLBACKS = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
_WHOLE_LOG_LINES = 8
_TEXT_BYTES = 127  # of a text among llama.cpp's overrides, without the NUL that ends it


@dataclass(frozen=True, slots=True)
class Fallback:
    """A matrix whose `columns` are no multiple of the block of `asked`, the type in the recipe.

    `used` is llama.cpp's substitute with smaller blocks; it costs size, not quality.
    """

    asked: str
    used: str
    columns: int


@dataclass(frozen=True, slots=True)
class QuantizedGguf:
    """A finished file. `types`: how many tensors of each type it holds; `fallbacks` by tensor."""

    type: str
    path: Path
    bytes: int
    types: dict[str, int]
    fallbacks: dict[str, Fallback]


@cache
def known_types() -> dict[str, int]:
    """llama.cpp's number of every type name that can be written, and read back by `gguf`."""
    import llama_cpp

    return {
        name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        for name in (member.removeprefix("MOSTLY_") for member in gguf.LlamaFileType.__members__)
        if name not in _OTHER_TYPES and hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    }


def check_types(types: Sequence[str], has_imatrix: bool) -> None:
    """Raise `ExportError` that names every type which is unknown, or lacks the matrix it needs."""
    unknown = [type for type in types if type not in known_types()]
    blind = [type for type in types if type in NEED_IMATRIX and not has_imatrix]
    found, expected = [], []
    if unknown:
        found.append(f"no GGUF type {', '.join(unknown)}")
        expected.append("types among " + ", ".join(known_types()))
    if blind:
        found.append(f"no importance matrix for {', '.join(blind)}")
        expected.append("a matrix for types of so few bits")
    if found:
        remedy = "turn on export.imatrix, or choose other types" if blind else "mend export.types"
        raise ExportError("; ".join(found), "; ".join(expected), remedy)


def quantize(
    source: Path,
    target: Path,
    type: str,
    on_progress: OnProgress | None = None,
    imatrix: ImportanceMatrix | None = None,
) -> QuantizedGguf:
    """Write `target` as `type`, one of `known_types`, from a bf16 GGUF.

    `imatrix` says which columns matter; it must hold every matrix of the model's blocks.
    `on_progress` hears tensors done and tensors in all, as far as llama.cpp's log tells them.
    Raises `ExportError`; a failed run leaves no file.
    """
    check_types([type], imatrix is not None)
    if not source.is_file():
        raise ExportError(f"no file {source}", "a bf16 GGUF", "kormed export")
    if imatrix:
        _require_match(imatrix, source)
    require_space(target.parent, source.stat().st_size, target.name)
    temporary = target.with_name(target.name + ".tmp")
    try:
        log = _run(source, temporary, type, on_progress, imatrix)
        tensors = _tensors(temporary)
        fallbacks = _fallbacks(log, tensors, type)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    types = Counter(tensor.tensor_type.name for tensor in tensors)
    return QuantizedGguf(type, target, target.stat().st_size, dict(types), fallbacks)


def _tensors(path: Path) -> list[gguf.ReaderTensor]:
    try:
        return gguf.GGUFReader(path).tensors
    except (OSError, ValueError, IndexError) as error:
        raise ExportError(f"{path} is unreadable: {error}", "a whole GGUF") from error


def _require_match(imatrix: ImportanceMatrix, source: Path) -> None:
    """llama.cpp itself goes on without a word where the matrix of another model has no entry."""
    tensors = {tensor.name: tensor for tensor in _tensors(source)}
    blocks = {n for n, t in tensors.items() if n.startswith("blk.") and len(t.shape) > 1}
    missing = sorted(blocks - set(imatrix.sums))
    strange = [
        name
        for name, sums in imatrix.sums.items()
        if name not in tensors or len(sums) != tensors[name].shape[0]
    ]
    if missing or strange:
        raise ExportError(
            f"importance matrix: nothing for {missing[:4]}, no place for {strange[:4]}",
            f"one collected from the model in {source.name}",
            "make it again with `kormed export`",
        )


def _fallbacks(log: str, tensors: list[gguf.ReaderTensor], type: str) -> dict[str, Fallback]:
    """What the log says of each tensor, held against the file."""
    fallbacks = {
        match["name"]: Fallback(
            match["asked"].upper(), match["used"].upper(), int(match["columns"])
        )
        for match in _FALLBACK.finditer(log)
    }
    stored = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    counted = _FALLBACKS.search(log)
    wrong = [name for name, fallback in fallbacks.items() if stored.get(name) != fallback.used]
    if wrong or len(fallbacks) != (int(counted[1]) if counted else 0):
        raise ExportError(
            f"llama.cpp's log and its file differ on {wrong[:4] or 'the number of fallbacks'}",
            "the log of llama-cpp-python 0.3.36",
        )
    return fallbacks | _silent_fallback(fallbacks, tensors, type)


def _silent_fallback(
    logged: dict[str, Fallback], tensors: list[gguf.ReaderTensor], type: str
) -> dict[str, Fallback]:
    """The head, or the embedding that serves as one: it becomes Q8_0 without a line in the log.

    A head is Q8_0 only if that was the type asked for, or if its rows did not fit the blocks.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    head = by_name.get("output.weight", by_name["token_embd.weight"])
    if head.name in logged or type == "Q8_0" or head.tensor_type.name != "Q8_0":
        return {}
    asked = "Q5_K" if type in _FEWEST_BITS else "Q6_K"
    return {head.name: Fallback(asked, "Q8_0", int(head.shape[0]))}


def _run(
    source: Path,
    target: Path,
    type: str,
    on_progress: OnProgress | None,
    imatrix: ImportanceMatrix | None,
) -> str:
    """llama.cpp's log of a finished run."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = len(os.sched_getaffinity(0))
    parameters.ftype = known_types()[type]
    means = imatrix.means() if imatrix else {}  # llama.cpp reads them through bare addresses
    if imatrix:
        parameters.imatrix = _entries(means)
        parameters.kv_overrides = _overrides(imatrix)
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        if on_progress and (match := _PROGRESS.search(text)):
            on_progress(int(match[1]), int(match[2]))

    with llama_log(on_line):
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
        )
    log = "".join(lines)
    if failed:
        shown = " / ".join(log.strip().splitlines()[-_WHOLE_LOG_LINES:])
        raise ExportError(f"llama.cpp could not quantize {source}: {shown}", "a whole bf16 GGUF")
    return log


def _entries(means: dict[str, Columns]) -> Any:
    """llama.cpp's table of an importance matrix; an entry without a name ends it."""
    import llama_cpp

    table = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(table, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return table


def _overrides(imatrix: ImportanceMatrix) -> Any:
    """The keys by which llama-quantize records the matrix; an entry without a key ends them."""
    import llama_cpp

    numbers = {"entries_count": len(imatrix.sums), "chunks_count": imatrix.chunks}
    texts = {"file": FILE, "dataset": ", ".join(imatrix.datasets)}
    table = (llama_cpp.llama_model_kv_override * (len(numbers) + len(texts) + 1))()
    for entry, (key, value) in zip(table, (numbers | texts).items(), strict=False):
        entry.key = f"quantize.imatrix.{key}".encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            whole_letters = value.encode()[:_TEXT_BYTES].decode("utf-8", "ignore").encode()
            entry.tag, entry.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, whole_letters
    return table
