"""Samples laid end to end, so that next to no token is padding.

Saves: with two samples a micro-batch, the padding of the shorter one (a quarter of the tokens at
the lengths of AI Hub 71875); with a token budget, the many small passes that a GPU spends waiting
to be told what to do next. The attention of `train.attention` keeps the samples apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORED = -100
"""The target of a token that the loss does not count (torch's cross-entropy)."""

TRIES = 32
"""How often packs of one number are made a little larger before there is one more of them."""

Row = dict[str, Any]


def split_by_tokens(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Indices of samples in as few groups as fit `budget` tokens each, filled evenly.

    Groups are padded to a multiple of `multiple` later, so the sizes are chosen as such multiples
    whose sum is hardly more than the samples, and each is filled as far as it goes. No length may
    be above the budget.
    """
    if max(lengths, default=0) > budget:
        raise ValueError(f"a sample of {max(lengths)} tokens in a budget of {budget}")
    total = sum(lengths)
    step = max(1, budget // multiple // TRIES)
    for count in range(-(-total // budget), len(lengths) + 1):
        for units in range(-(-total // multiple), count * (budget // multiple) + 1, step):
            sizes = [multiple * ((units + i) // count) for i in range(count)]
            if (groups := _fill(lengths, sizes)) is not None:
                return groups
    return [[i] for i in range(len(lengths))]


def _fill(lengths: Sequence[int], sizes: Sequence[int]) -> list[list[int]] | None:
    """A group for each size that holds no more than it, or None if samples are left over."""
    left = list(range(len(lengths)))
    groups = []
    for size in sizes:
        groups.append(sorted(_fullest(lengths, left, size)))
        left = [i for i in left if i not in groups[-1]]
    return None if left else [group for group in groups if group]


def _fullest(lengths: Sequence[int], among: Sequence[int], size: int) -> tuple[int, ...]:
    """The samples whose tokens come closest to `size` from below (subset sum)."""
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for index in sorted(among, key=lambda i: -lengths[i]):
        for total, chosen in list(reached.items()):
            if (more := total + lengths[index]) <= size and more not in reached:
                reached[more] = (*chosen, index)
        if size in reached:
            break
    return reached[max(reached)]


@dataclass(frozen=True)
class PackCollator:
    """One optimizer step's samples into packs: one forward and backward pass each.

    Micro-batches of `batch_size` samples, as the configuration says, each cut further where it
    has more than `budget` tokens. Packs have a multiple of `multiple` tokens, so that there are few
    sizes to compile for, and room for `batch_size` samples.
    """

    batch_size: int
    budget: int | None
    longest: int
    multiple: int = 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`labels` are all targets of the step: transformers counts its tokens by them, and by
        `shift_labels` that none is left out as a sequence's first. `ids` name its samples."""
        import torch

        starts = range(0, len(rows), self.batch_size)
        batches = [rows[start : start + self.batch_size] for start in starts]
        packs = [self.pack(group) for batch in batches for group in self._groups(batch)]
        targets = torch.cat([pack["targets"][0] for pack in packs])
        return {
            "packs": packs,
            "labels": targets,
            "shift_labels": targets,
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "ids": [row.get("qa_id", "") for row in rows],
        }

    def _groups(self, batch: Sequence[Row]) -> list[list[Row]]:
        if self.budget is None:
            return [list(batch)]
        lengths = [len(row["input_ids"]) for row in batch]
        groups = split_by_tokens(lengths, self.budget, self.multiple)
        return [[batch[i] for i in group] for group in groups]

    def pack(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Samples in one row of tokens, shape (1, tokens), each with positions of its own.

        A token's target is the next one's label; a sample's last token has none. Its importance is
        its sample's weight, 0 without a target. `cu_seq_lens_q` (batch_size + 2) says where samples
        begin and the padding ends; `max_length_q` is a constant, because compiled code depends on
        it.
        """
        import torch

        tokens = sum(len(row["input_ids"]) for row in rows)
        padding = -tokens % self.multiple
        ids = [token for row in rows for token in row["input_ids"]]
        positions = [i for row in rows for i in range(len(row["input_ids"]))]
        targets = [target for row in rows for target in (*row["labels"][1:], IGNORED)]
        weights = [row.get("weight", 1.0) for row in rows for _ in row["labels"]]
        importance = [w * (t != IGNORED) for w, t in zip(weights, targets, strict=True)]
        bounds = [0]
        for row in rows:
            bounds.append(bounds[-1] + len(row["input_ids"]))
        bounds += [tokens + padding] * (self.batch_size + 2 - len(bounds))
        return {
            "input_ids": torch.tensor([ids + [0] * padding]),
            "position_ids": torch.tensor([positions + list(range(padding))]),
            "targets": torch.tensor([targets + [IGNORED] * padding]),
            "importance": torch.tensor([importance + [0.0] * padding]),
            "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
            "max_length_q": max(self.longest, self.multiple),
        }
