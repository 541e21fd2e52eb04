from typing import Any

import pytest
from acceptance_run import prediction, record

from eval.acceptance import Comparison, Item, compare, hash_text, site_thresholds

RIGHT, WRONG = "3) 심전도", "1) 휴식"
ENOUGH = 540


def sealed(number: int, output: str = RIGHT) -> Item:
    row = prediction(number, output)
    return Item(record(number), hash_text(output), row)


def hashed(number: int, output: str = RIGHT) -> Item:
    return Item(record(number), hash_text(output))


def held(items: list[Item], **changed: str) -> Comparison:
    """This machine answers RIGHT to all but those numbers that are given another output."""
    answers: dict[Any, Any] = {}
    for number, item in enumerate(items):
        answers[item.record] = prediction(number, changed.get(f"n{number}", RIGHT))
    return compare(items, answers, site_thresholds())


def outcomes(compared: Comparison) -> dict[str, str]:
    return {check.name: check.outcome for check in compared.verdict.checks}


def test_equal_answers_to_enough_items_pass() -> None:
    compared = held([sealed(n) for n in range(ENOUGH)])
    assert compared.verdict.outcome == "PASS"
    assert (compared.identical, compared.changed) == (ENOUGH, ())
    assert set(outcomes(compared)) == {
        "accuracy", "flips", "wording", "unread", "missing_end", "han_leak"
    }  # fmt: skip


def test_equal_answers_to_few_items_prove_nothing_and_it_says_so() -> None:
    compared = held([sealed(n) for n in range(33)])
    assert compared.verdict.outcome == "INCONCLUSIVE"
    assert compared.only_small
    assert "wording: undecided" in " ".join(note.en for note in compared.verdict.reasons)


def test_a_machine_that_answers_otherwise_fails() -> None:
    wrong = {f"n{n}": WRONG for n in range(60)}
    compared = held([sealed(n) for n in range(ENOUGH)], **wrong)
    assert compared.verdict.outcome == "FAIL"
    assert outcomes(compared)["flips"] == "FAIL"
    assert not compared.only_small
    assert {change.kind for change in compared.changed} == {"lost"}


def test_flips_of_equal_files_may_not_reach_what_quantization_may() -> None:
    """4 % of flips, half of them gains: within the limit of Q4_K_M, not of the same file."""
    items = [sealed(n, WRONG if n < 11 else RIGHT) for n in range(ENOUGH)]
    compared = held(items, **{f"n{n}": WRONG for n in range(11, 22)})
    assert outcomes(compared)["flips"] == "FAIL"


def test_every_kind_of_change_is_told_apart() -> None:
    items = [sealed(0), sealed(1, WRONG), sealed(2, WRONG), sealed(3), sealed(4)]
    compared = held(items, n0=WRONG, n2="2) 운동", n3="답은 3) 심전도")
    found = [(c.kind, c.sealed_option, c.option) for c in compared.changed]
    assert found == [("lost", 3, 1), ("gained", 1, 3), ("other", 1, 2), ("text", 3, 3)]


def test_a_set_over_a_limit_is_not_merely_small() -> None:
    compared = held([sealed(n) for n in range(33)], n0=WRONG)
    assert compared.verdict.outcome == "INCONCLUSIVE"
    assert not compared.only_small


def test_equal_hashes_are_as_good_as_equal_texts() -> None:
    assert held([hashed(n) for n in range(ENOUGH)]).verdict.outcome == "PASS"


def test_a_different_hash_is_taken_at_its_worst_and_proves_nothing() -> None:
    compared = held([hashed(n, "?") for n in range(60)] + [hashed(n) for n in range(60, ENOUGH)])
    assert outcomes(compared)["flips"] == "FAIL"
    assert compared.verdict.outcome == "INCONCLUSIVE"
    assert compared.verdict.reasons[-1].en.startswith("60 answers differ")
    assert {change.kind for change in compared.changed} == {"unknown"}


def test_a_few_different_hashes_may_still_pass() -> None:
    items = [hashed(0, "답은 3) 심전도"), *(hashed(n) for n in range(1, ENOUGH))]
    assert held(items).verdict.outcome == "PASS"


def test_a_loss_among_texts_stays_a_loss_beside_unknown_answers() -> None:
    items = [sealed(n) for n in range(ENOUGH)] + [hashed(ENOUGH, "?")]
    wrong = {f"n{n}": WRONG for n in range(60)}
    assert held(items, **wrong).verdict.outcome == "FAIL"


def test_nothing_to_compare_is_no_pass() -> None:
    compared = held([])
    assert compared.verdict.outcome == "INCONCLUSIVE"
    assert "--records" in compared.verdict.reasons[0].en
    assert not compared.only_small


def test_a_machine_that_says_nothing_fails() -> None:
    items = [sealed(n) for n in range(3)]
    compared = held(items, n0="", n1="", n2="")
    assert compared.verdict.outcome == "FAIL"
    assert "every output is empty" in compared.verdict.reasons[0].en


@pytest.mark.parametrize(("before", "after", "passes"), [(0.9, 0.9, True), (0.9, 0.5, False)])
def test_calibration_counts_where_probabilities_are_sealed(
    before: float, after: float, passes: bool
) -> None:
    def sure(number: int, p: float) -> dict[str, Any]:
        rest = (1 - p) / 2
        return {**prediction(number), "option_probabilities": [rest, rest, p]}

    items = [Item(record(n), hash_text(RIGHT), sure(n, before)) for n in range(ENOUGH)]
    answers = {item.record: sure(n, after) for n, item in enumerate(items)}
    compared = compare(items, answers, site_thresholds())
    assert (outcomes(compared)["ece"] == "PASS") == passes
