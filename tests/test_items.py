from collections import Counter

from eval.items import choose_records
from kormed_edge.config import EvalConfig
from kormed_edge.records import Record

TYPES = {"multiple_choice": 100, "short_answer": 80, "descriptive": 20}
RECORDS = [
    Record(f"{q_type}-{i}", "obgyn", q_type, "질문", "답")
    for q_type, n in TYPES.items()
    for i in range(n)
]


def test_every_item_is_asked_by_default() -> None:
    assert choose_records(RECORDS, EvalConfig()) == RECORDS
    assert not EvalConfig().partial


def test_limit_takes_the_first_items() -> None:
    assert choose_records(RECORDS, EvalConfig(limit=3)) == RECORDS[:3]
    assert EvalConfig(limit=3).partial


def test_paper_s_sample_has_66_of_each_type_where_there_are_so_many() -> None:
    config = EvalConfig(sample="paper")
    chosen = choose_records(RECORDS, config)
    found = Counter(record.q_type for record in chosen)
    assert found == {"multiple_choice": 66, "short_answer": 66, "descriptive": 20}
    assert config.partial


def test_sample_does_not_depend_on_the_order_of_the_split() -> None:
    config = EvalConfig(sample="paper")
    again = choose_records(RECORDS[::-1], config)
    assert sorted(r.qa_id for r in again) == sorted(
        r.qa_id for r in choose_records(RECORDS, config)
    )
    assert again == [record for record in RECORDS[::-1] if record in again]
