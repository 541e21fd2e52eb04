"""Domains of unequal size: small ones repeated, or their loss counted more.

Only the training split is ever touched; validation and test keep the natural distribution.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kormed_edge.records import Record

Balance = Literal["none", "oversample", "weighted_loss"]


def balance_training(
    records: Sequence[Record], method: Balance, seed: int
) -> tuple[list[Record], dict[str, Any]]:
    """What goes into train.jsonl, and what `stats.json` says about it."""
    balanced = oversample(records, seed) if method == "oversample" else list(records)
    about: dict[str, Any] = {
        "method": method,
        "before": _by_domain(records),
        "after": _by_domain(balanced),
    }
    if method == "weighted_loss":
        about["weights"] = domain_weights(records)
    return balanced, about


def oversample(records: Sequence[Record], seed: int) -> list[Record]:
    """Every domain as often as the largest; a domain's records differ by one copy at most.

    Copies have the same qa_id. Which records get one more, and the order of all, depend on the
    seed and the ids alone.
    """
    members: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        members[record.domain].append(record)
    largest = max((len(group) for group in members.values()), default=0)
    copies = []
    for group in members.values():
        whole, rest = divmod(largest, len(group))
        order = sorted(group, key=lambda record: _place(seed, record, 0))
        for i, record in enumerate(order):
            copies += [(record, copy) for copy in range(whole + (i < rest))]
    copies.sort(key=lambda pair: _place(seed, *pair))
    return [record for record, _ in copies]


def domain_weights(records: Sequence[Record]) -> dict[str, float]:
    """A weight for the loss of every sample of a domain, in inverse proportion to its size.

    Every domain weighs the same in sum, and the mean over all samples is 1, so that the learning
    rate keeps its meaning.
    """
    counts = _by_domain(records)
    return {domain: len(records) / (len(counts) * n) for domain, n in counts.items()}


def loss_weights(data: Path) -> dict[str, float] | None:
    """The weights by domain that a finished data stage asks training for; None: all are equal."""
    stats = json.loads((data / "stats.json").read_text(encoding="utf-8"))
    weights: dict[str, float] | None = stats.get("balance", {}).get("weights")
    return weights


def _by_domain(records: Sequence[Record]) -> dict[str, int]:
    return dict(sorted(Counter(record.domain for record in records).items()))


def _place(seed: int, record: Record, copy: int) -> tuple[bytes, str, int]:
    digest = hashlib.sha256(f"{seed}:{record.qa_id}:{copy}".encode()).digest()
    return digest, record.qa_id, copy
