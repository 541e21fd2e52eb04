"""Slots: the places in the KV cache, what each holds, and which one a request gets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kormed_edge.generation import Job
from kormed_edge.request import TokenLogprob
from kormed_edge.text_stream import TextStream


@dataclass
class Work:
    """A request in its slot."""

    job: Job
    arrival: int
    pending: list[int]
    """Tokens to decode next: the rest of the prompt, or the one token last chosen."""
    left: int
    """How many tokens may still be generated."""
    text: TextStream
    logprobs: list[TokenLogprob] = field(default_factory=list)
    started: bool = False
    speaking: bool = False


@dataclass
class Slot:
    """One sequence of the cache; `tokens` are those whose keys and values it holds."""

    index: int
    tokens: list[int] = field(default_factory=list)
    adapter: str | None = None
    used: int = -1
    """The last step that this slot took part in."""
    work: Work | None = None


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from their start."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def shared_prefix(slot: Slot, ids: Sequence[int], adapter: str | None) -> int:
    """How many of a prompt's tokens a slot holds; the last one is always computed, for its logits.

    What was computed with other adapter weights counts for nothing.
    """
    if slot.adapter != adapter:
        return 0
    return min(common_prefix(slot.tokens, ids), len(ids) - 1)


def choose_slot(slots: Sequence[Slot], ids: Sequence[int], adapter: str | None) -> Slot | None:
    """The free slot for a prompt: the one whose conversation it goes on with, else the oldest.

    A slot that shares only its beginning is another conversation, which keeps its place if an
    older one can go: the shared part is copied for nothing.
    """
    free = [slot for slot in slots if slot.work is None]
    best = max(free, key=lambda slot: shared_prefix(slot, ids, adapter), default=None)
    if best is not None and 2 * shared_prefix(best, ids, adapter) > len(best.tokens):
        return best
    return min(free, key=lambda slot: slot.used, default=None)
