import pytest
from report_run import choice, essay

from eval.flips import find_flips
from kormed_edge.errors import EvalError

RIGHT, WRONG, OTHER, UNREAD = "2) 나", "1) 가", "3) 라", "모르겠다"


def flips_of(before, after):
    flips = find_flips([choice(1, before)], [choice(1, after)])
    return [len(items) for items in flips]


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        (RIGHT, WRONG, [1, 0, 0]),
        (RIGHT, UNREAD, [1, 0, 0]),
        (WRONG, RIGHT, [0, 1, 0]),
        (WRONG, OTHER, [0, 0, 1]),
        (WRONG, UNREAD, [0, 0, 1]),
        (RIGHT, "답은 2번입니다", [0, 0, 0]),
        (WRONG, "답은 1번입니다", [0, 0, 0]),
    ],
)
def test_a_change_is_told_by_what_was_right_before_and_after(before, after, counts):
    assert flips_of(before, after) == counts


def test_a_flip_has_both_texts_and_both_options_in_the_order_of_ids():
    lost = find_flips([choice(2, RIGHT), choice(1, RIGHT)], [choice(1, WRONG), choice(2, UNREAD)])
    assert [flip.qa_id for flip in lost.lost] == ["17001", "17002"]
    assert (lost.lost[0].reference["output"], lost.lost[0].candidate["output"]) == (RIGHT, WRONG)
    assert [(flip.reference_option, flip.candidate_option) for flip in lost.lost] == [
        (2, 1), (2, None),
    ]  # fmt: skip


def test_items_without_options_do_not_flip():
    assert find_flips([essay(1, "쉬면 낫는다.")], [essay(1, UNREAD)]) == ([], [], [])


def test_an_arm_without_predictions_is_refused():
    with pytest.raises(EvalError, match="no predictions"):
        find_flips([], [choice(1, RIGHT)])
