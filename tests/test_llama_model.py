from collections.abc import Iterator
from pathlib import Path

import pytest

from kormed_edge.errors import EngineError
from kormed_edge.llama_model import LlamaModel


@pytest.fixture(scope="module")
def model(scripted_gguf: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel(scripted_gguf, {})
    yield loaded
    loaded.close()


def test_bytes_of_a_text_s_tokens_are_the_text(model: LlamaModel) -> None:
    text = "심전도 90/60 mmHg\n\n"
    ids = model.tokenize(text, special=False)
    assert b"".join(map(model.bytes_of, ids)) == text.encode()


def test_special_token_writes_nothing(model: LlamaModel) -> None:
    [start] = model.tokenize("<|im_start|>", special=True)
    assert model.bytes_of(start) == b""


def test_special_token_s_text_is_text_unless_asked(model: LlamaModel) -> None:
    typed = model.tokenize("<|im_start|>", special=False)
    assert len(typed) > 1
    assert b"".join(map(model.bytes_of, typed)) == b"<|im_start|>"


def test_empty_text_has_no_tokens(model: LlamaModel) -> None:
    assert model.tokenize("", special=True) == []


def test_end_token_ends(model: LlamaModel) -> None:
    [end] = model.tokenize("<|im_end|>", special=True)
    [letter] = model.tokenize("a", special=False)
    assert (model.ends(end), model.ends(letter)) == (True, False)


def test_closed_model_says_so(scripted_gguf: Path) -> None:
    model = LlamaModel(scripted_gguf, {})
    model.close()
    model.close()
    with pytest.raises(EngineError, match="the engine was closed"):
        model.tokenize("a", special=False)
