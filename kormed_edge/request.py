"""A request to the engine and what comes back of it, piece by piece."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal

from kormed_edge.errors import EngineError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy: the most likely one."""

    temperature: float = 0.0
    """0 is greedy; `top_p`, `min_p` and `seed` count only above it."""
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    """Above 1 makes the last 64 tokens of the answer, never those of the prompt, less likely."""
    seed: int | None = None
    """None takes a new one for every request."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of token ids."""
    banned: frozenset[int] = frozenset()
    """Tokens that are never chosen. Unlike a bias of minus infinity a set that requests share costs
    none of them anything, however large it is."""
    grammar: str | None = None
    """GBNF with a rule named root; the answer follows it."""
    json_schema: Mapping[str, Any] | None = None
    """The answer is JSON of this schema; not together with `grammar`."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 10)
        _within("top_p", self.top_p, 0, 1)
        _within("min_p", self.min_p, 0, 1)
        _within("repeat_penalty", self.repeat_penalty, 0.01, 10)
        _within("seed", self.seed or 0, 0, 2**32 - 2)  # the last one is llama.cpp's "any"
        if any(isnan(bias) for bias in self.logit_bias.values()):
            raise EngineError("a logit_bias is NaN", "a number", "give another logit_bias")
        if self.grammar is not None and self.json_schema is not None:
            raise EngineError("both a grammar and a JSON schema", "one of them", "leave one out")


@dataclass(frozen=True)
class Request:
    """A prompt's token ids and what is wanted after them."""

    ids: tuple[int, ...]
    max_tokens: int
    """Longest answer; 0, which only `options` allow, generates nothing."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are no part of it."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each chosen one; None reports nothing."""
    adapter: str | None = None
    options: tuple[int, ...] = ()
    """Tokens whose probability right after the prompt `Generation.options` tells."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise EngineError("the prompt is empty", "at least one token", "ask something")
        _within("max_tokens", self.max_tokens, 0 if self.options else 1, 2**31 - 1)
        _within("logprobs", self.logprobs or 0, 0, 100)
        if "" in self.stop:
            raise EngineError("a stop string is empty", "some text", "leave it out")


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its bytes, and the natural logarithm of its probability under the model.

    The probability is the model's own: of all tokens, before temperature, bias or grammar.
    """

    id: int
    piece: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it streams; the last one carries the finish reason.

    `logprobs` are of the tokens since the piece before, when the request asks for them.
    """

    text: str
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one answer, all that there are, as one."""
    return Piece(
        "".join(piece.text for piece in pieces),
        pieces[-1].finish_reason if pieces else None,
        tuple(entry for piece in pieces for entry in piece.logprobs),
    )


@dataclass(frozen=True)
class EngineStatus:
    """What an engine is doing."""

    slots: int
    busy: int
    """Slots that answer a request."""
    waiting: int
    """Requests without a slot."""
    kv_used: int
    """Tokens whose keys and values are held, those kept for reuse too; a beginning that slots
    share counts once for each."""
    kv_size: int
    """Tokens that all slots can hold together."""


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN too
        raise EngineError(f"{name} is {value}", f"from {low} to {high}", f"give another {name}")
