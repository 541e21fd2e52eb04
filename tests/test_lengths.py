from pathlib import Path

from kormed_edge.prompts import record_messages, render_chatml
from kormed_edge.records import Record
from train.lengths import count_tokens, describe_lengths, draw_lengths

COUNTED = {"train": {"short_answer": [*range(1, 21)], "descriptive": [30]}, "valid": {}}


class CharacterTokenizer:
    """A token a character."""

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[0] * len(text) for text in texts]}


def test_a_sample_is_the_prompt_and_the_answer_together() -> None:
    record = Record("1", "obgyn", "short_answer", "용어는?", "모의병")
    text = render_chatml(record_messages(record), add_generation_prompt=False)
    counted = count_tokens({"train": [record], "valid": []}, CharacterTokenizer())
    assert counted == {"train": {"short_answer": [len(text)]}, "valid": {}}


def test_samples_over_the_maximum_length_are_counted() -> None:
    about = describe_lengths(COUNTED, 19)["splits"]
    assert about["train"]["short_answer"] == {
        "samples": 20, "over": 1, "median": 10.5, "p95": 19, "max": 20,
    }  # fmt: skip
    assert about["train"]["all"]["over"] == 2
    assert about["valid"] == {"all": {"samples": 0, "over": 0}}


def test_the_figure_is_a_png_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_lengths(COUNTED, 19, tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"Software" not in first
    assert first == (tmp_path / "b.png").read_bytes()
