"""The tokenizer of a Hugging Face folder, written into a GGUF as llama.cpp reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from export.checkpoint import read_json
from kormed_edge.errors import ExportError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# What a tokenizer.json splits text by, under llama.cpp's name for it (`tokenizer.ggml.pre`).
PATTERNS = {
    "qwen2": f"{_CONTRACTIONS}|{_WORDS}|" + r"\p{N}|" + _REST,
    "llama-bpe": f"{_CONTRACTIONS}|{_WORDS}|" + r"\p{N}{1,3}|" + _REST,
}
# llama.cpp takes a word that is in the vocabulary whole, before any merge, for this one only.
_IGNORES_MERGES = {"llama-bpe"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Byte-level BPE: the tokens in order of their ids, their types, and llama.cpp's pre name."""

    tokens: list[str]
    types: list[gguf.TokenType]
    pre: str


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a folder, filled up to the embedding's `rows`.

    Raises `BaseModelError` without a tokenizer, `ExportError` for one that llama.cpp lacks.
    """
    tokenizer = read_json(folder / "tokenizer.json", "a Hugging Face fast tokenizer")
    pre = pre_tokenizer(tokenizer)
    content: dict[int, str] = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(content, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        content[added["id"]] = added["content"]
        types[added["id"]] = _added_type(added)
    if (largest := max(content)) >= rows:
        raise ExportError(
            f"{folder}: token {largest} has no row among the embedding's {rows}",
            "a tokenizer no larger than the embedding",
            "use the base model's own tokenizer files, byte for byte",
        )
    # Rows beyond the tokenizer exist because embeddings are padded to a round number.
    tokens = [content.get(i, f"[PAD{i}]") for i in range(rows)]
    return Vocabulary(tokens, [types.get(i, gguf.TokenType.UNUSED) for i in range(rows)], pre)


def _added_type(added: dict[str, Any]) -> gguf.TokenType:
    content: str = added["content"]
    looks_special = content.startswith("<|") and content.endswith("|>")
    if added["special"] or looks_special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before BPE.

    llama.cpp recognises a tokenizer by a hash of the ids it gives to a test string, which only
    works for vocabularies that it knows; the structure says the same and holds for any.
    """
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer")
    name = _pre_name(tokenizer.get("pre_tokenizer") or {})
    plain = model["type"] == "BPE" and not model.get("byte_fallback")
    # llama.cpp does not normalize. Text in NFC, as prompts are, comes to the same.
    known = normalizer is None or normalizer.get("type") == "NFC"
    if name and plain and known and bool(model.get("ignore_merges")) == (name in _IGNORES_MERGES):
        return name
    shown = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False)[:200]
    raise ExportError(
        f"tokenizer.json: {model['type']}, normalizer {normalizer}, pre-tokenizer {shown}",
        "byte-level BPE cut like smollm, qwen2, llama-bpe or gpt-2",
        "choose a base model with one of these tokenizers",
    )


def _pre_name(pre: dict[str, Any]) -> str | None:
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") is not False:
        return None
    kinds = [step["type"] for step in steps]
    by_itself = last.get("use_regex", True)
    if kinds == ["Split", "ByteLevel"] and not by_itself:
        return _split_name(steps[0])
    if kinds == ["Digits", "ByteLevel"] and by_itself and steps[0]["individual_digits"]:
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] and by_itself else None


def _split_name(split: dict[str, Any]) -> str | None:
    if split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    found = split["pattern"].get("Regex", "")
    return next((name for name, pattern in PATTERNS.items() if pattern == found), None)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Write vocabulary, merges, special tokens and chat template."""
    vocabulary = read_vocabulary(folder, rows)
    special = gguf.SpecialVocab(folder, load_merges=True)
    # Prompts carry their own special tokens; a second beginning costs points.
    special.add_special_token = {"bos": False, "eos": False}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    special.add_to_gguf(writer, quiet=True)
