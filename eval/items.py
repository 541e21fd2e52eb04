"""Which items of the test split are asked: all of them, unless a run says otherwise."""

from collections.abc import Sequence
from random import Random

from kormed_edge.config import EvalConfig
from kormed_edge.records import Q_TYPES, Record

PAPER_ITEMS = 66  # of each type: 198 in all, of which 45 of 66 give the paper's 68.2 %
PAPER_SEED = 42


def choose_records(records: Sequence[Record], config: EvalConfig) -> list[Record]:
    """The records that every arm answers, in the order of the split."""
    chosen = list(records) if config.sample == "all" else _paper_sample(records)
    return chosen[: config.limit]


def _paper_sample(records: Sequence[Record]) -> list[Record]:
    """66 items a type, all where there are fewer. Which 66 the paper took, it does not say.

    Source: Song & Erdenebayar 2026, Table 4.
    """
    chosen: set[str] = set()
    for q_type in Q_TYPES.values():
        ids = sorted(record.qa_id for record in records if record.q_type == q_type)
        chosen.update(Random(PAPER_SEED).sample(ids, min(PAPER_ITEMS, len(ids))))
    return [record for record in records if record.qa_id in chosen]
