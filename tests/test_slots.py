import pytest

from kormed_edge.generation import Job
from kormed_edge.request import Request
from kormed_edge.slots import Slot, Work, choose_slot, common_prefix, shared_prefix
from kormed_edge.text_stream import TextStream


def busy(index: int, tokens: list[int]) -> Slot:
    job = Job(Request((1,), 1), None)  # type: ignore[arg-type]
    return Slot(index, tokens, work=Work(job, 0, [], 1, TextStream()))


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1), ([4], [5], 0)],
)
def test_common_prefix(a: list[int], b: list[int], length: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == length


def test_last_token_of_a_prompt_is_never_shared() -> None:
    assert shared_prefix(Slot(0, [1, 2, 3]), [1, 2, 3], None) == 2


def test_what_another_adapter_computed_is_not_shared() -> None:
    slot = Slot(0, [1, 2, 3], adapter="one")
    assert shared_prefix(slot, [1, 2, 3, 4], None) == 0
    assert shared_prefix(slot, [1, 2, 3, 4], "one") == 3


def test_conversation_gets_its_own_slot_back() -> None:
    slots = [Slot(0, [1, 2, 3, 4], used=1), Slot(1, [1, 2, 7, 8], used=2), Slot(2, used=0)]
    assert choose_slot(slots, [1, 2, 7, 8, 9], None) is slots[1]


def test_new_conversation_takes_the_oldest_slot_though_others_begin_alike() -> None:
    slots = [Slot(0, [1, 2, 3, 4], used=2), Slot(1, [1, 5, 6, 7], used=1)]
    assert choose_slot(slots, [1, 2, 8, 9], None) is slots[1]


def test_slot_at_work_is_not_given_away() -> None:
    slots = [busy(0, [1, 2, 3]), Slot(1, [9], used=5)]
    assert choose_slot(slots, [1, 2, 3, 4], None) is slots[1]
    assert choose_slot(slots[:1], [1, 2, 3, 4], None) is None
