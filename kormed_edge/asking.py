"""A question on its way to the model, the same for the service and the terminal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kormed_edge.citations import (
    NO_ROOM,
    NOT_CITED,
    NOTHING_RELEVANT,
    cite,
    cited_numbers,
    numbered,
)
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineError
from kormed_edge.guidelines import Guidelines, Passage
from kormed_edge.prompts import question_messages
from kormed_edge.request import Request, Sampling
from kormed_edge.suppression import Suppression

MAX_SCORED = 9
"""Options whose probabilities are told: those that begin with a digit of their own."""


@dataclass(frozen=True)
class Asked:
    """A question, and what is put to the model for it."""

    prompt: str
    """The question with its options, and before it the passages if there are any."""
    choices: Sequence[str] = ()
    passages: tuple[Passage, ...] | None = None
    """Those that the prompt numbers from 1; None where no guidelines were searched."""
    left_out: int = 0
    """Relevant passages for which there was no room."""

    def request(
        self, engine: Engine, *, max_new_tokens: int, adapter: str | None = None,
        calibrated: bool = False, suppression: Suppression | None = None,
    ) -> Request:  # fmt: skip
        """`calibrated` says that a free answer's confidence is wanted."""
        return Request(
            tuple(engine.encode_messages(question_messages(self.prompt))),
            max_new_tokens,
            Sampling(banned=suppression.han) if suppression else Sampling(),
            adapter=adapter,
            options=option_tokens(engine, len(self.choices)),
            # How sure a free answer is stands in the probabilities of its tokens alone.
            logprobs=0 if calibrated and not self.choices else None,
        )

    def opening(self) -> dict[str, Any]:
        """What is known of the guidelines before there is an answer."""
        shown = None if self.passages is None else numbered(self.passages)
        note = None
        if self.passages == ():
            note = asdict(NO_ROOM if self.left_out else NOTHING_RELEVANT)
        return {"passages": shown, "guidelines_note": note}

    def grounds(self, answer: str) -> dict[str, Any]:
        """What an answer owes to the guidelines: its passages, those it cites, and a note."""
        cited = cited_numbers(answer, len(self.passages or ()))
        told = {**self.opening(), "cited": cited}
        if self.passages and not cited:
            told["guidelines_note"] = asdict(NOT_CITED)
        return told


def consult(
    guidelines: Guidelines, text: str, choices: Sequence[str], engine: Engine, max_new_tokens: int
) -> Asked:
    """A question with the passages that are relevant to it, as far as an answer still has room.

    Raises `GuidelinesError` when the index cannot be read.
    """
    found = guidelines.search(text)
    prompt, taken = cite(
        text, found,
        count=lambda longer: len(engine.encode_messages(question_messages(longer))),
        budget=engine.context - max_new_tokens,
    )  # fmt: skip
    return Asked(prompt, choices, tuple(taken), len(found) - len(taken))


def option_tokens(engine: Engine, options: int) -> tuple[int, ...]:
    """First tokens of the options' numbers; none where they cannot tell the options apart."""
    if not 2 <= options <= MAX_SCORED:
        return ()
    try:
        return engine.option_tokens([str(i) for i in range(1, options + 1)])
    except EngineError:
        return ()
