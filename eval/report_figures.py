"""Figures of the report: one score of every arm with its 95 % interval, over all items or by group.

Points with bars of uncertainty, not columns: with few items the interval is the message.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.figures import COLORS, korean_figure_style

Scores = Mapping[str, Mapping[str, Any]]

_MARKERS = "osD^v"  # beside the colour, for print and for eyes that do not tell colours apart
_WIDTH = 5.6  # inches: small enough that 10-point letters are still legible on a phone


def draw_overall(
    scores: Scores, metric: str, title: str, path: Path, chance: float | None = None
) -> None:
    """One row for each arm; `chance` (a share) is marked with a dashed line."""
    points = {arm: [score["overall"].get(metric)] for arm, score in scores.items()}
    with korean_figure_style():
        figure, axes = _frame(title, rows=len(points), gap=0.34)
        for y, (i, arm) in enumerate(enumerate(points)):
            _draw_point(axes, y, points[arm][0], i)
        _label_rows(axes, list(points), len(points))
        if chance is not None:
            axes.axvline(100 * chance, color="#777777", linestyle="--", linewidth=1)
            axes.annotate(
                "무작위 · chance", (100 * chance, 1.0), (4, 2), color="#666666", fontsize=8,
                xycoords=("data", "axes fraction"), textcoords="offset points",
            )  # fmt: skip
        _save(figure, path)


def draw_groups(
    scores: Scores, group: str, metric: str, names: Mapping[str, str], title: str, path: Path
) -> None:
    """One row for each group (`group` is by_q_type or by_domain) that any arm has; arms within."""
    first = next(iter(scores.values()))[group]
    rows = [name for name in names if metric in first.get(name, {})]
    with korean_figure_style():
        figure, axes = _frame(title, rows=len(rows), gap=0.16 * len(scores) + 0.18, legend=True)
        for i, (arm, score) in enumerate(scores.items()):
            shift = (i - (len(scores) - 1) / 2) * 0.8 / len(scores)
            for y, name in enumerate(rows):
                number = score[group].get(name, {}).get(metric)
                _draw_point(axes, y + shift, number, i, arm if y == 0 else None)
        _label_rows(axes, [names[name] for name in rows], len(rows))
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color="#dddddd", linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        _save(figure, path)


def draw_reliability(scores: Scores, title: str, path: Path) -> None:
    """Share of right answers by confidence, a line for each arm; the diagonal is calibrated.

    A point is a bin of like confidence, its area the number of items in it.
    """
    from matplotlib.figure import Figure

    with korean_figure_style():
        figure = Figure(figsize=(_WIDTH, _WIDTH * 0.9), layout="constrained")
        axes = figure.add_subplot(xlim=(0, 102), ylim=(-2, 102))
        axes.plot([0, 100], [0, 100], color="#999999", linestyle="--", linewidth=1)
        for i, (arm, score) in enumerate(scores.items()):
            bins = score["reliability"]
            x, y = ([100 * bin[key] for bin in bins] for key in ("confidence", "accuracy"))
            color, marker = COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]
            axes.plot(x, y, color=color, linewidth=1.2, alpha=0.6)
            total = sum(bin["n"] for bin in bins)
            sizes = [18 + 240 * bin["n"] / total for bin in bins]
            axes.scatter(x, y, sizes, color=color, marker=marker, alpha=0.75, label=arm)
        axes.set(xlabel="확신 · confidence (%)", ylabel="정답률 · accuracy (%)")
        axes.set_title(title, loc="left", fontsize=12, pad=14)
        axes.grid(color="#e4e4e4")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        _save(figure, path)


def _frame(title: str, rows: int, gap: float, legend: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    height = 1.05 + rows * gap + (0.5 if legend else 0)
    figure = Figure(figsize=(_WIDTH, max(height, 1.8)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-2, 102), xlabel="%")
    axes.set_title(title, loc="left", fontsize=12, pad=14)
    axes.grid(axis="x", color="#e4e4e4")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _draw_point(
    axes: Any, y: float, number: Mapping[str, float] | None, i: int, label: str | None = None
) -> None:
    if number is None:
        return
    value, low, high = (100 * number[key] for key in ("value", "low", "high"))
    color, marker = COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]
    axes.hlines(y, low, high, color=color, linewidth=2.2, alpha=0.65)
    axes.plot(value, y, marker, color=color, markersize=6, label=label, linestyle="none")


def _label_rows(axes: Any, labels: Sequence[str], rows: int) -> None:
    axes.set_yticks(range(rows), labels)
    axes.set_ylim(rows - 0.5, -0.5)


def _save(figure: Any, path: Path) -> None:
    # The version of matplotlib in the file would make equal figures differ.
    figure.savefig(path, metadata={"Software": None})
