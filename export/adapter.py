"""A LoRA adapter as a GGUF of its own, which llama.cpp applies beside its base.

The base may be of any type, bf16 or quantized. Tensors and keys are those of llama.cpp's
convert_lora_to_gguf.py; what its loader wants is in src/llama-adapter.cpp, at the commit inside
llama-cpp-python 0.3.36.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import numpy.typing as npt

from export import architectures
from export.architectures import Architecture
from export.checkpoint import Checkpoint, TensorFile
from export.convert import OnTensor, Provenance, WrittenGguf, add_provenance
from export.merge import LoraDelta
from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError

if TYPE_CHECKING:
    import torch

HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One side of one module: `values` (rows first) as they stand in the file."""

    name: str
    values: npt.NDArray[np.generic]
    type: gguf.GGMLQuantizationType


def write_adapter_gguf(
    base: Path,
    adapter: Path,
    target: Path,
    provenance: Provenance,
    on_tensor: OnTensor | None = None,
) -> WrittenGguf:
    """Write `target` from a LoRA adapter folder; of the base folder only names and shapes are read.

    Holds the adapter in memory (160 MB for 7B at rank 16 in fp32). Raises `BaseModelError`,
    `ExportError` for every adapter that `LoraDelta` refuses, or `DiskSpaceError`; a failed run
    leaves no file.
    """
    checkpoint = Checkpoint(base)
    architecture = architectures.recognise(checkpoint)
    delta = LoraDelta.open(adapter, tied=architecture.tied)
    delta.check(checkpoint.shapes)
    tensors = list(_tensors(architecture, checkpoint, delta))
    needed = sum(tensor.values.nbytes for tensor in tensors) + HEADER_BYTES
    require_space(target.parent, needed, target.name)

    writer = gguf.GGUFWriter(None, architecture.name)
    add_provenance(writer, provenance, None)
    _add_adapter(writer, _alpha(delta, tensors))
    temporary = target.with_name(target.name + ".tmp")
    try:
        _write(writer, temporary, tensors, on_tensor)
        temporary.replace(target)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    shapes = {tensor.name: tensor.values.shape for tensor in tensors}
    return WrittenGguf(target, target.stat().st_size, shapes, merged=0)


def _tensors(
    architecture: Architecture, checkpoint: Checkpoint, delta: LoraDelta
) -> Iterator[_Tensor]:
    """A (rank, inputs) and B (outputs, rank) of every module, under its weight's GGUF name.

    The product's rows are B's rows, so B alone takes llama.cpp's order of a q or k projection.
    """
    names = architectures.tensor_names(architecture, checkpoint)
    file = TensorFile(delta.folder / "adapter_model.safetensors")
    for module in delta.modules:
        weight = f"{module}.weight"
        a, b = (file.tensor(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
        yield _as_stored(f"{names[weight]}.lora_a", a)
        yield _as_stored(f"{names[weight]}.lora_b", architectures.reorder(architecture, weight, b))


def _as_stored(name: str, value: "torch.Tensor") -> _Tensor:
    """The same values: bf16 as it is, everything else in F32.

    llama.cpp multiplies BF16 on the CPU and with CUDA, as it does a bf16 base. F16 it multiplies
    too, but on the CPU it rounds what flows in to F16, whose largest value is 65,504: so fp16
    widens. numpy has no bf16; its bits travel as uint16.
    """
    import torch

    if value.dtype == torch.bfloat16:
        bits = value.contiguous().view(torch.uint16).numpy()
        return _Tensor(name, bits, gguf.GGMLQuantizationType.BF16)
    return _Tensor(name, value.float().contiguous().numpy(), gguf.GGMLQuantizationType.F32)


def _alpha(delta: LoraDelta, tensors: list[_Tensor]) -> float:
    """The alpha with which llama.cpp's alpha / rank is the adapter's scale, rsLoRA's too."""
    if delta.scale == 0:
        raise ExportError(
            f"{delta.folder}: lora_alpha 0, which llama.cpp reads as a scale of 1",
            "another lora_alpha",
            "train the adapter again with `kormed train`",
        )
    rank: int = tensors[0].values.shape[0]
    return delta.scale * rank


def _add_adapter(writer: gguf.GGUFWriter, alpha: float) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write(
    writer: gguf.GGUFWriter, path: Path, tensors: list[_Tensor], on_tensor: OnTensor | None
) -> None:
    for tensor in tensors:
        values = tensor.values
        writer.add_tensor_info(tensor.name, values.shape, values.dtype, values.nbytes, tensor.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, tensor in enumerate(tensors, 1):
        writer.write_tensor_data(tensor.values)
        if on_tensor:
            on_tensor(done, len(tensors), tensor.name)
    writer.flush()
