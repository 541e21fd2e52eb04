"""What can be told from an answer's text without a model: matches, leaks, loops."""

import re
import unicodedata
from collections import Counter

from kormed_edge.safety import has_han

TEXT_VERSION = "1"

_ENDING = re.compile("(?:입니다|이에요|이다|예요)$")
_HANGUL_FIRST, _HANGUL_LAST, _FINALS = 0xAC00, 0xD7A3, 28


def normalize(text: str) -> str:
    """The form in which short answers are compared.

    NFKC, case folded, whitespace and punctuation removed, then one sentence ending (입니다, 이다,
    이에요, 예요) or one of the particles 을, 를, 는 taken off the end. A particle goes only where
    grammar allows it (을 after a consonant, 를 and 는 after a vowel), so 마을 stays. 은, 이, 가 and
    임 stay always: 질산은, 나이, 증가 and 책임 end in them. What tells two values apart
    stays: %, a minus before a number, the marks inside 1.5, 1/2 and 2:1, and symbols such as <.
    """
    folded = re.sub(r"\s", "", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c for i, c in enumerate(folded) if _matters(folded, i))
    return _strip_particle(_ENDING.sub("", kept) or kept)


def _matters(text: str, i: int) -> bool:
    char = text[i]
    before, after = text[max(i - 1, 0) : i], text[i + 1 : i + 2]
    if char == "%" or (char == "-" and after.isdigit() and not before.isalpha()):
        return True
    if char in "./:" and before.isdigit() and after.isdigit():
        return True
    return not unicodedata.category(char).startswith(("P", "C"))


def _strip_particle(text: str) -> str:
    if len(text) < 3 or text[-1] not in "을를는":
        return text
    before = ord(text[-2])
    if not _HANGUL_FIRST <= before <= _HANGUL_LAST:
        return text
    ends_in_consonant = (before - _HANGUL_FIRST) % _FINALS != 0
    return text[:-1] if ends_in_consonant == (text[-1] == "을") else text


def exact_match(prediction: str, reference: str) -> bool:
    """Equal after `normalize`; two texts of which nothing remains are not a match."""
    normal = normalize(prediction)
    return bool(normal) and normal == normalize(reference)


def char_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of characters after `normalize`.

    Characters, not words: 당뇨병성케톤산증 and 당뇨병성 케톤산증 are one answer in two spacings.
    """
    a, b = Counter(normalize(prediction)), Counter(normalize(reference))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def han_leak(text: str) -> bool:
    """True if any Han character is present: a Qwen model that drifts into Chinese.

    Hanja in a correct answer count too, so it is the increase between two arms that matters.
    """
    return has_han(text)


def non_korean_share(text: str) -> float:
    """Share of letters that are not Hangul; 0 for a text without letters.

    Latin abbreviations (COPD) count, so this shows drift between arms and has no right value.
    """
    letters = [c for c in text if unicodedata.category(c).startswith("L")]
    foreign = sum("HANGUL" not in unicodedata.name(c, "") for c in letters)
    return foreign / len(letters) if letters else 0.0


def missing_end(finish_reason: str) -> bool:
    """True if the answer was cut at the token limit instead of ended by the model."""
    return finish_reason == "length"


def repetition(text: str, size: int = 4) -> float:
    """Share of character 4-grams (whitespace removed) that occurred earlier in the same text.

    Characters, not words: a loop such as 네네네네 has no words, and particles make Korean words
    differ where their content repeats. Sound prose is not at 0, a loop is near 1.
    """
    dense = re.sub(r"\s", "", text)
    grams = [dense[i : i + size] for i in range(len(dense) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
