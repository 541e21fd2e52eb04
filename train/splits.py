"""Records to train, valid and test; questions that two of them share."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Literal, TypeVar

from kormed_edge.errors import ConfigError, DataError
from kormed_edge.records import Record, split_options
from train.duplicates import near_pairs, normalised

Scheme = Literal["paper", "official"]
Ratios = tuple[float, float, float]
Shares = tuple[Fraction, Fraction, Fraction]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Splits:
    train: list[Record]
    valid: list[Record]
    test: list[Record]

    def named(self) -> dict[str, list[Record]]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


def split_records(
    records: Sequence[Record],
    origins: Sequence[str | None],
    scheme: Scheme = "paper",
    ratios: Ratios = (0.8, 0.1, 0.1),
    seed: int = 42,
) -> Splits:
    """Split by domain and question type; the same records and seed give the same splits.

    `paper` pools everything, as Song & Erdenebayar 2026 did: 17,280 records give 13,824, 1,728
    and 1,728. `official` keeps the published validation part as test and carves valid from the
    rest in the ratio of train to valid. Sizes are exact unless a stratum would lose its last
    training record. Raises `ConfigError` for ratios and `DataError` for unknown origins.
    """
    shares = _shares(ratios)
    if not records:
        raise DataError("no records to split", "at least one record")
    if scheme == "paper":
        return _pooled(records, shares, seed)
    training, held_out = _published(records, origins)
    kept = shares[0] + shares[1]
    carved = _pooled(training, (shares[0] / kept, shares[1] / kept, Fraction(0)), seed)
    return Splits(carved.train, carved.valid, _mixed(held_out, seed))


def _shares(ratios: Ratios) -> Shares:
    # Via str: as binary fractions .8 + .1 + .1 is not 1, and 17,280 × .1 is not 1,728.
    train, valid, test = (Fraction(str(ratio)) for ratio in ratios)
    whole = train + valid + test
    if train <= 0 or min(valid, test) < 0 or abs(whole - 1) > 1e-9:
        raise ConfigError(
            f"data.ratios {ratios}",
            "train > 0, valid and test ≥ 0, together 1",
            "--set data.ratios=[0.8,0.1,0.1]",
        )
    return train / whole, valid / whole, test / whole


def _pooled(records: Sequence[Record], shares: Shares, seed: int) -> Splits:
    strata: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.domain, r.q_type)):
        strata[record.domain, record.q_type].append(record)
    sizes = apportion(len(records), dict(zip(("train", "valid", "test"), shares, strict=True)))
    left = {stratum: len(members) for stratum, members in strata.items()}
    taken = {}
    for name in ("test", "valid"):
        # One record of every stratum is out of reach, so that train always has it.
        taken[name] = apportion(sizes[name], left, {s: n - 1 for s, n in left.items()})
        left = {stratum: n - taken[name][stratum] for stratum, n in left.items()}
    train, valid, test = [], [], []
    for stratum, members in strata.items():
        first, second = taken["test"][stratum], taken["test"][stratum] + taken["valid"][stratum]
        mixed = _mixed(members, seed)
        test += mixed[:first]
        valid += mixed[first:second]
        train += mixed[second:]
    return Splits(_mixed(train, seed), _mixed(valid, seed), _mixed(test, seed))


def _mixed(records: Sequence[Record], seed: int) -> list[Record]:
    """The records in an order that depends on the seed and their ids alone."""

    def key(record: Record) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{record.qa_id}".encode()).digest(), record.qa_id

    return sorted(records, key=key)


def _published(
    records: Sequence[Record], origins: Sequence[str | None]
) -> tuple[list[Record], list[Record]]:
    parts: dict[str | None, list[Record]] = defaultdict(list)
    for record, origin in zip(records, origins, strict=True):
        parts[origin].append(record)
    if parts[None] or not parts["training"] or not parts["validation"]:
        raise DataError(
            f"{len(parts['training'])} training and {len(parts['validation'])} validation records, "
            f"{len(parts[None])} whose folder or file name tells neither",
            "both published parts, for the official scheme",
            "use --set data.scheme=paper, or keep AI Hub's Training and Validation folders",
        )
    return parts["training"], parts["validation"]


def apportion(
    total: int, weights: Mapping[Key, int | Fraction], room: Mapping[Key, int] | None = None
) -> dict[Key, int]:
    """Share `total` in proportion to `weights`, by largest remainder, none above its `room`.

    The shares add up to `total`, or to all the room there is. Ties go to the earlier key.
    """
    whole = sum(weights.values())
    quotas = {key: Fraction(total) * weight / (whole or 1) for key, weight in weights.items()}
    limits = dict.fromkeys(weights, total) if room is None else room
    given = {key: min(int(quota), limits[key]) for key, quota in quotas.items()}
    rest = min(total, sum(limits.values())) - sum(given.values())
    order = sorted(weights, key=lambda key: int(quotas[key]) - quotas[key])
    while rest:
        for key in [key for key in order if given[key] < limits[key]][:rest]:
            given[key] += 1
            rest -= 1
    return given


@dataclass(frozen=True, slots=True)
class Overlap:
    """One question that two splits share. `kind` is "exact" or "near"; 1.0 is the same grams."""

    kind: Literal["exact", "near"]
    similarity: float
    first_split: str
    first_id: str
    second_split: str
    second_id: str


def find_overlap(splits: Splits) -> list[Overlap]:
    """Questions that occur in two splits, exactly or nearly.

    Exact: the same normalised question. Near: the same stem with the same options in another
    order, or a Jaccard similarity of character 5-grams of at least 0.9.
    """
    places = [(name, record) for name, records in splits.named().items() for record in records]
    forms = [_question_form(record.question) for _, record in places]
    found: dict[tuple[int, int], float] = {}
    for i, j in _equal_pairs([(stem, tuple(sorted(options))) for stem, options in forms]):
        found[i, j] = 1.0
    texts = ["\n".join([stem, *options]) for stem, options in forms]
    members = _groups(texts)
    unique = list(members)
    for a, b, similarity in near_pairs(unique):
        for i in members[unique[a]]:
            for j in members[unique[b]]:
                found.setdefault((min(i, j), max(i, j)), similarity)
    return [
        _overlap(places[i], places[j], texts[i] == texts[j], similarity)
        for (i, j), similarity in sorted(found.items())
        if places[i][0] != places[j][0]
    ]


def drop_overlap(splits: Splits, overlap: Sequence[Overlap]) -> Splits:
    """The splits without their shared questions: train gives way to both, valid to test."""
    out = {(pair.first_split, pair.first_id) for pair in overlap}
    kept = {
        name: [record for record in records if (name, record.qa_id) not in out]
        for name, records in splits.named().items()
    }
    return Splits(**kept)


def _question_form(question: str) -> tuple[str, list[str]]:
    stem, options = split_options(question)
    return normalised(stem), [normalised(option) for option in options]


def _groups(values: Sequence[Key]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        groups[value].append(i)
    return groups


def _equal_pairs(values: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    for group in _groups(values).values():
        yield from combinations(group, 2)


def _overlap(
    first: tuple[str, Record], second: tuple[str, Record], exact: bool, similarity: float
) -> Overlap:
    return Overlap(
        "exact" if exact else "near",
        round(similarity, 4),
        first[0],
        first[1].qa_id,
        second[0],
        second[1].qa_id,
    )
