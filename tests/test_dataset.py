from typing import Any

import pytest
from tiny_models import save_tokenizer
from transformers import AutoTokenizer

from kormed_edge.prompts import question_prompt, record_messages
from kormed_edge.records import Record
from train.dataset import encode_records

RECORDS = [
    Record("1", "obgyn", "short_answer", "용어는?", "모의병"),
    Record("2", "emergency", "descriptive", "두 줄\n질문?\n", "  90/60 mmHg라고\n말한다. "),
    Record("3", "pediatrics", "multiple_choice", "답은?\n1) 가\n2) 나", "2) 나"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "qwen2")
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_those_of_the_tokenizer_s_own_template(tokenizer: Any) -> None:
    rows, cut = encode_records(RECORDS, tokenizer, 4096)
    for record, row in zip(RECORDS, rows, strict=True):
        theirs = tokenizer.apply_chat_template(record_messages(record), return_dict=True)
        assert row["input_ids"] == theirs["input_ids"]
    assert cut == 0


def test_the_mask_covers_the_answer_and_its_end_token(tokenizer: Any) -> None:
    for record, row in zip(RECORDS, encode_records(RECORDS, tokenizer, 4096)[0], strict=True):
        pairs = list(zip(row["input_ids"], row["completion_mask"], strict=True))
        counted = tokenizer.decode([token for token, mask in pairs if mask])
        skipped = tokenizer.decode([token for token, mask in pairs if not mask])
        assert counted == f"{record.answer}<|im_end|>\n"
        assert skipped == question_prompt(record.question)


def test_the_prompt_s_ids_are_those_that_are_asked_later(tokenizer: Any) -> None:
    for record, row in zip(RECORDS, encode_records(RECORDS, tokenizer, 4096)[0], strict=True):
        asked = tokenizer(question_prompt(record.question), add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: row["completion_mask"].index(1)] == asked


def test_long_samples_lose_their_end_and_are_counted(tokenizer: Any) -> None:
    whole, _ = encode_records(RECORDS, tokenizer, 4096)
    limit = len(whole[1]["input_ids"]) - 2
    rows, cut = encode_records(RECORDS, tokenizer, limit)
    assert cut == sum(len(row["input_ids"]) > limit for row in whole) == 1
    assert rows[1] == {key: values[:limit] for key, values in whole[1].items()}
    assert rows[0] == whole[0]
