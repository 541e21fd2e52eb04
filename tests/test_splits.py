import random
from collections import Counter

import pytest

from kormed_edge.errors import ConfigError, DataError
from kormed_edge.records import DOMAINS, Q_TYPES, Record, format_question
from train.splits import Overlap, Splits, apportion, drop_overlap, find_overlap, split_records

STRATA = [(domain, q_type) for domain in DOMAINS.values() for q_type in Q_TYPES.values()]


def make_records(*sizes):
    """Records with distinct questions, `sizes[i]` of them in the i-th stratum."""
    return [
        Record(f"{domain}-{q_type}-{n}", domain, q_type, f"{domain} {q_type} {n:03}", "답")
        for (domain, q_type), size in zip(STRATA, sizes, strict=False)
        for n in range(size)
    ]


def question(qa_id, text):
    return Record(qa_id, "obgyn", "short_answer", text, "답")


def choice(qa_id, stem, *options):
    return Record(qa_id, "obgyn", "multiple_choice", format_question(stem, list(options)), "1) 가")


def sizes(splits):
    return [len(records) for records in splits.named().values()]


def strata_of(records):
    return Counter((record.domain, record.q_type) for record in records)


def pooled(records, **options):
    return split_records(records, [None] * len(records), "paper", **options)


def test_the_papers_sizes_come_out_exactly():
    records = make_records(1501, 249, 241, 1717, 352, 352, 457, 96, 96, 9000, 1610, 1609)
    splits = pooled(records)
    assert len(records) == 17_280
    assert sizes(splits) == [13_824, 1_728, 1_728]
    for stratum, size in strata_of(records).items():
        assert abs(strata_of(splits.test)[stratum] - size / 10) < 1
        assert abs(strata_of(splits.valid)[stratum] - size / 10) < 1


def test_every_record_is_in_one_split():
    records = make_records(11, 7, 5, 23)
    splits = pooled(records)
    ids = [record.qa_id for part in splits.named().values() for record in part]
    assert sorted(ids) == sorted(record.qa_id for record in records)


def test_the_order_of_the_input_does_not_matter_but_the_seed_does():
    records = make_records(40, 30)
    mixed = random.Random(1).sample(records, len(records))
    assert pooled(records) == pooled(mixed)
    assert pooled(records) != pooled(records, seed=43)


def test_the_split_is_pinned():
    assert [record.qa_id for record in pooled(make_records(20)).test] == [
        "obgyn-multiple_choice-3",
        "obgyn-multiple_choice-6",
    ]


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1), (2, 1, 12), (1,) * 12, (3, 3, 3, 3, 1)])
def test_every_stratum_keeps_a_record_for_training(counts):
    records = make_records(*counts)
    splits = pooled(records)
    assert set(strata_of(splits.train)) == set(strata_of(records))
    assert sum(sizes(splits)) == len(records)


def test_small_sets_have_their_exact_sizes_too():
    assert sizes(pooled(make_records(4, 4, 4, 4, 4))) == [16, 2, 2]


def test_the_official_scheme_tests_on_the_published_validation():
    records = make_records(90, 10)
    origins = ["training"] * 90 + ["validation"] * 10
    splits = split_records(records, origins, "official")
    assert sizes(splits) == [80, 10, 10]
    assert {record.q_type for record in splits.test} == {"short_answer"}


@pytest.mark.parametrize("origins", [[None, "validation"], ["training"] * 2, ["validation"] * 2])
def test_the_official_scheme_needs_both_origins(origins):
    with pytest.raises(DataError, match=r"data\.scheme=paper"):
        split_records(make_records(2), origins, "official")


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.2), (0, 0.5, 0.5), (1.1, -0.1, 0.0)])
def test_ratios_that_are_no_shares_are_refused(ratios):
    with pytest.raises(ConfigError, match="together 1"):
        pooled(make_records(10), ratios=ratios)


def test_thirds_are_shares():
    assert sizes(pooled(make_records(30), ratios=(1 / 3, 1 / 3, 1 / 3))) == [10, 10, 10]


def test_nothing_to_split_is_refused():
    with pytest.raises(DataError, match="no records to split"):
        pooled([])


def test_apportion_gives_the_largest_remainders_within_the_room():
    assert apportion(10, {"a": 55, "b": 30, "c": 15}) == {"a": 6, "b": 3, "c": 1}
    assert apportion(10, {"a": 55, "b": 30, "c": 15}, {"a": 2, "b": 9, "c": 9}) == {
        "a": 2,
        "b": 5,
        "c": 3,
    }
    assert apportion(5, {"a": 1, "b": 1}, {"a": 1, "b": 0}) == {"a": 1, "b": 0}
    assert apportion(0, {"a": 0}) == {"a": 0}


def test_the_same_question_in_two_splits_is_exact_overlap():
    splits = Splits([question("1", "가상 질환은?")], [], [question("2", "가상  질환은")])
    assert find_overlap(splits) == [Overlap("exact", 1.0, "train", "1", "test", "2")]


def test_the_same_options_in_another_order_are_near_overlap():
    splits = Splits([choice("1", "답은?", "가", "나")], [choice("2", "답은", "나", "가")], [])
    assert find_overlap(splits) == [Overlap("near", 1.0, "train", "1", "valid", "2")]


def test_other_options_under_the_same_stem_are_no_overlap():
    splits = Splits([choice("1", "답은?", "가", "나")], [choice("2", "답은?", "다", "라")], [])
    assert find_overlap(splits) == []


def test_nearly_the_same_text_is_near_overlap():
    text = "열두 살 환자가 어제부터 시작된 가상의 증상으로 병원에 왔다. "
    text += "검사를 하였더니 모의 수치가 늘어 있었다. "
    splits = Splits(
        [], [question("1", text + "진단은 무엇인가?")], [question("2", text + "진단은?")]
    )
    [pair] = find_overlap(splits)
    assert (pair.kind, pair.first_split, pair.second_split) == ("near", "valid", "test")
    assert 0.9 <= pair.similarity < 1


def test_twins_inside_one_split_are_no_overlap():
    assert find_overlap(Splits([question("1", "같다"), question("2", "같다")], [], [])) == []


def test_dropping_overlap_takes_it_out_of_train_and_never_out_of_test():
    train = [question("1", "하나"), question("2", "둘"), question("3", "셋")]
    splits = Splits(train, [question("4", "둘"), question("5", "넷")], [question("6", "하나"),
                    question("7", "넷")])  # fmt: skip
    kept = drop_overlap(splits, find_overlap(splits))
    ids = [[record.qa_id for record in part] for part in kept.named().values()]
    assert ids == [["3"], ["4"], ["6", "7"]]
    assert find_overlap(kept) == []
