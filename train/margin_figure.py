"""Preference training over optimizer steps: the loss, and how far the answers came apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kormed_edge.figures import COLORS, korean_figure_style

_PANELS = (
    ("loss", "손실 · loss"),
    ("rewards/margins", "보상 차이 · reward margin"),
    ("rewards/accuracies", "선호 일치율 · accuracy"),
)


def draw_margins(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, reward margin and accuracy of a trainer's log history as a PNG.

    The margin is beta times the log-ratio of chosen to rejected, minus that of the reference;
    the accuracy is the share of pairs in which it is positive.
    """
    from matplotlib.figure import Figure

    with korean_figure_style():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 3), _PANELS, strict=True):
            _draw(axes, history, key, COLORS[0], "학습 · train", "")
            _draw(axes, history, f"eval_{key}", COLORS[1], "검증 · validation", "o")
            axes.set(title=title, xlabel="optimizer step")
            axes.grid(color="#dddddd")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Software": None})


def _draw(
    axes: Any, history: Sequence[dict[str, Any]], key: str, color: str, label: str, marker: str
) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, color=color, marker=marker or None, label=label)
