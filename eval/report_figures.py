"""Figures of the report: scores of every arm with 95 % intervals, calibration, and the loss.

Points with bars of uncertainty, not columns: with few items the interval is the message.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from eval.statistics import rate_interval
from kormed_edge.figures import COLORS, korean_figure_style

Scores = Mapping[str, Mapping[str, Any]]

_MARKERS = "osD^v"  # beside the colour, for print and for eyes that do not tell colours apart
_WIDTH = 4.8  # inches: small enough that 10-point letters are still legible on a phone


def draw_overall(
    scores: Scores, metric: str, title: str, path: Path, chance: float | None = None
) -> None:
    """One row for each arm; `chance` (a share) is marked with a dashed line."""
    points = {arm: [score["overall"].get(metric)] for arm, score in scores.items()}
    with korean_figure_style():
        figure, axes = _frame(title, rows=len(points), gap=0.34)
        for y, (i, arm) in enumerate(enumerate(points)):
            _draw_point(axes, y, points[arm][0], i)
            _write_value(axes, y, points[arm][0])
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
        _legend(figure)
        _save(figure, path)


def draw_reliability(scores: Scores, arms: Collection[str], title: str, path: Path) -> None:
    """Share of right answers by confidence, a line for each of `arms`; the diagonal is calibrated.

    A point is a bin of like confidence with its 95 % interval, its area the number of its items.
    """
    from matplotlib.figure import Figure

    with korean_figure_style():
        figure = Figure(figsize=(_WIDTH, _WIDTH * 0.9), layout="constrained")
        axes = figure.add_subplot(xlim=(0, 102), ylim=(-2, 102))
        axes.plot([0, 100], [0, 100], color="#999999", linestyle="--", linewidth=1)
        for i, (arm, score) in enumerate(scores.items()):  # as elsewhere, for an arm's own colour
            if arm in arms:
                _draw_bins(axes, score["reliability"], i, arm)
        axes.set(xlabel="확신 · confidence (%)", ylabel="정답률 · accuracy (%)")
        _finish(figure, axes, title, path)


def _draw_bins(axes: Any, bins: Sequence[Mapping[str, float]], i: int, arm: str) -> None:
    color, marker = COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]
    # Bins of two arms at the same confidence would hide each other's bars.
    x = [100 * bin["confidence"] + 0.4 * i for bin in bins]
    y = [100 * bin["accuracy"] for bin in bins]
    total = sum(bin["n"] for bin in bins)
    axes.plot(x, y, color=color, linewidth=1.2, alpha=0.6)
    for at, bin in zip(x, bins, strict=True):
        low, high = rate_interval(round(bin["accuracy"] * bin["n"]), int(bin["n"]))
        axes.vlines(at, 100 * low, 100 * high, color=color, linewidth=1.6, alpha=0.5)
    sizes = [18 + 240 * bin["n"] / total for bin in bins]
    axes.scatter(x, y, sizes, color=color, marker=marker, alpha=0.75, label=arm)


def draw_loss(log: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Training and validation loss over optimizer steps: the counterpart of the paper's Fig. 2.

    A training loss is one batch's and jumps with it, so its running mean is drawn over it, with
    the standard deviation of the losses around a step as a band. `log` is the trainer's history.
    """
    from matplotlib.figure import Figure

    steps, losses = _series(log, "loss")
    with korean_figure_style():
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, losses, color=COLORS[0], linewidth=0.9, alpha=0.45)
        if steps:
            _draw_trend(axes, steps, losses)
        label = "검증 · validation"
        axes.plot(*_series(log, "eval_loss"), color=COLORS[3], marker="o", label=label)
        axes.set(xlabel="최적화 스텝 · optimizer step", ylabel="토큰당 · per token")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        _finish(figure, axes, title, path)


def _series(log: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in log if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _draw_trend(axes: Any, steps: Sequence[float], losses: Sequence[float]) -> None:
    reach = max(2, len(losses) // 40)
    windows = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    means, spreads = [fmean(w) for w in windows], [pstdev(w) for w in windows]
    low, high = ([m + s * d for m, d in zip(means, spreads, strict=True)] for s in (-1, 1))
    axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
    axes.plot(steps, means, color=COLORS[0], linewidth=2, label="학습 · training")


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    axes.set_title(title, loc="left", fontsize=12, pad=14)
    axes.grid(color="#e4e4e4")
    _legend(figure)
    _save(figure, path)


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


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


def _write_value(axes: Any, y: float, number: Mapping[str, float] | None) -> None:
    if number is not None:
        axes.text(105, y, f"{100 * number['value']:.1f}", va="center", ha="left", fontsize=9)


def _label_rows(axes: Any, labels: Sequence[str], rows: int) -> None:
    axes.set_yticks(range(rows), labels)
    axes.set_ylim(rows - 0.5, -0.5)


def _save(figure: Any, path: Path) -> None:
    # The version of matplotlib in the file would make equal figures differ.
    figure.savefig(path, metadata={"Software": None})
