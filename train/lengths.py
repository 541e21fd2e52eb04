"""How long samples are in the base's tokens, and how many exceed the maximum length.

Characters are counted with the data; tokens depend on the base, so training counts them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.figures import COLORS, korean_figure_style
from kormed_edge.prompts import record_messages, render_chatml
from kormed_edge.records import KOREAN, Q_TYPES, Record
from train.stats import summary


def count_tokens(
    splits: Mapping[str, Sequence[Record]], tokenizer: Any
) -> dict[str, dict[str, list[int]]]:
    """Tokens of every sample, prompt and answer together, by split and question type."""
    counted = {}
    for name, records in splits.items():
        texts = [render_chatml(record_messages(r), add_generation_prompt=False) for r in records]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        lengths: dict[str, list[int]] = {}
        for record, tokens in zip(records, ids, strict=True):
            lengths.setdefault(record.q_type, []).append(len(tokens))
        counted[name] = {t: lengths[t] for t in Q_TYPES.values() if t in lengths}
    return counted


def describe_lengths(
    counted: Mapping[str, Mapping[str, Sequence[int]]], max_length: int
) -> dict[str, Any]:
    """What `lengths.json` says: tokens a sample, and samples that lose their end."""

    def about(lengths: Sequence[int]) -> dict[str, Any]:
        over = sum(length > max_length for length in lengths)
        return {"samples": len(lengths), "over": over, **(summary(lengths) if lengths else {})}

    return {
        "unit": "tokens",
        "max_length": max_length,
        "splits": {
            name: {
                "all": about([n for lengths in types.values() for n in lengths]),
                **{q_type: about(lengths) for q_type, lengths in types.items()},
            }
            for name, types in counted.items()
        },
    }


def draw_lengths(
    counted: Mapping[str, Mapping[str, Sequence[int]]], max_length: int, path: Path
) -> None:
    """Training samples by length in tokens and question type, the maximum length marked."""
    from matplotlib.figure import Figure

    types = counted["train"]
    with korean_figure_style():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(
            list(types.values()), bins=40, stacked=True, color=COLORS[: len(types)],
            label=[KOREAN[q_type] for q_type in types],
        )  # fmt: skip
        axes.axvline(max_length, color="#b5545c", linestyle="--", label=f"최대 길이 {max_length:,}")
        axes.set(xlabel="표본 하나의 토큰 수", ylabel="학습 표본 수", title="토큰 길이의 분포")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Software": None})
