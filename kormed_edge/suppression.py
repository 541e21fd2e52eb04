"""Which tokens are kept from an answer, so that it does not drift into another language.

Qwen's models slide from Korean into Chinese. A token that writes a Han character is never chosen;
nor is a part of one, as far as Hangul does not need the same bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from unicodedata import category

from kormed_edge.safety import has_foreign, has_han

# The end of a token that is the beginning of a character: UTF-8's first byte and what follows it.
_BEGUN = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")
_HEXAGRAMS = range(0x4DC0, 0x4E00)
"""Yijing symbols, which share their first byte with Han and are in no answer."""
_LEAST = {2: 0x80, 3: 0x800, 4: 0x10000}
"""The first code point of each length: UTF-8 writes none longer than it must."""
_SYLLABLES = range(0xAC00, 0xD7A4)


@dataclass(frozen=True)
class Suppression:
    """Token ids that an answer may not choose.

    `han` holds what writes Han characters and nothing else that anyone needs. `strict` holds the
    letters of other scripts too, and parts from which Han or these could still be put together
    although they also begin symbols such as ㎎ or ①, most of which are tokens of their own; no
    syllable of Hangul needs any of them.
    """

    han: frozenset[int]
    strict: frozenset[int]

    @classmethod
    def of(cls, pieces: Iterable[bytes]) -> "Suppression":
        """Of a vocabulary: what each token writes, in the order of their ids."""
        han, strict = set(), set()
        for token, piece in enumerate(pieces):
            text, begun = piece.decode(errors="ignore"), _begun(piece)
            if has_han(text) or _begins_only_han(begun):
                han.add(token)
            elif has_foreign(text) or _may_begin_a_leak(begun):
                strict.add(token)
        return cls(frozenset(han), frozenset(han | strict))


def _begun(piece: bytes) -> bytes:
    found = _BEGUN.search(piece)
    return found[0] if found else b""


@cache
def _begins_only_han(begun: bytes) -> bool:
    """Whether each character that can come of it is Han: E4 to E9, but not E3, where ㎎ is."""
    possible = [code for code in _codes(begun) if category(chr(code)) not in ("Cn", "Co", "Cs")]
    return any(has_han(chr(code)) for code in possible) and all(
        has_han(chr(code)) or code in _HEXAGRAMS for code in possible
    )


@cache
def _may_begin_a_leak(begun: bytes) -> bool:
    """Whether a leak can come of it and no syllable of Hangul: EA to ED stay."""
    codes = _codes(begun)
    if codes.start < _SYLLABLES.stop and _SYLLABLES.start < codes.stop:
        return False
    return any(has_han(chr(code)) or has_foreign(chr(code)) for code in codes)


def _codes(begun: bytes) -> range:
    """The code points whose UTF-8 begins with some bytes; none of no bytes."""
    if not begun:
        return range(0)
    first = begun[0]
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    code = first & (0x7F >> length)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    missing = 6 * (length - len(begun))
    return range(max(code << missing, _LEAST[length]), min((code + 1) << missing, 0x110000))
