"""Records to token ids: the prompt of `kormed_edge.prompts`, tokenized once, answers marked."""

from collections.abc import Sequence
from typing import Any

from kormed_edge.prompts import question_messages, record_messages, render_chatml
from kormed_edge.records import Record


def encode_records(
    records: Sequence[Record], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """Token ids with a mask that is 1 on the answer and its end token; and how many were cut.

    Prompt and answer are tokenized together, as the model will see them; the boundary is where
    the prompt alone ends, which holds because ChatML ends the prompt with a newline after a
    special token. A sample longer than `max_length` loses its end.
    """
    texts = [render_chatml(record_messages(r), add_generation_prompt=False) for r in records]
    prompts = [
        render_chatml(question_messages(r.question), add_generation_prompt=True) for r in records
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    rows = []
    for record, whole, prompt in zip(records, ids, prompt_ids, strict=True):
        mask = [0] * len(prompt) + [1] * (len(whole) - len(prompt))
        row = {"input_ids": whole[:max_length], "completion_mask": mask[:max_length]}
        rows.append({"qa_id": record.qa_id, **row})
    return rows, sum(len(whole) > max_length for whole in ids)
