"""A question with its passages of the guidelines, and what an answer cites of them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from kormed_edge.errors import PromptTooLongError
from kormed_edge.guidelines import Passage
from kormed_edge.prompts import cited_question
from kormed_edge.safety import Warning

NOTHING_RELEVANT = Warning(
    "nothing_relevant",
    "등록된 병원 지침에서 이 질문과 관련된 구절을 찾지 못했습니다. 지침 없이 답했습니다.",
    "Nothing in the hospital's guidelines was found to be about this question. It was answered "
    "without them.",
)
NO_ROOM = Warning(
    "passages_too_long",
    "관련된 지침 구절을 찾았으나 질문이 길어 함께 넣지 못했습니다. 지침 없이 답했습니다.",
    "Passages of the guidelines were found, but the question left no room for them. It was "
    "answered without them.",
)
NOT_CITED = Warning(
    "not_cited",
    "답변이 지침 구절을 하나도 인용하지 않았습니다. 구절을 직접 확인하십시오.",
    "The answer cites none of the passages. Read them yourself.",
)
_CITATION = re.compile(r"\[([1-9][0-9]?(?:\s*,\s*[1-9][0-9]?)*)\]")


def cite(
    question: str, passages: Sequence[Passage], *, count: Callable[[str], int], budget: int
) -> tuple[str, list[Passage]]:
    """The text to ask, and the passages that it numbers [1]..[k].

    Passages come in as long as the whole text has at most `budget` tokens; one that is too long
    leaves its place to the next. Without any, the text is the question itself. `count` gives the
    tokens of a text, and may raise `PromptTooLongError`.
    """
    taken: list[Passage] = []
    text = question
    for passage in passages:
        longer = cited_question(question, [_shown(one) for one in [*taken, passage]])
        if _fits(longer, count, budget):
            taken.append(passage)
            text = longer
    return text, taken


def _fits(text: str, count: Callable[[str], int], budget: int) -> bool:
    try:
        return count(text) <= budget
    except PromptTooLongError:
        return False


def _shown(passage: Passage) -> str:
    page = f", {passage.page}쪽" if passage.page else ""
    heading = f" — {passage.heading}" if passage.heading else ""
    return f"({passage.document}{page}{heading})\n{passage.text}"


def cited_numbers(answer: str, passages: int) -> list[int]:
    """The numbers that an answer cites, [1] or [1, 3], in their order and once each.

    Numbers without a passage are left out: they are invented.
    """
    found = [int(n) for group in _CITATION.findall(answer) for n in group.split(",")]
    return [number for number in dict.fromkeys(found) if number <= passages]


def without_citations(answer: str) -> str:
    """The answer as it would read without passages: a [1] is no option's number."""
    return _CITATION.sub("", answer)


def numbered(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Passages under the numbers that a prompt gives them, as JSON."""
    fields = ("id", "document", "page", "heading", "text")
    return [
        {"number": number, **{name: getattr(passage, name) for name in fields}}
        for number, passage in enumerate(passages, 1)
    ]
