"""Tiny random models with a real byte-level BPE tokenizer, made in a fraction of a second.

`make_base` writes a Hugging Face folder, `make_adapter` a PEFT folder for it. Sizes are chosen so
that every projection has 64 or 96 columns (one or more blocks of 32, none of 256).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CORPUS = [
    "심근경색이 의심되는 환자에서 가장 먼저 시행할 검사는 무엇인가?",
    "1) 심전도 2) 흉부 엑스선 3) 복부 초음파 4) 뇌파 5) 폐 기능 검사",
    "소아의 급성 중이염은 대개 상기도 감염 뒤에 생긴다.",
    "The patient's blood pressure was 90/60 mmHg, and she'd lost 1200 mL.",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = 448
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 32}),
}


def make_tokenizer(kind: str = "qwen2") -> Tokenizer:
    """Byte-level BPE of about 440 tokens, cut like "qwen2" or "smollm"."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    first: Any = pre_tokenizers.Digits(individual_digits=True)
    if kind == "qwen2":
        first = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 8,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_base(
    folder: Path, family: str = "qwen2", *, seed: int = 0, shards: bool = False, **settings: Any
) -> Path:
    """A random bf16 model of "llama" (tied), "qwen2" (untied, biases) or "qwen3" (tied, q/k norms).

    `settings` override the configuration, for example `rope_parameters`.
    """
    torch.manual_seed(seed)
    kind, own = FAMILIES[family]
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(kind(**{**SIZES, **own, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that a misplaced row, bias or norm changes every answer.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    size = "60KB" if shards else "1GB"
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=size)
    save_tokenizer(folder, "smollm" if family == "llama" else "qwen2")
    return folder


def save_tokenizer(folder: Path, kind: str) -> None:
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=make_tokenizer(kind),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """A LoRA adapter on all projections of `base`; its B is not zero, so it changes answers."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    config = LoraConfig(task_type="CAUSAL_LM", **{**defaults, **settings})
    model: Any = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(folder))
    return folder


def load(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    return model.eval()


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; the value None removes the key."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of a safetensors file; the value None removes the tensor."""
    tensors = load_file(path) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {"format": "pt"})


def rewrite_gguf(
    source: Path,
    target: Path,
    change: Callable[[dict[str, torch.Tensor]], object] = dict,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """Write a GGUF of bf16 and fp32 tensors again after `change` has altered them in place.

    `keys` are set, a function makes the new value of the old one, and None removes the key.
    """
    reader = gguf.GGUFReader(source, "c")
    fields = {name: field for name, field in reader.fields.items() if name[:5] != "GGUF."}
    content = {name: field.contents() for name, field in fields.items()}
    for name, value in (keys or {}).items():
        content[name] = value(content[name]) if callable(value) else value
    writer = gguf.GGUFWriter(target, content.pop("general.architecture"))
    for name, value in content.items():
        types = fields[name].types if name in fields else [_value_type(value)]
        if value is not None:
            writer.add_key_value(name, value, types[0], types[-1] if len(types) > 1 else None)
    tensors = {tensor.name: _tensor(tensor) for tensor in reader.tensors}
    change(tensors)
    for name, tensor in tensors.items():
        half = tensor.dtype == torch.bfloat16
        kind = gguf.GGMLQuantizationType.BF16 if half else gguf.GGMLQuantizationType.F32
        data = tensor.contiguous().view(torch.uint16) if half else tensor.contiguous()
        writer.add_tensor(name, data.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _value_type(value: Any) -> gguf.GGUFValueType:
    number = gguf.GGUFValueType.get_type(value)
    return gguf.GGUFValueType.UINT32 if number == gguf.GGUFValueType.INT32 else number


def _tensor(tensor: gguf.ReaderTensor) -> torch.Tensor:
    half = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
    data = torch.from_numpy(tensor.data.reshape(-1)).view(torch.bfloat16 if half else torch.float32)
    return data.reshape(tensor.shape.tolist()[::-1]).clone()
