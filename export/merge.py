"""LoRA folded into the base: one weight at a time, computed in fp32 and rounded once.

PEFT's own merge adds a bf16 product to a bf16 weight, two roundings, and holds the whole model.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.checkpoint import TensorFile
from kormed_edge.errors import ExportError

if TYPE_CHECKING:
    import torch

ONTO = ("original", "nf4")
NF4_BLOCK = 64
_BLOCK_VALUES = 1 << 23

# Settings that change what the adapter computes, and the values under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # PiSSA, OLoRA, CorDA, LoftQ and their kind also change the base, which is not in the folder.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_MUST_BE_OFF = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias",
    "trainable_token_indices", "target_parameters", "layer_replication", "megatron_config",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "velora_config", "monteclora_config",
    "arrow_config", "kasa_config",
)  # fmt: skip
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(slots=True)
class LoraDelta:
    """A PEFT LoRA adapter: which base weights it changes, and by how much.

    Raises `ExportError` for every kind of adapter that this arithmetic would get wrong.
    """

    folder: Path
    scale: float
    modules: list[str]
    _file: TensorFile
    _used: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: Path, *, tied: bool) -> "LoraDelta":
        """`tied`: the base's head is its embedding, so an adapter on either would change both."""
        config = _read_config(folder)
        _refuse_settings(folder, config)
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise _refusal(folder, "no adapter_model.safetensors", "the output of `kormed train`")
        file = TensorFile(weights)
        rank = config["r"]
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return cls(folder, scale, _modules(folder, file, rank, tied), file)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise unless the base has a weight of the right shape for every adapter tensor."""
        for module in self.modules:
            expected = self._shape(module)
            found = shapes.get(f"{module}.weight")
            if found is None:
                raise _refusal(self.folder, f"the base has no {module}", "the adapter's own base")
            if found != expected:
                raise _refusal(
                    self.folder,
                    f"{module} is {list(found)} in the base, {list(expected)} in the adapter",
                    "the adapter's own base",
                )

    def takes(self, name: str) -> bool:
        return name.removesuffix(".weight") in self.modules

    def merged(self, name: str, weight: "torch.Tensor") -> "torch.Tensor":
        """The base weight plus alpha/r · B·A (alpha/√r with rsLoRA) in fp32, rounded to bf16.

        By blocks of rows that stay in the processor's cache; whole fp32 copies of a 7B model's
        weights cost more time in page faults than in arithmetic.
        """
        import torch

        module = name.removesuffix(".weight")
        self._used.add(module)
        a, b = (self._file.tensor(_key(module, side)).float() for side in "AB")
        merged = torch.empty(weight.shape, dtype=torch.bfloat16)
        rows = max(1, _BLOCK_VALUES // weight.shape[1])
        for start in range(0, len(weight), rows):
            block = slice(start, start + rows)
            merged[block] = weight[block].float().addmm_(b[block], a, alpha=self.scale)
        return merged

    def finish(self) -> int:
        """Number of weights changed; raises unless every adapter tensor was used."""
        if left := sorted(set(self.modules) - self._used):
            raise _refusal(self.folder, f"{len(left)} modules never merged: {left[:4]}", "none")
        return len(self._used)

    def _shape(self, module: str) -> tuple[int, int]:
        a, b = (self._file.shapes[_key(module, side)] for side in "AB")
        return b[0], a[1]


def through_nf4(weight: "torch.Tensor") -> "torch.Tensor":
    """The weight as a 4-bit base shows it to its adapter: NF4, blocks of 64, double quantization.

    QLoRA trains against these values, so an adapter also corrects part of their error. Computed on
    the GPU if there is one, as training did.
    """
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = functional.quantize_4bit(
        weight.to(device, torch.bfloat16),
        blocksize=NF4_BLOCK,
        compress_statistics=True,
        quant_type="nf4",
    )
    return functional.dequantize_4bit(packed, state).cpu()


def is_nf4(name: str) -> bool:
    """Whether a 4-bit base holds this weight in NF4: every projection, never the head."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise _refusal(folder, "no adapter_config.json", "the output of `kormed train`")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _refuse_settings(folder: Path, config: dict[str, Any]) -> None:
    wrong = [f"{key} {config[key]!r}" for key in _MUST_BE_OFF if config.get(key)]
    for key, allowed in _NEUTRAL.items():
        if key in config and config[key] not in allowed:
            wrong.append(f"{key} {config[key]!r}")
    if wrong:
        raise _refusal(folder, ", ".join(wrong), "a plain LoRA adapter, as `kormed train` writes")


def _modules(folder: Path, file: TensorFile, rank: int, tied: bool) -> list[str]:
    sides: dict[str, set[str]] = {}
    for name in file.shapes:
        match = _KEY.fullmatch(name)
        if not match:
            raise _refusal(folder, f"tensor {name}", "lora_A and lora_B of linear layers only")
        sides.setdefault(match["module"], set()).add(match["side"])
    for module, found in sides.items():
        if found != {"A", "B"}:
            raise _refusal(
                folder, f"{module} has lora_{found.pop()} only", "both lora_A and lora_B"
            )
        a, b = (file.shapes[_key(module, side)] for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise _refusal(folder, f"{module} is {list(b)} by {list(a)}", f"rank {rank}")
    if not sides:
        raise _refusal(folder, "no tensors", "lora_A and lora_B of linear layers")
    if tied and "lm_head" in sides:
        raise _refusal(folder, "LoRA on lm_head with tied embeddings", "LoRA on the blocks only")
    if "model.embed_tokens" in sides:
        raise _refusal(folder, "LoRA on the embeddings", "LoRA on linear layers only")
    return list(sides)


def _key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def _refusal(folder: Path, found: str, expected: str) -> ExportError:
    return ExportError(
        f"{folder}: {found}", expected, "train the adapter again with `kormed train`"
    )
