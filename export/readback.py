"""What is in a GGUF, read back and compared with the base and the adapter it was made from.

Nothing here goes through the code that writes the file: names, permutation, scale, sizes and keys
are worked out again, so that a mistake there does not repeat itself here. Only the step through
NF4 is shared, because it is bitsandbytes' own.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from export.checkpoint import TensorFile
from export.merge import is_nf4, through_nf4

if TYPE_CHECKING:
    import torch

OnTensor = Callable[[int, int, str], None]
UNREADABLE = (OSError, ValueError, IndexError)
_ROWS = 1024
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One result. `measured` and `expected` are plain JSON values."""

    name: str
    passed: bool
    measured: dict[str, Any]
    expected: dict[str, Any]


def check_file(path: Path, expected: Mapping[str, tuple[int, ...]]) -> Check:
    """Read a GGUF back: the expected tensors and shapes (rows first), whole, nothing infinite."""
    wanted = {"tensors": len(expected)}
    try:
        tensors = gguf.GGUFReader(path).tensors
        problems = _file_problems(path, tensors, expected)
    except UNREADABLE as error:
        return unreadable(f"file {path.name}", error, wanted)
    measured = {"tensors": len(tensors), "problems": problems[:_SHOWN]}
    return Check(f"file {path.name}", not problems, measured, wanted)


def unreadable(name: str, error: Exception, wanted: dict[str, Any]) -> Check:
    return Check(name, False, {"problems": [f"unreadable: {error}"]}, wanted)


def _file_problems(
    path: Path, tensors: list[gguf.ReaderTensor], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    found = {tensor.name: shape_of(tensor) for tensor in tensors}
    problems = _name_problems(found, expected)
    problems += [
        f"{name} is {list(shape)}, not {list(expected[name])}"
        for name, shape in found.items()
        if shape != expected.get(name, shape)
    ]
    problems += [f"{tensor.name} is not finite" for tensor in tensors if not _finite(tensor)]
    end = max((int(t.data_offset + t.n_bytes) for t in tensors), default=0)
    if not end <= path.stat().st_size < end + gguf.GGUF_DEFAULT_ALIGNMENT:
        problems.append(f"{path.stat().st_size} bytes, tensors end at {end}")
    return problems


def _name_problems(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)
    problems = [f"missing {name}" for name in expected if name not in found]
    return problems + [f"unexpected {name}" for name in found if name not in expected]


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _finite(tensor: gguf.ReaderTensor) -> bool:
    """Whether no value is infinite or NaN; quantized blocks are not looked into."""
    exponent = np.uint16(0x7F80)
    for start in range(0, len(tensor.data), _ROWS):
        part = tensor.data[start : start + _ROWS]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32 and not np.isfinite(part).all():
            return False
        is_half = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        if is_half and ((part.view(np.uint16) & exponent) == exponent).any():
            return False
    return True


def check_weights(
    base: Path, adapter: Path | None, onto: str, path: Path, on_tensor: OnTensor | None = None
) -> Check:
    """Compute every weight of a bf16 GGUF again, W + alpha/r·B·A in fp32, and compare.

    Rounding is monotone, so a stored value is right exactly when it lies between the roundings of
    the result less and plus what fp32 may have lost in it; without an adapter nothing may be lost.
    Needs memory for a few times the largest tensor.
    """
    name = f"weights {path.name}"
    reference = _Reference(base, adapter, onto)
    wanted = {"tensors": len(reference.names), "merged": reference.adapted, "problems": []}
    wanted |= {"onto": onto if adapter else None, "worst_error": 2**-8}
    try:
        # Copy-on-write only because torch warns of memory that it could not write to.
        reader = gguf.GGUFReader(path, "c")
        measured = _compare_weights(reference, reader, on_tensor)
    except UNREADABLE as error:
        return unreadable(name, error, wanted)
    passed = all(measured[key] == wanted[key] for key in wanted if key != "worst_error")
    measured["problems"] = measured["problems"][:_SHOWN]
    return Check(name, passed, measured, wanted)


def _compare_weights(
    reference: "_Reference", reader: gguf.GGUFReader, on_tensor: OnTensor | None
) -> dict[str, Any]:
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    problems = _name_problems(tensors, reference.names)
    found = [name for name in reference.names if name in tensors]
    worst, worst_error = None, 0.0
    onto = reader.get_field("kormed.onto")
    for done, name in enumerate(found, 1):
        problem, error = _compare_tensor(reference, tensors[name])
        problems += [f"{name}: {problem}"] if problem else []
        if error > worst_error:
            worst, worst_error = name, error
        if on_tensor:
            on_tensor(done, len(found), name)
    return {
        "tensors": len(found),
        "merged": len(reference.merged),
        "onto": onto.contents() if onto else None,
        "worst": worst,
        "worst_error": worst_error,
        "problems": problems,
    }


def _compare_tensor(reference: "_Reference", tensor: gguf.ReaderTensor) -> tuple[str, float]:
    """What is wrong with a tensor, and its largest error, as a share of its largest value."""
    expected, slack = reference.tensor(tensor.name)
    try:
        stored = reference.unpermuted(tensor.name, _values(tensor))
    except KeyError:
        return f"stored as {tensor.tensor_type.name}", 1.0
    if stored.shape != expected.shape:
        return f"{list(stored.shape)}, not {list(expected.shape)}", 1.0
    wrong, error = _difference(stored, expected, slack)
    if not wrong:
        return "", error
    return f"{wrong} of {stored.numel()} values, off by up to {error:.2g} of the largest", error


def _difference(
    stored: "torch.Tensor", expected: "torch.Tensor", slack: float
) -> tuple[int, float]:
    """How many values are wrong, and the largest error as a share of the largest value."""
    wrong, error, largest = 0, 0.0, 1e-30
    for found, value in zip(stored.split(_ROWS), expected.split(_ROWS), strict=True):
        exact = value.float()
        low, high = ((exact + part).to(found.dtype) for part in (-slack, slack))
        wrong += found.numel() - int(((low <= found) & (found <= high)).sum())
        error = max(error, float((found.float() - exact).abs().max()))
        largest = max(largest, float(exact.abs().max()))
    return wrong, error / largest


def _values(tensor: gguf.ReaderTensor) -> "torch.Tensor":
    import torch

    types = gguf.GGMLQuantizationType
    dtype = {types.BF16: torch.bfloat16, types.F16: torch.float16, types.F32: torch.float32}
    data = torch.from_numpy(tensor.data.reshape(-1))
    return data.view(dtype[tensor.tensor_type]).reshape(shape_of(tensor))


class _Reference:
    """What the base and the adapter say, under the names of the GGUF."""

    def __init__(self, base: Path, adapter: Path | None, onto: str) -> None:
        from transformers import AutoConfig

        self.config: Any = AutoConfig.from_pretrained(base, local_files_only=True)
        self.names: dict[str, str | None] = {}
        self.merged: set[str] = set()
        self._onto = onto
        self._base = _open_tensors(base, "model*.safetensors")
        self._lora = _open_tensors(adapter, "adapter_model.safetensors") if adapter else {}
        self._scale = _scale(adapter) if adapter else 0.0
        self.adapted = sum(".lora_A." in name for name in self._lora)
        table = gguf.get_tensor_name_map(_arch(self.config), self.config.num_hidden_layers)
        for name in self._base:
            tied_copy = name == "lm_head.weight" and self.config.tie_word_embeddings
            if not tied_copy and not name.endswith(".rotary_emb.inv_freq"):
                self.names[table.get_name(name, (".weight", ".bias")) or name] = name
        if self.config.rope_parameters.get("rope_type") == "llama3":
            self.names["rope_freqs.weight"] = None

    def tensor(self, name: str) -> "tuple[torch.Tensor, float]":
        """The values of a GGUF tensor, and how far fp32 may have them off."""
        source = self.names[name]
        if source is None:
            return _frequency_divisors(self.config), 1e-5
        weight = self._base[source].tensor(source)
        if self._onto == "nf4" and self.adapted and is_nf4(source):
            weight = through_nf4(weight)
        return self._with_adapter(source.removesuffix(".weight"), weight)

    def _with_adapter(self, module: str, weight: "torch.Tensor") -> "tuple[torch.Tensor, float]":
        keys = [f"base_model.model.{module}.lora_{side}.weight" for side in "AB"]
        if keys[0] not in self._lora:
            return weight, 0.0
        a, b = (self._lora[key].tensor(key).float() for key in keys)
        self.merged.add(module)
        # No partial sum of a product exceeds the norms of its row and column (Cauchy–Schwarz),
        # and each of the r + 2 operations loses 2^-24 of it, here as in the export.
        reach = self._scale * float(b.norm(dim=1).max() * a.norm(dim=0).max())
        slack = (len(a) + 2) * 2**-23 * (float(weight.abs().max()) + reach)
        return weight.float() + self._scale * (b @ a), slack

    def unpermuted(self, name: str, stored: "torch.Tensor") -> "torch.Tensor":
        """The rows of llama's q and k as Hugging Face has them: halves of a head, not pairs."""
        heads = {"attn_q": self.config.num_attention_heads}
        heads["attn_k"] = self.config.num_key_value_heads
        part = name.split(".")[-2]
        if self.config.model_type != "llama" or part not in heads:
            return stored
        pairs = stored.reshape(heads[part], -1, 2, *stored.shape[1:])
        return pairs.transpose(1, 2).reshape(stored.shape)


def _open_tensors(folder: Path, pattern: str) -> dict[str, TensorFile]:
    """Tensor name to the safetensors file that holds it."""
    files = [TensorFile(path) for path in sorted(folder.glob(pattern))]
    return {name: file for file in files for name in file.shapes}


def _scale(adapter: Path) -> float:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _arch(config: Any) -> gguf.MODEL_ARCH:
    return next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)


def _frequency_divisors(config: Any) -> "torch.Tensor":
    """By how much transformers slows each rotary frequency of a Llama 3 model."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(len(slowed), dtype=torch.float32) / len(slowed)
    theta = float(config.rope_parameters["rope_theta"])
    divisors: torch.Tensor = theta**-steps / slowed
    return divisors
