"""Base weights, with or without an adapter, written as one bf16 GGUF, a tensor at a time.

Tensors and keys are those of llama.cpp's own converter. Left out on purpose are the base's
sampling advice (`general.sampling.*`), which was given for chat, and names guessed from folders;
what the caller knows comes in as `Provenance`. The beginning token is always off.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from export import architectures
from export.architectures import Architecture
from export.checkpoint import Checkpoint
from export.hf_folder import HfFolder
from export.merge import ONTO, LoraDelta, is_nf4, through_nf4
from export.tokenizer import add_tokenizer
from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError

if TYPE_CHECKING:
    import torch

OnTensor = Callable[[int, int, str], None]
HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from, for the keys of its GGUF. An empty value writes no key.

    `adapter` and `data` are hashes of the manifests that it was made from.
    """

    name: str
    run: str
    version: str
    prompt: str
    license: str = ""
    finetune: str = ""
    base_model: str = ""
    base_revision: str = ""
    datasets: tuple[str, ...] = ()
    adapter: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class WrittenGguf:
    """A finished file: its size, the shape of every tensor (rows first), merged weights."""

    path: Path
    bytes: int
    shapes: dict[str, tuple[int, ...]]
    merged: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to write. `source` is its Hugging Face name, or None for the rope factors."""

    name: str
    source: str | None
    shape: tuple[int, ...]

    @property
    def type(self) -> gguf.GGMLQuantizationType:
        vector = len(self.shape) < 2 or self.name.endswith("_norm.weight")
        return gguf.GGMLQuantizationType.F32 if vector else gguf.GGMLQuantizationType.BF16

    @property
    def dtype(self) -> "np.dtype[np.float32] | np.dtype[np.uint16]":
        wide = self.type == gguf.GGMLQuantizationType.F32
        return np.dtype(np.float32) if wide else np.dtype(np.uint16)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def write_gguf(
    base: Path,
    adapter: Path | None,
    target: Path,
    provenance: Provenance,
    onto: str = "original",
    keep_hf: Path | None = None,
    on_tensor: OnTensor | None = None,
) -> WrittenGguf:
    """Write `target` from a base folder and, if given, a LoRA adapter folder.

    `onto` says which base weights take the adapter: "original", or "nf4", which first passes
    every projection through NF4 as training saw it. `keep_hf` names a folder to be written with
    the same merged weights in Hugging Face's format. Needs memory for about two copies of the
    largest tensor. Raises `BaseModelError`, `ExportError` or `DiskSpaceError`; a failed run
    leaves no file.
    """
    if onto not in ONTO:
        raise ExportError(f"onto {onto!r}", " or ".join(ONTO))
    checkpoint = Checkpoint(base)
    architecture = architectures.recognise(checkpoint)
    delta = LoraDelta.open(adapter, tied=architecture.tied) if adapter else None
    if delta:
        delta.check(checkpoint.shapes)
    plan = _plan(architecture, checkpoint)
    needed = sum(t.bytes for t in plan) + HEADER_BYTES
    require_space(target.parent, needed * (2 if keep_hf else 1), f"{target.name}")

    writer = gguf.GGUFWriter(None, architecture.name)
    add_provenance(writer, provenance, onto if delta else None)
    _add_model(writer, architecture, checkpoint, plan)
    temporary = target.with_name(target.name + ".tmp")
    sources = [tensor.source for tensor in plan if tensor.source]
    try:
        with HfFolder(checkpoint, sources, keep_hf) if keep_hf else nullcontext() as copy:
            values = _values(plan, architecture, _merged(checkpoint, sources, delta, onto), copy)
            _write(writer, temporary, plan, values, on_tensor)
            merged = delta.finish() if delta else 0
        temporary.replace(target)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return WrittenGguf(target, target.stat().st_size, {t.name: t.shape for t in plan}, merged)


def _plan(architecture: Architecture, checkpoint: Checkpoint) -> list[_Tensor]:
    names = architectures.tensor_names(architecture, checkpoint)
    plan = [_Tensor(name, source, checkpoint.shapes[source]) for source, name in names.items()]
    if (factors := architectures.rope_factors(architecture)) is not None:
        plan.insert(0, _Tensor("rope_freqs.weight", None, factors.shape))
    return plan


def _values(
    plan: list[_Tensor],
    architecture: Architecture,
    merged: "Iterator[tuple[str, torch.Tensor]]",
    copy: HfFolder | None,
) -> Iterator[npt.NDArray[np.generic]]:
    if (factors := architectures.rope_factors(architecture)) is not None:
        yield factors
    stored = (tensor.type for tensor in plan if tensor.source)
    for type_, (name, value) in zip(stored, merged, strict=True):
        if copy:
            copy.write(name, value)
        yield _as_stored(architectures.reorder(architecture, name, value), type_)


def _merged(
    checkpoint: Checkpoint, names: list[str], delta: LoraDelta | None, onto: str
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The base's tensors in order, with the adapter's part added."""
    for name in names:
        value = checkpoint.tensor(name)
        if delta and onto == "nf4" and is_nf4(name):
            value = through_nf4(value)
        if delta and delta.takes(name):
            value = delta.merged(name, value)
        yield name, value


def _as_stored(value: "torch.Tensor", stored: gguf.GGMLQuantizationType) -> npt.NDArray[np.generic]:
    """The values in the file's type; numpy has no bf16, so its bits travel as uint16."""
    import torch

    if stored == gguf.GGMLQuantizationType.F32:
        single: npt.NDArray[np.float32] = value.float().contiguous().numpy()
        return single
    half: npt.NDArray[np.uint16] = value.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return half


def _write(
    writer: gguf.GGUFWriter,
    path: Path,
    plan: list[_Tensor],
    values: Iterator[npt.NDArray[np.generic]],
    on_tensor: OnTensor | None,
) -> None:
    for tensor in plan:
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.dtype, tensor.bytes, tensor.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One thread writes while the next tensor is read and merged, so that two are held at most;
    # another makes the disk work from the start, instead of at the end.
    with ThreadPoolExecutor(max_workers=2) as pool:
        written: Future[Any] = pool.submit(int)
        synced: Future[Any] = written
        for done, (tensor, value) in enumerate(zip(plan, values, strict=True), 1):
            written.result()
            written = pool.submit(writer.write_tensor_data, value)
            if synced.done():
                synced = pool.submit(_sync, writer)
            if on_tensor:
                on_tensor(done, len(plan), tensor.name)
        written.result()
    writer.flush()
    _sync(writer)


def _sync(writer: gguf.GGUFWriter) -> None:
    for file in writer.fout or ():
        os.fdatasync(file.fileno())


def _add_model(
    writer: gguf.GGUFWriter, architecture: Architecture, checkpoint: Checkpoint, plan: list[_Tensor]
) -> None:
    parameters = sum(int(np.prod(tensor.shape)) for tensor in plan)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_size_label(gguf.size_label(parameters, parameters, 0, 0))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architectures.add_parameters(writer, architecture)
    add_tokenizer(writer, checkpoint.folder, rows=checkpoint.config["vocab_size"])


def add_provenance(writer: gguf.GGUFWriter, given: Provenance, onto: str | None) -> None:
    """Write where a model comes from; `onto` is None for a file that holds no adapter."""
    writer.add_name(given.name)
    writer.add_license(given.license)
    writer.add_finetune(given.finetune)
    if given.base_model:
        _add_base_model(writer, given)
    if given.datasets:
        writer.add_dataset_count(len(given.datasets))
    for i, dataset in enumerate(given.datasets):
        writer.add_dataset_name(i, dataset)
    writer.add_string("kormed.run", given.run)
    writer.add_string("kormed.version", given.version)
    writer.add_string("kormed.prompt", given.prompt)
    writer.add_string("kormed.onto", onto or "")
    writer.add_string("kormed.adapter", given.adapter)
    writer.add_string("kormed.data", given.data)


def _add_base_model(writer: gguf.GGUFWriter, given: Provenance) -> None:
    organization, _, name = given.base_model.rpartition("/")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, name)
    writer.add_base_model_version(0, given.base_revision)
    if organization:
        writer.add_base_model_organization(0, organization)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{given.base_model}")
