import json
from collections import Counter
from pathlib import Path

import pytest

from kormed_edge.records import Record
from train.balance import balance_training, domain_weights, loss_weights, oversample


def records(**domains: int) -> list[Record]:
    return [
        Record(f"{domain}-{i}", domain, "short_answer", "질문?", "답")
        for domain, n in domains.items()
        for i in range(n)
    ]


NATURAL = records(internal_medicine=7, obgyn=3, emergency=1)


def test_oversampling_brings_every_domain_to_the_largest() -> None:
    copies = Counter(record.qa_id for record in oversample(NATURAL, 42))
    assert Counter(record.domain for record in oversample(NATURAL, 42)) == {
        "internal_medicine": 7, "obgyn": 7, "emergency": 7,
    }  # fmt: skip
    assert {n for qa_id, n in copies.items() if qa_id[:2] == "in"} == {1}
    assert sorted(n for qa_id, n in copies.items() if qa_id[:2] == "ob") == [2, 2, 3]


def test_oversampling_depends_on_the_seed_and_the_ids_alone() -> None:
    assert oversample(NATURAL[::-1], 42) == oversample(NATURAL, 42)
    assert oversample(NATURAL, 43) != oversample(NATURAL, 42)
    assert oversample([], 42) == []


def test_weights_make_domains_equal_and_keep_the_mean() -> None:
    weights = domain_weights(NATURAL)
    sums = {d: n * weights[d] for d, n in Counter(r.domain for r in NATURAL).items()}
    assert list(sums.values()) == pytest.approx([11 / 3] * 3)
    assert sum(weights[record.domain] for record in NATURAL) == pytest.approx(len(NATURAL))


def test_counts_before_and_after_are_recorded() -> None:
    balanced, about = balance_training(NATURAL, "oversample", 42)
    assert len(balanced) == 21
    assert about == {
        "method": "oversample",
        "before": {"emergency": 1, "internal_medicine": 7, "obgyn": 3},
        "after": {"emergency": 7, "internal_medicine": 7, "obgyn": 7},
    }


def test_the_natural_distribution_is_left_as_it_is() -> None:
    balanced, about = balance_training(NATURAL, "none", 42)
    assert balanced == NATURAL
    assert about["after"] == about["before"]


@pytest.mark.parametrize("method", ["none", "oversample", "weighted_loss"])
def test_training_finds_the_weights_in_the_data_stage(tmp_path: Path, method: str) -> None:
    balanced, about = balance_training(NATURAL, method, 42)  # type: ignore[arg-type]
    (tmp_path / "stats.json").write_text(json.dumps({"balance": about}))
    expected = domain_weights(balanced) if method == "weighted_loss" else None
    assert loss_weights(tmp_path) == expected


def test_data_of_an_earlier_kit_have_no_weights(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text("{}")
    assert loss_weights(tmp_path) is None
