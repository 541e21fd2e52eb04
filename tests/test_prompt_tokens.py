from pathlib import Path

import pytest

from kormed_edge.errors import EngineError
from kormed_edge.nf4 import load_tokenizer
from kormed_edge.prompt_tokens import open_tokens
from kormed_edge.prompts import SYSTEM_MESSAGE, question_messages, render_chatml


def test_tokens_without_weights_are_the_base_tokenizer_s(
    scripted_gguf: Path, scripted_base: Path
) -> None:
    messages = question_messages("가장 먼저 할 검사는?")
    text = render_chatml(messages, add_generation_prompt=True)
    tokenizer = load_tokenizer(scripted_base)
    with open_tokens(scripted_gguf) as tokens:
        assert tokens.of_messages(messages) == tokens.of_text(text)
        assert tokens.of_text(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_conversation_begins_with_the_turns_before(scripted_gguf: Path) -> None:
    with open_tokens(scripted_gguf) as tokens:
        system = tokens.of_turns([SYSTEM_MESSAGE])
        assert tokens.of_messages(question_messages("열?"))[: len(system)] == system


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="cannot load it"), open_tokens(path):
        pass
