"""The model families that the kit writes as GGUF, and what llama.cpp wants to know about each.

Source of every key: llama.cpp's own converter at the commit inside llama-cpp-python 0.3.36
(conversion/base.py, llama.py, qwen.py); `tests/test_convert.py` compares with it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from export.checkpoint import Checkpoint
from kormed_edge.errors import BaseModelError

if TYPE_CHECKING:
    import torch

SUPPORTED = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]
_BLOCK = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{name}.weight" for name in _LINEAR),
    *(f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
]
_BLOCK_OF = {
    gguf.MODEL_ARCH.LLAMA: [],
    gguf.MODEL_ARCH.QWEN2: [f"self_attn.{name}.bias" for name in _LINEAR[:3]],
    gguf.MODEL_ARCH.QWEN3: ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
}
# Which biases llama.cpp's graph of a family adds; any other would be lost without a word.
_OPTIONAL = {
    gguf.MODEL_ARCH.LLAMA: re.compile(r"self_attn\.[qkvo]_proj\.bias|mlp\.\w+_proj\.bias"),
    gguf.MODEL_ARCH.QWEN2: re.compile(r"(?!)"),
    gguf.MODEL_ARCH.QWEN3: re.compile(r"(?!)"),
}
_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One base model's family and sizes, as `config.json` gives them."""

    arch: gguf.MODEL_ARCH
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.arch]

    @property
    def tied(self) -> bool:
        return bool(self.config["tie_word_embeddings"])

    @property
    def head_dim(self) -> int:
        own = self.config.get("head_dim")
        return int(own or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def rope(self) -> dict[str, Any]:
        return self.config.get("rope_parameters") or {}

    def required(self) -> set[str]:
        """Hugging Face names of the tensors without which the model is incomplete."""
        names = {EMBEDDING, "model.norm.weight"} | (set() if self.tied else {HEAD})
        for block in range(self.config["num_hidden_layers"]):
            names |= {f"model.layers.{block}.{part}" for part in _BLOCK + _BLOCK_OF[self.arch]}
        return names


def recognise(checkpoint: Checkpoint) -> Architecture:
    """The family of a base model; raises `BaseModelError` for any that the kit does not write."""
    listed = checkpoint.config.get("architectures") or ["none named in config.json"]
    if listed[0] not in SUPPORTED:
        raise BaseModelError(
            f"{checkpoint.folder}: architecture {listed[0]}",
            "one of " + ", ".join(SUPPORTED),
            "choose a base model of a supported family",
        )
    architecture = Architecture(SUPPORTED[listed[0]], checkpoint.config)
    _refuse_other_maths(checkpoint.folder, architecture)
    return architecture


def _refuse_other_maths(folder: Path, architecture: Architecture) -> None:
    """llama.cpp would load such a model and compute something else."""
    config, rope = architecture.config, architecture.rope.get("rope_type", "default")
    scalings = ["default", "linear", "yarn"]
    if architecture.arch == gguf.MODEL_ARCH.LLAMA:
        scalings.append("llama3")
    found = [f"rope_type {rope}"] if rope not in scalings else []
    if config.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act {config['hidden_act']}")
    if config.get("use_sliding_window"):
        found.append("use_sliding_window")
    if found:
        raise BaseModelError(
            f"{folder}/config.json: {', '.join(found)}",
            f"hidden_act silu, no sliding window, rope_type {' or '.join(scalings)}",
            "choose a base model without it",
        )


def tensor_names(architecture: Architecture, checkpoint: Checkpoint) -> dict[str, str]:
    """GGUF name by Hugging Face name of every tensor to write, in the checkpoint's order.

    Raises `BaseModelError` when a tensor is missing or has no place in the family.
    """
    required = architecture.required()
    optional = {name for name in checkpoint.shapes if _is_optional(architecture, name)}
    missing = sorted(required - set(checkpoint.shapes))
    unknown = [n for n in checkpoint.shapes if n not in required | optional and not _surplus(n)]
    if missing or unknown:
        raise BaseModelError(
            f"{checkpoint.folder}: missing {missing[:4]}, unknown {unknown[:4]}",
            f"the tensors of {architecture.name}, each once",
            "download the base model again",
        )
    rows, words = checkpoint.shapes[EMBEDDING][0], architecture.config["vocab_size"]
    if rows != words:
        raise BaseModelError(
            f"{checkpoint.folder}: {rows} embedding rows, vocab_size {words}", "the same number"
        )
    table = gguf.get_tensor_name_map(architecture.arch, architecture.config["num_hidden_layers"])
    return {n: _mapped(table, n) for n in checkpoint.shapes if n in required | optional}


def _is_optional(architecture: Architecture, name: str) -> bool:
    inside = _IN_BLOCK.fullmatch(name)
    return bool(inside and _OPTIONAL[architecture.arch].fullmatch(inside[2]))


def _surplus(name: str) -> bool:
    """Tensors left out: old rotary tables, and the copy of a tied embedding some bases carry."""
    return name.endswith(".rotary_emb.inv_freq") or name == HEAD


def _mapped(table: gguf.TensorNameMap, name: str) -> str:
    mapped: str | None = table.get_name(name, try_suffixes=(".weight", ".bias"))
    if mapped is None:
        raise BaseModelError(f"llama.cpp has no name for tensor {name}")
    return mapped


def add_parameters(writer: gguf.GGUFWriter, architecture: Architecture) -> None:
    """Sizes and constants of the model, without which llama.cpp cannot build its graph."""
    config = architecture.config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim") is not None:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if architecture.arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(architecture.head_dim)
    _add_rope(writer, architecture.rope)


def _add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    if (theta := rope.get("rope_theta")) is not None:
        writer.add_rope_freq_base(theta)
    kind = rope.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        _add_yarn(writer, rope)


def _add_yarn(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    optional = {
        "extrapolation_factor": writer.add_rope_scaling_yarn_ext_factor,
        "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
        "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
        "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
    }
    for key, add in optional.items():
        if rope.get(key) is not None:
            add(rope[key])


def rope_factors(architecture: Architecture) -> npt.NDArray[np.float32] | None:
    """Llama 3's divisor of each rotary frequency, or None for a model without one.

    Waves that are short against the trained context stay as they are, long ones are stretched by
    `factor`, those between are blended. Source: `generate_extra_tensors` in conversion/llama.py.
    """
    rope = architecture.rope
    if rope.get("rope_type") != "llama3":
        return None
    import torch

    steps = torch.arange(0, architecture.head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / (rope["rope_theta"] ** (steps / architecture.head_dim))
    wave = 2 * torch.pi / frequency
    trained = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (trained / wave - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    stretched = torch.where(wave > trained / low, float(factor), blended)
    factors: npt.NDArray[np.float32] = torch.where(wave < trained / high, 1.0, stretched).numpy()
    return factors


def reorder(architecture: Architecture, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """The rows of a llama q or k projection in llama.cpp's order; any other tensor as it is.

    Hugging Face rotates the two halves of a head, llama.cpp's llama graph neighbouring pairs.
    """
    if architecture.arch != gguf.MODEL_ARCH.LLAMA or not _IN_BLOCK.fullmatch(name):
        return tensor
    if ".q_proj." in name:
        heads = architecture.config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = architecture.config["num_key_value_heads"]
    else:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
