"""What reading a source gives: records, where each came from, and what was dropped or repaired."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kormed_edge.errors import DataError
from kormed_edge.records import Record

OnInvalid = Literal["error", "drop"]
Origin = Literal["training", "validation"]

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as the format promises: the file, its key ("" for all of it), what."""

    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.what) if part)


@dataclass(frozen=True, slots=True)
class Reading:
    """The records of a source. `origins[i]` is the published split of `records[i]`, or None.

    `skipped` counts what was passed over on purpose, by kind, such as source texts.
    """

    records: list[Record] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)
    dropped: list[Problem] = field(default_factory=list)
    repaired: list[Problem] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Collector:
    """Gathers records and problems one by one; `finish` turns them into a `Reading`."""

    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    repaired: list[Problem] = field(default_factory=list)
    _seen: dict[str, tuple[Record, Origin | None, str]] = field(default_factory=dict)
    _duplicates: list[Problem] = field(default_factory=list)
    _conflicts: set[str] = field(default_factory=set)

    def add(
        self, record: Record, origin: Origin | None, file: str, repairs: Sequence[Problem] = ()
    ) -> None:
        self.repaired += repairs
        if record.qa_id not in self._seen:
            self._seen[record.qa_id] = (record, origin, file)
            return
        first, _, first_file = self._seen[record.qa_id]
        if first == record:
            what = f"{record.qa_id} is an exact duplicate of {first_file}"
            self._duplicates.append(Problem(file, "qa_id", what))
        else:
            self._conflict(record.qa_id, file, first_file)

    def _conflict(self, qa_id: str, file: str, first: str) -> None:
        # Nothing says which of the two is right, so neither is kept.
        if qa_id not in self._conflicts:
            self._conflicts.add(qa_id)
            self.problems.append(Problem(first, "qa_id", f"{qa_id} has other content in {file}"))
        self.problems.append(Problem(file, "qa_id", f"{qa_id} has other content in {first}"))

    def finish(self, source: str, expected: str, on_invalid: OnInvalid) -> Reading:
        """Raise `DataError` if nothing was read, or for any problem unless those are dropped."""
        kept = [seen for qa_id, seen in self._seen.items() if qa_id not in self._conflicts]
        if self.problems and on_invalid == "error":
            raise _problems_error(source, self.problems, len(kept), expected)
        if not kept:
            raise _empty_error(source, self.problems, self.skipped, expected)
        return Reading(
            records=[record for record, _, _ in kept],
            origins=[origin for _, origin, _ in kept],
            dropped=self.problems + self._duplicates,
            repaired=self.repaired,
            skipped=dict(self.skipped),
        )


def _problems_error(
    source: str, problems: Sequence[Problem], good: int, expected: str
) -> DataError:
    return DataError(
        f"{source}: {len(problems)} problems beside {good} good records\n{_listed(problems)}",
        expected,
        "mend these files, or leave their records out with --set data.on_invalid=drop",
    )


def _empty_error(
    source: str, problems: Sequence[Problem], skipped: Counter[str], expected: str
) -> DataError:
    lines = [f"{source}: no records", *(f"  {n} {kind} skipped" for kind, n in skipped.items())]
    found = "\n".join([*lines, *([_listed(problems)] if problems else [])])
    return DataError(found, expected, "point to the folder that holds the records (docs/data.md)")


def _listed(problems: Sequence[Problem]) -> str:
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  … and {len(problems) - _SHOWN} more")
    return "\n".join(lines)
