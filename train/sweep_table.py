"""A sweep's comparison: sweep.json, sweep.md, sweep.png, and the same table on the screen."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from kormed_edge.figures import COLORS, korean_figure_style
from kormed_edge.manifest import write_json
from train.sweep import Outcome, ranked, short_rate

_COLUMNS = (
    "rank", "alpha", "learning rate", "base", "trainable", "train loss", "best validation",
    "last validation", "tokens/s", "seconds", "state",
)  # fmt: skip
_NOTE = (
    "Sorted by the last validation loss, that of the adapter which was kept. Losses are per token "
    "of the base's own tokenizer: compare them between points of one base only.\n"
)


def write_sweep(folder: Path, run: str, data: str, outcomes: Sequence[Outcome]) -> None:
    """Write the comparison of what there is by now; `data` is the hash of the data's manifest."""
    best = ranked(outcomes)
    points = [asdict(outcome) for outcome in best]
    write_json(folder / "sweep.json", {"run": run, "data_manifest": data, "points": points})
    (folder / "sweep.md").write_text(_markdown(run, best), encoding="utf-8")
    (folder / "sweep.png").unlink(missing_ok=True)
    if any(_loss(outcome) is not None for outcome in best):
        draw_sweep(best, folder / "sweep.png")


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for outcome in ranked(outcomes):
        table.add_row(*_cells(outcome))
    return table


def draw_sweep(outcomes: Sequence[Outcome], path: Path) -> None:
    """Validation loss of every finished point, the best at the top, as a PNG."""
    from matplotlib.figure import Figure

    shown = [outcome for outcome in outcomes if _loss(outcome) is not None][::-1]
    names = [outcome.point.name for outcome in shown]
    with korean_figure_style():
        figure = Figure(figsize=(8, 1.6 + 0.32 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        for key, color, size, fill, label in (
            ("best_valid_loss", COLORS[1], 11, "none", "최저 · best"),  # a ring: often both are one
            ("last_valid_loss", COLORS[0], 6, "full", "마지막 · last"),
        ):
            values = [outcome.found[key] for outcome in shown]
            style: Any = {"markersize": size, "fillstyle": fill, "color": color, "label": label}
            axes.plot(values, names, linestyle="", marker="o", **style)
        axes.set(title="설정별 검증 손실", xlabel="토큰당 교차 엔트로피 · validation loss")
        axes.grid(axis="x", color="#dddddd")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Software": None})


def _markdown(run: str, outcomes: Sequence[Outcome]) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(outcome) for outcome in outcomes)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return f"# Sweep of {run}\n\n{_NOTE}\n" + "\n".join(lines) + "\n"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    point, found = outcome.point, outcome.found

    def number(key: str, form: str) -> str:
        value: Any = found.get(key)
        return "–" if value is None else format(value, form)

    state = f"{outcome.state}: {outcome.reason}" if outcome.reason else outcome.state
    return (
        str(point.rank), str(point.alpha), short_rate(point.learning_rate), point.base,
        number("trainable_parameters", ","), number("train_loss", ".4f"),
        number("best_valid_loss", ".4f"), number("last_valid_loss", ".4f"),
        number("tokens_per_second", ",.0f"), number("seconds", ",.0f"), " ".join(state.split()),
    )  # fmt: skip


def _loss(outcome: Outcome) -> float | None:
    loss: float | None = outcome.found.get("last_valid_loss")
    return loss
