import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from train.attention import attend_packed
from train.packing import IGNORED, PackCollator, split_by_tokens

ROWS = [
    {"input_ids": [10, 11, 12], "labels": [IGNORED, 11, 12]},
    {"input_ids": [20, 21], "labels": [20, 21]},
]


def test_samples_lie_end_to_end_and_each_begins_anew() -> None:
    pack = PackCollator(batch_size=2, budget=None, longest=8)(ROWS)["packs"][0]
    assert pack["input_ids"].tolist() == [[10, 11, 12, 20, 21]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert pack["targets"].tolist() == [[11, 12, IGNORED, 21, IGNORED]]
    assert pack["cu_seq_lens_q"].tolist() == [0, 3, 5, 5]
    assert pack["max_length_q"] == 8


def test_padding_is_a_sample_without_targets() -> None:
    pack = PackCollator(batch_size=2, budget=None, longest=8, multiple=4)(ROWS)["packs"][0]
    assert pack["input_ids"].shape == (1, 8)
    assert pack["targets"].tolist() == [[11, 12, IGNORED, 21, *[IGNORED] * 4]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert pack["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]


def test_a_sample_s_weight_is_that_of_its_tokens_with_a_target() -> None:
    rows = [ROWS[0] | {"weight": 2.0}, ROWS[1]]
    pack = PackCollator(batch_size=2, budget=None, longest=8, multiple=4)(rows)["packs"][0]
    assert pack["importance"].tolist() == [[2, 2, 0, 1, 0, 0, 0, 0]]


def test_micro_batches_are_as_configured_and_cut_where_the_budget_ends() -> None:
    assert len(PackCollator(batch_size=1, budget=None, longest=8)(ROWS)["packs"]) == 2
    assert len(PackCollator(batch_size=2, budget=5, longest=8)(ROWS)["packs"]) == 1
    cut = PackCollator(batch_size=2, budget=4, longest=8)(ROWS)
    assert [p["input_ids"].tolist() for p in cut["packs"]] == [[[20, 21]], [[10, 11, 12]]]


def test_every_label_that_counts_is_counted_once() -> None:
    step = PackCollator(batch_size=2, budget=4, longest=8, multiple=4)(ROWS)
    assert sorted(t for t in step["labels"].tolist() if t != IGNORED) == [11, 12, 21]
    assert step["shift_labels"].tolist() == step["labels"].tolist()


@pytest.mark.parametrize("multiple", [1, 64, 256])
def test_groups_hold_each_sample_once_within_the_budget(multiple: int) -> None:
    draw = random.Random(multiple)
    for _ in range(40):
        lengths = [max(90, min(1024, int(draw.lognormvariate(5.5, 0.42)))) for _ in range(16)]
        groups = split_by_tokens(lengths, 2560, multiple)
        assert sorted(i for group in groups for i in group) == list(range(16))
        padded = [-(-sum(lengths[i] for i in group) // multiple) * multiple for group in groups]
        assert max(padded) <= 2560
        assert sum(padded) < sum(lengths) + 2 * multiple
        assert len(groups) == -(-sum(padded) // 2560)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([4, 4], [[0], [1]]), ([4], [[0]]), ([], []), ([2, 3, 1, 4], [[0, 2], [1], [3]])],
)
def test_small_groups(lengths: list[int], expected: list[list[int]]) -> None:
    found = split_by_tokens(lengths, 4)
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


def test_a_sample_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample of 5 tokens in a budget of 4"):
        split_by_tokens([1, 5], 4)


def test_a_packed_sample_sees_itself_alone() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 3, 7, 7], dtype=torch.int32)
    packed, _ = attend_packed(
        torch.nn.Module(), query, key, value, None, 0.5, cu_seq_lens_q=bounds, max_length_q=8
    )
    for start, end in ((0, 3), (3, 7)):
        alone = scaled_dot_product_attention(
            *(each[:, :, start:end] for each in (query, key, value)),
            is_causal=True, scale=0.5, enable_gqa=True,
        )  # fmt: skip
        assert torch.allclose(packed[:, start:end], alone.transpose(1, 2), atol=1e-6)
