"""What a data set holds: counts, lengths, option positions, and a figure of its distribution."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kormed_edge.figures import COLORS, korean_figure_style
from kormed_edge.records import KOREAN, MULTIPLE_CHOICE, Q_TYPES, Record, split_options
from train.kormedmcqa import SUBJECTS
from train.reading import Reading
from train.splits import Overlap, Splits

_DOMAIN_ORDER = ("internal_medicine", "pediatrics", "obgyn", "emergency", *SUBJECTS)


def describe(splits: Splits, reading: Reading, overlap: Sequence[Overlap]) -> dict[str, Any]:
    """Everything that `stats.json` says, ready for JSON. Lengths are in characters."""
    everything = [record for records in splits.named().values() for record in records]
    return {
        "records": len(everything),
        "splits": {name: _counts(records) for name, records in splits.named().items()},
        "lengths": {
            q_type: _lengths([r for r in everything if r.q_type == q_type])
            for q_type in _present(Q_TYPES.values(), (r.q_type for r in everything))
        },
        "options": {name: _options(records) for name, records in splits.named().items()},
        "skipped": reading.skipped,
        "dropped": [asdict(problem) for problem in reading.dropped],
        "repaired": [asdict(problem) for problem in reading.repaired],
        "overlap": [asdict(pair) for pair in overlap],
    }


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    counts = Counter((record.domain, record.q_type) for record in records)
    return {
        "records": len(records),
        "by_domain": {
            domain: {q_type: counts[domain, q_type] for q_type in Q_TYPES.values()}
            for domain in _present(_DOMAIN_ORDER, (record.domain for record in records))
        },
    }


def _present(order: Iterable[str], values: Iterable[str]) -> list[str]:
    present = set(values)
    return [name for name in order if name in present]


def _lengths(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    return {
        "question": summary([len(record.question) for record in records]),
        "answer": summary([len(record.answer) for record in records]),
    }


def summary(lengths: Sequence[int]) -> dict[str, float]:
    """Median, 95th percentile and longest of at least one length."""
    ordered = sorted(lengths)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }


def _options(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """How many options the questions have, and at which of them the right answer stands."""
    choices = [record for record in records if record.q_type == MULTIPLE_CHOICE]
    per_question = Counter(len(split_options(record.question)[1]) for record in choices)
    positions = Counter(record.answer[0] for record in choices)
    return {
        "per_question": {str(number): n for number, n in sorted(per_question.items())},
        "answer_position": dict(sorted(positions.items())),
    }


def draw_distribution(stats: dict[str, Any], path: Path) -> None:
    """Records by department and question type beside the share of each type, as a PNG.

    `stats` is what `describe` gives. The counterpart of Fig. 1 in Song & Erdenebayar 2026.
    """
    from matplotlib.figure import Figure

    table = _total_table(stats)
    with korean_figure_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_departments(left, table)
        _draw_shares(right, table)
        figure.suptitle(f"질의응답 {stats['records']:,}건의 분포", fontsize=14)
        # The version of matplotlib in the file would make equal figures differ.
        figure.savefig(path, metadata={"Software": None})


def _total_table(stats: dict[str, Any]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for split in stats["splits"].values():
        for domain, counts in split["by_domain"].items():
            total.setdefault(domain, Counter()).update(counts)
    return {domain: dict(total[domain]) for domain in _present(_DOMAIN_ORDER, total)}


def _draw_departments(axes: Any, table: dict[str, dict[str, int]]) -> None:
    names = [KOREAN[domain] for domain in table]
    bottom = [0] * len(table)
    for q_type, color in zip(Q_TYPES.values(), COLORS, strict=False):
        heights = [counts[q_type] for counts in table.values()]
        axes.bar(names, heights, 0.6, bottom=bottom, color=color)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for x, height in enumerate(bottom):
        axes.annotate(f"{height:,}", (x, height), (0, 3), textcoords="offset points", ha="center")
    axes.set_title("진료과별 레코드 수")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color="#dddddd")
    axes.margins(y=0.1)


def _draw_shares(axes: Any, table: dict[str, dict[str, int]]) -> None:
    totals = {t: sum(counts[t] for counts in table.values()) for t in Q_TYPES.values()}
    whole = sum(totals.values())
    colors = COLORS[: len(totals)]
    wedges, _ = axes.pie(
        list(totals.values()),
        colors=colors,
        startangle=90,
        counterclock=False,
        wedgeprops={"width": 0.42, "edgecolor": "white"},
    )
    labels = [f"{KOREAN[t]} {n:,}건 ({n / whole:.1%})" for t, n in totals.items()]
    axes.legend(wedges, labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False)
    axes.set_title("문항 유형별 비율")
