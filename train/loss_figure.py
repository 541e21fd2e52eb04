"""The loss over optimizer steps: the counterpart of the paper's Fig. 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_loss(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss of a trainer's log history as a PNG."""
    from matplotlib.figure import Figure

    train = [(e["step"], e["loss"]) for e in history if "loss" in e]
    valid = [(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e]
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_columns(train), color="#1f5fa8", label="train")
    axes.plot(*_columns(valid), color="#c4521b", marker="o", label="validation")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]
