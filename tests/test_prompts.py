from pathlib import Path

from tiny_models import save_tokenizer
from transformers import AutoTokenizer

from kormed_edge.prompts import (
    SYSTEM_PROMPT,
    question_messages,
    question_prompt,
    record_messages,
    render_chatml,
)
from kormed_edge.records import Record

RECORD = Record("1", "obgyn", "short_answer", "용어는?\n1.5) 둘째 줄", "모의병")


def test_a_question_becomes_chatml_that_waits_for_the_answer() -> None:
    assert question_prompt("용어는?") == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
        "<|im_start|>user\n용어는?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_record_ends_with_its_answer_and_the_end_token() -> None:
    text = render_chatml(record_messages(RECORD), add_generation_prompt=False)
    assert text == question_prompt(RECORD.question) + "모의병<|im_end|>\n"


def test_text_is_that_of_the_tokenizer_s_own_template(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (question_messages("용어는?"), record_messages(RECORD)):
        for add in (True, False):
            theirs = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add
            )
            assert render_chatml(messages, add_generation_prompt=add) == theirs


def test_the_model_is_told_to_answer_as_a_korean_medical_assistant() -> None:
    assert question_messages("x")[0] == {"role": "system", "content": SYSTEM_PROMPT}
    assert "필수의료" in SYSTEM_PROMPT
