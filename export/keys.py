"""The keys of a GGUF, read back and compared with the base they were made from.

Expected values come from transformers' reading of the base's configuration and from its tokenizer
files, not from the code that writes the keys.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from export.readback import UNREADABLE, Check, shape_of, unreadable
from export.tokenizer import pre_tokenizer


def check_keys(base: Path, path: Path) -> Check:
    """Read sizes, constants, vocabulary and chat template back against the base's own files.

    A key of the family that is not among the expected ones fails too: llama.cpp might heed it.
    """
    wanted = _wanted_keys(base)
    try:
        found = _found_keys(gguf.GGUFReader(path), base, list(wanted))
    except UNREADABLE as error:
        return unreadable(f"keys {path.name}", error, wanted)
    return Check(f"keys {path.name}", found == wanted, found, wanted)


def _wanted_keys(base: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(base, local_files_only=True)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": config.vocab_size,
        **_wanted_rope(config.rope_parameters),
    }
    return {
        "general.architecture": config.model_type,
        **{f"{config.model_type}.{key}": _single(value) for key, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2",
        # Whether this is the right name for the tokenizer, only `check_tokens` can tell.
        "tokenizer.ggml.pre": pre_tokenizer(tokenizer),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": _digest(_chat_template(base)),
        "embedding rows": config.vocab_size,
        "tokens": config.vocab_size,
        "merges": len(tokenizer["model"]["merges"]),
        "other tokens": 0,
        "other merges": 0,
        "unknown": [],
    }


def _wanted_rope(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    scaled, yarn = kind in ("linear", "yarn"), rope if kind == "yarn" else {}
    return {
        "rope.freq_base": rope["rope_theta"],
        "rope.scaling.type": kind if scaled else None,
        "rope.scaling.factor": rope["factor"] if scaled else None,
        "rope.scaling.original_context_length": yarn.get("original_max_position_embeddings"),
        "rope.scaling.yarn_ext_factor": yarn.get("extrapolation_factor"),
        "rope.scaling.yarn_attn_factor": yarn.get("attention_factor"),
        "rope.scaling.yarn_beta_fast": yarn.get("beta_fast"),
        "rope.scaling.yarn_beta_slow": yarn.get("beta_slow"),
    }


def _found_keys(reader: gguf.GGUFReader, base: Path, wanted: list[str]) -> dict[str, Any]:
    contents = _contents(reader)
    arch = contents.get("general.architecture")
    rows = next((shape_of(t)[0] for t in reader.tensors if t.name == "token_embd.weight"), None)
    tokens = contents.get("tokenizer.ggml.tokens", [])
    merges = contents.get("tokenizer.ggml.merges", [])
    defaults = _defaults(contents, f"{arch}.", rows)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    derived = {
        "tokenizer.chat_template": _digest(contents.get("tokenizer.chat_template")),
        "embedding rows": rows,
        "tokens": len(tokens),
        "merges": len(merges),
        "other tokens": _other_tokens(tokenizer, tokens),
        "other merges": _other_merges(tokenizer, merges),
        "unknown": [key for key in contents if key.startswith(f"{arch}.") and key not in wanted],
    }
    found = {key: _single(contents.get(key, defaults.get(key))) for key in wanted}
    return found | derived


def _contents(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _defaults(contents: dict[str, Any], prefix: str, rows: int | None) -> dict[str, Any]:
    """What llama.cpp takes for a key that is not there."""
    heads = contents.get(f"{prefix}attention.head_count")
    head = contents[f"{prefix}embedding_length"] // heads if heads else None
    head = contents.get(f"{prefix}attention.key_length", head)
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return {**{prefix + name: head for name in names}, f"{prefix}vocab_size": rows}


def _other_tokens(tokenizer: dict[str, Any], tokens: list[str]) -> int:
    """How many of a tokenizer.json's tokens have another text in the file, or none."""
    ids = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    ids |= {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    return sum(i >= len(tokens) or tokens[i] != token for i, token in ids.items())


def _other_merges(tokenizer: dict[str, Any], merges: list[str]) -> int:
    own = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return sum(pair[0] != pair[1] for pair in zip(own, merges, strict=False))


def _chat_template(base: Path) -> str | None:
    """The template that Hugging Face uses: the file of its own goes before the older key."""
    if (base / "chat_template.jinja").is_file():
        return (base / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return None if template is None else str(template)


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def _single(value: Any) -> Any:
    """A number as a GGUF holds it: in fp32 unless it is whole."""
    return float(np.float32(value)) if isinstance(value, float) else value
