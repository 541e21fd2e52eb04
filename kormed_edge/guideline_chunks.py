"""Blocks to chunks: the pieces of a document that are found and cited."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kormed_edge.guideline_documents import Block

LETTERS = 500
"""Most of a chunk: about 300 tokens, so that several fit beside a question."""
ENOUGH = 150
"""Letters from which a heading begins a chunk of its own; what is shorter goes with the next."""
_SENTENCE_END = re.compile(r"(?<=[.?!。])\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    text: str
    heading: str
    page: int | None


def chunks_of(blocks: Iterable[Block]) -> Iterator[Chunk]:
    """Chunks within one page each, cut at headings, paragraphs and ends of sentences."""
    gathered: list[Block] = []
    for block in _short(blocks):
        if gathered and _ends(gathered, block):
            done, gathered = _without_last_headings(gathered)
            yield _chunk(done)
        gathered.append(block)
    if gathered:
        yield _chunk(gathered)


def _ends(gathered: Sequence[Block], block: Block) -> bool:
    letters = sum(len(b.text) for b in gathered)
    full = letters + len(block.text) > LETTERS
    if all(b.is_heading for b in gathered):
        return full
    return full or gathered[-1].page != block.page or (block.is_heading and letters >= ENOUGH)


def _without_last_headings(gathered: list[Block]) -> tuple[list[Block], list[Block]]:
    """A heading goes with what follows it."""
    end = len(gathered)
    while end and gathered[end - 1].is_heading:
        end -= 1
    end = end or len(gathered)  # nothing but headings
    return gathered[:end], gathered[end:]


def _chunk(blocks: Sequence[Block]) -> Chunk:
    first = next((b for b in blocks if not b.is_heading), blocks[0])
    return Chunk("\n".join(b.text for b in blocks), first.heading, first.page)


def _short(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks of at most `LETTERS`, each of as many sentences as fit."""
    for block in blocks:
        if len(block.text) <= LETTERS:
            yield block
        else:
            yield from (replace(block, text=text) for text in _portions(block.text))


def _portions(text: str) -> Iterator[str]:
    portion = ""
    for sentence in _SENTENCE_END.split(text):
        for piece in _pieces(sentence):
            if portion and len(portion) + 1 + len(piece) > LETTERS:
                yield portion
                portion = ""
            portion = f"{portion} {piece}".strip()
    yield portion


def _pieces(sentence: str) -> Iterator[str]:
    """A sentence, or what a table without full stops has in its place, cut at spaces if need be."""
    while len(sentence) > LETTERS:
        cut = sentence.rfind(" ", 1, LETTERS + 1)
        cut = cut if cut > 0 else LETTERS
        yield sentence[:cut].strip()
        sentence = sentence[cut:].strip()
    yield sentence
