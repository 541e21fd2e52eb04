import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_models import CHAT_TEMPLATE, ROWS, SPECIALS, edit_json, make_tokenizer, save_tokenizer

from export.tokenizer import add_tokenizer, pre_tokenizer, read_vocabulary
from kormed_edge.errors import BaseModelError, ExportError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def described(kind: str = "qwen2") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(make_tokenizer(kind).to_str())
    return content


@pytest.mark.parametrize("kind", ["qwen2", "smollm"])
def test_pre_tokenizer_is_recognised_by_its_structure(kind: str) -> None:
    assert pre_tokenizer(described(kind)) == kind


def test_llama_3_counts_digits_in_threes_and_ignores_merges() -> None:
    tokenizer = described()
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LLAMA3_PATTERN}
    with pytest.raises(ExportError):
        pre_tokenizer(tokenizer)
    tokenizer["model"]["ignore_merges"] = True
    assert pre_tokenizer(tokenizer) == "llama-bpe"


def test_byte_level_alone_is_gpt_2() -> None:
    assert pre_tokenizer(described() | {"pre_tokenizer": BYTE_LEVEL}) == "gpt-2"


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "WordPiece", "vocab": {}}},
    ],
)
def test_unknown_tokenizer_is_refused_with_the_known_ones(changes: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="smollm, qwen2, llama-bpe or gpt-2"):
        pre_tokenizer(described() | changes)


def test_vocabulary_is_filled_up_to_the_embedding(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "qwen2")
    size = make_tokenizer().get_vocab_size()
    vocabulary = read_vocabulary(tmp_path, ROWS)
    assert vocabulary.tokens[:3] == SPECIALS
    assert vocabulary.types[:3] == [gguf.TokenType.CONTROL] * 3
    assert vocabulary.types[3] == gguf.TokenType.NORMAL
    assert vocabulary.tokens[size:] == [f"[PAD{i}]" for i in range(size, ROWS)]
    assert vocabulary.types[size:] == [gguf.TokenType.UNUSED] * (ROWS - size)


def test_added_token_that_is_not_special_stays_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "qwen2")
    path = tmp_path / "tokenizer.json"
    added = {"id": ROWS - 1, "content": "<tool_call>", "special": False}
    edit_json(path, added_tokens=[*json.loads(path.read_text())["added_tokens"], added])
    assert read_vocabulary(tmp_path, ROWS).types[ROWS - 1] == gguf.TokenType.USER_DEFINED


def test_token_without_an_embedding_row_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "qwen2")
    with pytest.raises(ExportError, match="no row among the embedding's 300"):
        read_vocabulary(tmp_path, 300)


def test_folder_without_a_tokenizer_is_no_base_model(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no tokenizer\.json"):
        read_vocabulary(tmp_path, ROWS)


def test_merges_special_tokens_and_template_are_written(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "qwen2")
    writer = gguf.GGUFWriter(None, "qwen2")
    add_tokenizer(writer, tmp_path, ROWS)
    written = {key.removeprefix("tokenizer."): v.value for key, v in writer.kv_data[0].items()}
    assert written["ggml.eos_token_id"] == 2
    assert written["ggml.padding_token_id"] == 0
    assert written["ggml.add_bos_token"] is False
    assert len(written["ggml.merges"]) == make_tokenizer().get_vocab_size() - len(SPECIALS) - 256
    assert written["chat_template"] == CHAT_TEMPLATE
