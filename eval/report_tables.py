"""Tables of the report, as rows of plain values that the template sets.

A cell is a number of scores.json, {value, n, low, high}, or None where an arm lacks it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eval.report_words import GROUPS, HINTS, LABELS, SPLITS, Words
from kormed_edge.records import Q_TYPES

Scores = Mapping[str, Mapping[str, Any]]
Cell = Mapping[str, Any] | None


class Row(NamedTuple):
    """One line: a cell for each arm, and how many items they are about."""

    metric: str
    label: Words
    cells: list[Cell]

    @property
    def n(self) -> str:
        """Given once where all arms have the same number."""
        counts = dict.fromkeys(cell["n"] for cell in self.cells if cell)
        return " / ".join(f"{n:,}" for n in counts)


class Group(NamedTuple):
    """Lines under one heading."""

    label: Words
    rows: list[Row]


class Counts(NamedTuple):
    """Records of one department or question type: by split, then in all."""

    label: Words
    counts: list[int]


# Beside ROUGE. What is about one type alone the mean of the types does not have.
_BESIDE = {
    "ko": ("bertscore_f1", "accuracy", "exact_match", "char_f1"),
    "paper": ("bertscore_f1", "accuracy"),
}
_ALL_TYPES = Words("전체 (세 유형의 단순 평균)", "overall (plain mean of the three types)")


def score_rows(scores: Scores) -> list[Row]:
    """Every score over all items; one that no arm has is left out."""
    rows = [
        Row(metric, LABELS[metric], [_overall(score, metric) for score in scores.values()])
        for metric in HINTS
    ]
    return _filled(rows)


def _overall(score: Mapping[str, Any], metric: str) -> Cell:
    if metric == "type_mean":
        metric, score = "rouge_paper_L", {"overall": score["type_mean"]}
    number: Cell = score["overall"].get(metric)
    return number


def type_groups(scores: Scores, family: str) -> list[Group]:
    """The layout of the paper's Table 4: the question types one by one, then their plain mean.

    `family` is ko or paper, the way in which ROUGE is counted. The mean is there if all three
    types are. Source: Song & Erdenebayar 2026, Table 4.
    """
    metrics = {f"rouge_{family}_{kind}": Words(*[f"ROUGE-{kind}"] * 2) for kind in "12L"}
    metrics |= {name: LABELS[name] for name in _BESIDE[family] if name in LABELS}
    arms = list(scores.values())
    groups = [
        Group(GROUPS[name], _metric_rows([arm["by_q_type"].get(name, {}) for arm in arms], metrics))
        for name in Q_TYPES.values()
    ]
    groups.append(Group(_ALL_TYPES, _metric_rows([arm["type_mean"] for arm in arms], metrics)))
    return [group for group in groups if group.rows]


def _metric_rows(arms: Sequence[Mapping[str, Any]], metrics: Mapping[str, Words]) -> list[Row]:
    return _filled(
        Row(metric, label, [arm.get(metric) for arm in arms]) for metric, label in metrics.items()
    )


def domain_rows(scores: Scores, metric: str) -> list[Row]:
    """One score by department."""
    groups = [score["by_domain"] for score in scores.values()]
    return _filled(
        Row(metric, label, [arm.get(name, {}).get(metric) for arm in groups])
        for name, label in GROUPS.items()
    )


def _filled(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if any(row.cells)]


def record_counts(stats: Mapping[str, Any]) -> tuple[list[Words], list[Counts]]:
    """The splits' names, and the records of every department and question type in each."""
    splits = stats["splits"]
    totals = [_totals(split["by_domain"]) for split in splits.values()]
    rows = [
        Counts(label, [*counts, sum(counts)])
        for name, label in GROUPS.items()
        if any(counts := [total[name] for total in totals])
    ]
    return [SPLITS.get(name, Words(name, name)) for name in splits], rows


def _totals(by_domain: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    """Records by department and by question type; the names do not overlap."""
    totals: Counter[str] = Counter()
    for domain, types in by_domain.items():
        totals.update(types)
        totals[domain] += sum(types.values())
    return totals


def problem_counts(problems: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """How many records were dropped or repaired, by the key at fault ("" for all of a record).

    What was wrong is not told: it may quote the record.
    """
    return dict(Counter(problem["key"] for problem in problems).most_common())
