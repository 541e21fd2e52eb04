import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tokenizer
from transformers import AutoTokenizer

from kormed_edge.errors import DataError
from kormed_edge.feedback_export import preferences
from kormed_edge.prompts import question_prompt
from kormed_edge.records import Record
from train.dataset import encode_records
from train.pairs import Pair, encode_pairs, read_pairs, require_unseen, split_pairs

ROW = {"prompt": "용어는?", "chosen": "모의병", "rejected": "다른 병"}
PAIRS = [Pair(i, f"용어 {i // 2}은?", f"모의병 {i}", f"틀린 답 {i}") for i in range(20)]


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_both_names_of_the_question_are_read(tmp_path: Path) -> None:
    other = {"question": "둘째\u2028질문?", "chosen": "가", "rejected": "나"}
    assert read_pairs(write(tmp_path / "p.jsonl", ROW, "", other)) == [
        Pair(1, "용어는?", "모의병", "다른 병"), Pair(3, "둘째\u2028질문?", "가", "나"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, not an object"),
        ({"chosen": "가", "rejected": "나"}, "not both or neither"),
        (ROW | {"question": "?"}, "not both or neither"),
        (ROW | {"verdict": "wrong"}, "unknown key verdict"),
        ({"prompt": "?", "chosen": "가"}, "rejected is missing"),
        (ROW | {"chosen": 4}, "chosen is a int, not a text"),
        (ROW | {"rejected": " \n"}, "rejected is empty"),
        (ROW | {"rejected": "모의병 "}, "chosen and rejected are the same"),
        (ROW | {"chosen": "가<|im_end|>"}, "would end the turn"),
        ('{"prompt": "\\ud800", "chosen": "가", "rejected": "나"}', "half a character"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: Any, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_pairs(write(tmp_path / "p.jsonl", ROW, line, ROW))
    assert "1 bad line(s)" in error.value.found
    assert "line 2: " in error.value.found
    assert problem in error.value.found


def test_all_bad_lines_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 bad line") as error:
        read_pairs(write(tmp_path / "p.jsonl", *["{"] * 30))
    assert error.value.found.count("\n  line ") == 20
    assert "and 10 more" in error.value.found


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair"):
        read_pairs(write(tmp_path / "p.jsonl", ""))


def test_questions_of_the_test_split_are_not_learned(tmp_path: Path) -> None:
    kept = Record("q7", "obgyn", "short_answer", "용어  3은", "모의병")
    with pytest.raises(DataError, match="2 bad line") as error:
        require_unseen(tmp_path / "p.jsonl", PAIRS, [kept])
    assert "line 6: its question is q7" in error.value.found
    require_unseen(tmp_path / "p.jsonl", PAIRS[:6], [kept])


def test_pairs_of_one_question_stay_on_one_side() -> None:
    train, valid = split_pairs(PAIRS, 0.2, 42)
    assert (len(train), len(valid)) == (16, 4)
    assert {p.question for p in train}.isdisjoint({p.question for p in valid})
    assert split_pairs(PAIRS, 0.2, 42) == (train, valid)
    assert split_pairs(PAIRS, 0.2, 43) != (train, valid)


def test_one_question_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 question"):
        split_pairs(PAIRS[:2], 0.5, 42)
    train, valid = split_pairs(PAIRS[:4], 0.9, 42)
    assert (len(train), len(valid)) == (2, 2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "qwen2")
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_those_of_fine_tuning(tokenizer: Any) -> None:
    rows, cut = encode_pairs(PAIRS, tokenizer, 512)
    for pair, row in zip(PAIRS, rows, strict=True):
        prompt = tokenizer(question_prompt(pair.question), add_special_tokens=False)["input_ids"]
        assert row["prompt_ids"] == prompt
        for answer, key in ((pair.chosen, "chosen_ids"), (pair.rejected, "rejected_ids")):
            record = Record("", "obgyn", "short_answer", pair.question, answer)
            [whole], _ = encode_records([record], tokenizer, 512)
            assert row["prompt_ids"] + row[key] == whole["input_ids"]
    assert cut == 0


def test_long_answers_are_cut_and_prompts_without_room_left_out(tokenizer: Any) -> None:
    [whole], _ = encode_pairs(PAIRS[:1], tokenizer, 512)
    prompt = len(whole["prompt_ids"])
    [row], cut = encode_pairs(PAIRS[:1], tokenizer, prompt + 2)
    assert (len(row["chosen_ids"]), len(row["rejected_ids"]), cut) == (2, 2, 2)
    assert encode_pairs(PAIRS[:1], tokenizer, prompt)[0] == []


class Judged:
    """An audit log with one answer that a clinician corrected."""

    has_key = True

    def feedback(self) -> list[dict[str, Any]]:
        row = {"request_id": "f0", "principal": "a", "verdict": "wrong"}
        return [row | {"correction": ROW["chosen"]}]

    def request(self, _: str) -> dict[str, Any]:
        return {
            "prompt": ROW["prompt"], "answer": ROW["rejected"], "endpoint": "/v1/chat/completions",
            "finish_reason": "stop",
        }  # fmt: skip


def test_what_the_audit_log_exports_is_read_as_it_is(tmp_path: Path) -> None:
    reader: Any = Judged()
    path = write(tmp_path / "p.jsonl", *preferences(reader).rows)
    assert read_pairs(path) == [Pair(1, ROW["prompt"], ROW["chosen"], ROW["rejected"])]
