"""Which option a text chose. A text that does not say so plainly is unread, never guessed.

Python's `\\b` does not separate a Latin letter from Hangul, so no pattern here relies on it.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

READER_VERSION = "1"

LEADING_NUMBER = "leading_number"  # "3", "(3) …", "3번입니다", "C. …"
STATED = "stated"  # "정답은 3번입니다", "The answer is C"
OPTION_TEXT = "option_text"  # the words of one option, without its number
CORRECTED = "corrected"  # "3번, 아니, 정답은 2번입니다"
AMBIGUOUS = "ambiguous"  # two answers, or a number beside another option's words
REFUSAL = "refusal"  # "답변할 수 없습니다"
NONE = "none"  # no statement of an answer


@dataclass(frozen=True, slots=True)
class Reading:
    """`option` counts from 1; None means unread, and `reason` says why."""

    option: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Claim:
    option: int
    start: int
    end: int
    reason: str


_LETTERS = "ABCDEFGHI"
_STRICT = re.compile(r"\s*([1-9])(?:\)|\.(?!\d)|\s*$)")
_SIGN = re.compile(r"(?<![0-9A-Za-z.])([1-9]|[A-Ia-i])(?![0-9A-Za-z%]|\.\d)")

_COPULA = r"(?:입니다|이다|이며|이고|이라고|이므로|이에요|이예요|예요|임(?![가-힣]))"
# What may follow a sign that is an answer; "3일간", "3 mg", "3번 투여", "A형" and "E. coli" fail.
_END = re.compile(
    rf"(?:\s?번)?(?:[ \t]*(?=\n|$)|\s*[)\]}}:;!?](?!\s*\d)|\s*,(?!\s*[0-9A-Za-z])"
    rf"|\.(?![0-9a-z]|\s+[a-z])|\s*{_COPULA}|\s(?:보기|선택지))"
    r"|번을\s*(?:선택|고르|고릅|골)"
)
# After an option's words only these go on in Hangul: 폐렴 is not what 폐렴구균 says.
_WORDS_END = re.compile(
    r"(?![0-9A-Za-z]|\.\d)(?:(?![가-힣])|(?=입니|이[다에예며고라므]|으로"
    r"|[이가은는을를의와과로도에임일인](?![가-힣])|[이가은는을를] ))"
)
_STATED_END = re.compile(r"번(?:으로|인|이라|이 |,)|\s+(?:이유|왜냐|because|since|설명|해설|근거)")
_BEFORE_WORDS = re.compile(r"\s?번?\s*[)\].:,\-–(]*\s*")

_LINK = (
    r"(?:\s*번호)?(?:은|는|이(?=\s))?"
    r"(?:\s|:|=|-|>|→|is(?=\s)|the|option|choice|보기|선택지|바로|[(\[<{\])}】」])*"
)
_CUE = re.compile(
    rf"(?:정답|(?<![가-힣])답(?:안|변)?|(?<![a-z])answer|correct (?:option|choice)){_LINK}", re.I
)
_TOPIC = re.compile(
    r"(?:것|진단|진단명|병명|질환|원인|원인균|검사|소견|합병증|치료|치료법|처치|약물|약제|방법)"
    r"[은는]\s*[(\[]*|(?:따라서|그러므로|그래서|결론적으로|생각에는|생각으로는|therefore|so),?\s+[(\[]*",
    re.I,
)
_PREFIX = re.compile(r"[\s(\[<{]*(?:- )?(?:(?:보기|선택지|option|choice)\s*[(\[]*)?", re.I)
_RIGHT = re.compile(
    r"\s?번?\)?\s*(?:[이가은는을를]|is)\s*(?:가장\s*|the\s+)?"
    r"(?:정답|맞(?!지)|옳(?!지)|올바(?!르지)|적절(?!하지)|선택|고르|고릅|correct)",
    re.I,
)
_NOT = re.compile(
    r"\s?번?\)?\s*(?:[이가은는]\s*)?(?:정답\w?\s*)?(?:아(?P<turn>니라|니고|닌)|아[니닙님]|틀|오답|not)"
)
_WRONG = re.compile(r"아[니닙닌님]|틀[리린]|배제|제외|지 않|오답|부적절|not |incorrect|wrong")
_FINISH = re.compile(r"\s*(?:입니다|이다|임(?![가-힣])|[.\n]|$|일 가능성|이 (?:가장|의심))")
_AND = re.compile(
    r"\s?번?[)\]]*\s*(?P<join>[,/~·&+]|(?<=\))(?=\()|와|과|및|또는|혹은|이나|이거나|그리고|and|or)?\s*[(\[]*",
    re.I,
)
_MARKER = re.compile(r"(?m)^[ \t]*([1-9])[).](?!\d)")
# Spelled out, because 수정 is also fertilization and 최종 진단 a diagnosis.
_CORRECTION = re.compile(
    r"(?<![가-힣])아니(?![라고])|아닙니다|아니라|다시 (?:생각|검토|확인|보|살펴|계산)|정정(?:합|하)"
    r"|답을? 수정|수정(?:합니다|하겠)|잘못 (?:답|골|말|생각|선택|읽)|실수(?:했|로|입)"
    r"|최종(?:적인|적으로)?\s*(?:정답|답|선택|결론)"
    r"|(?<![a-z])(?:wait|actually|correction|sorry|final answer)",
    re.I,
)
_REFUSAL = re.compile(
    r"수 없|수가 없|모르겠|알지 못|정답[은이] 없|답[은이] 없|불가능|어렵습니다|정보가 부족|상담하"
    r"|cannot|can'?t|unable|don'?t know|do not know|sorry|죄송",
    re.I,
)
_THOUGHT = re.compile(r"^.*</think>|<think>.*", re.S)
# Quotation marks go too: an option may hold them and an answer may add or drop them.
_MARKUP = re.compile(
    r"\\(?:boxed|text|mathrm)\b|[*`#$\"'“”‘’]|__|</?[A-Za-z]+>|[\u200b-\u200d\ufe0f\u20e3\ufeff]"
)


def read_strict(text: str, n_options: int = 5) -> int | None:
    """The option number that a text begins with: "4) …", "4. …" or "4" alone.

    The reader of the paper's evaluation; for comparison, since "정답은 4번" is unread by it.
    """
    match = _STRICT.match(text)
    return _within(int(match[1]), n_options) if match else None


def read_tolerant(text: str, options: Sequence[str]) -> Reading:
    """The option that a careful reader would say a text chose, whatever its form."""
    plain = _plain(text)
    words = _Words(options)
    if (whole := words.whole(plain)) is not None:
        return whole
    claims, listed = _claims(plain, words)
    if claims:
        return _settled(plain, claims)
    if listed:
        return Reading(None, AMBIGUOUS)
    return Reading(None, REFUSAL if _REFUSAL.search(plain) else NONE)


def _within(option: int, n_options: int) -> int | None:
    return option if 1 <= option <= n_options else None


def _plain(text: str) -> str:
    """ASCII digits and punctuation, no markup, no reasoning block; line breaks stay."""
    circled = "".join(_uncircled(c) for c in _THOUGHT.sub("", text))
    return _MARKUP.sub("", unicodedata.normalize("NFKC", circled)).strip()


def _uncircled(char: str) -> str:
    """③ and ❸ as "(3)": NFKC alone would join ①② into the number 12."""
    digit = unicodedata.digit(char, 0)
    return f"({digit})" if digit and "CIRCLED" in unicodedata.name(char, "") else char


class _Words:
    """The options' words, found in a text whatever its spacing; the longest option wins."""

    def __init__(self, options: Sequence[str]) -> None:
        texts = [_plain(option).rstrip(" .") for option in options]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        self.n = len(texts)
        self._letters = [(i + 1, _letters(texts[i])) for i in order if texts[i]]

    def at(self, text: str, start: int) -> tuple[set[int], int]:
        """The options whose words stand at `start` (more than one if equal), and their end."""
        found: set[int] = set()
        end = start
        for option, letters in self._letters:
            stop = _end_of(letters, text, start)
            if stop is not None and (not found or stop == end):
                found.add(option)
                end = stop
        return found, end

    def mentioned(self, text: str) -> set[int]:
        """Every option whose words occur in the text, but for those inside a longer option's."""
        found: set[int] = set()
        position = 0
        while position < len(text):
            here, end = self.at(text, position)
            found |= here
            position = max(end, position + 1)
        return found

    def whole(self, text: str) -> Reading | None:
        """Read a text that is one option's words and no more; None if it is anything else."""
        found, end = self.at(text, 0)
        if not found or not re.fullmatch(r"\s*(?:입니다|이다)?[.\s]*", text[end:]):
            return None
        sign = re.fullmatch(r"[1-9]", text)
        if sign and (number := _within(int(text), self.n)):
            found.add(number)
        return Reading(found.pop(), OPTION_TEXT) if len(found) == 1 else Reading(None, AMBIGUOUS)


def _letters(text: str) -> list[str]:
    return [char.lower() for char in text if not char.isspace()]


def _end_of(letters: Sequence[str], text: str, start: int) -> int | None:
    """Where the letters end if they stand at `start` in any spacing; compiled patterns would
    cost more than all the rest, since every question brings new options."""
    position = start
    for letter in letters:
        while text[position : position + 1].isspace():
            position += 1
        if text[position : position + 1].lower() != letter:
            return None
        position += 1
    return position if _WORDS_END.match(text, position) else None


def _claims(text: str, words: _Words) -> tuple[list[_Claim], bool]:
    """Every statement of an answer in order, and whether the text only lists options."""
    leading, listed = _leading(text, words)
    claims = [*leading, *_stated(text, words)]
    if not claims and not listed:
        claims = [*_topics(text, words), *_mentions(text, words)]
    return sorted(claims, key=lambda claim: claim.end), listed


def _settled(text: str, claims: list[_Claim]) -> Reading:
    """One option if the claims agree, or if a later one takes an earlier one back."""
    last = claims[-1]
    others = [claim for claim in claims if claim.option != last.option]
    if not others:
        return Reading(last.option, claims[0].reason)
    between = text[others[-1].end : last.end]
    if _CORRECTION.search(between):
        return Reading(last.option, CORRECTED)
    return Reading(None, AMBIGUOUS)


def _leading(text: str, words: _Words) -> tuple[list[_Claim], bool]:
    """A number, letter or option at the very beginning; True if it begins a mere list."""
    prefix = _PREFIX.match(text)
    start = prefix.end() if prefix else 0
    claims = list(_sign_claims(text, start, words, LEADING_NUMBER, _END))
    if not claims:
        return list(_opening_words(text, start, words)), False
    marks = [int(mark[1]) for mark in _MARKER.finditer(text)]
    if len(marks) > 1 and marks[0] == claims[0].option:
        rest = marks[1:]
        explains = rest[0] == 1 and len(rest) > 1
        if not explains and set(rest) != {marks[0]}:
            return [], True
    return claims, False


def _opening_words(text: str, start: int, words: _Words) -> Iterator[_Claim]:
    """The words of an option as the first line, with an explanation below."""
    found, end = words.at(text, start)
    if found and re.match(r"[)\]]*(?:입니다|이다)?\.?[ \t]*(?:\n|$)", text[end:]):
        for option in found:
            yield _Claim(option, start, end, OPTION_TEXT)


def _stated(text: str, words: _Words) -> Iterator[_Claim]:
    for cue in _CUE.finditer(text):
        yield from _after_cue(text, cue.start(), cue.end(), words)
    for sign in _SIGN.finditer(text):
        yield from _called_right(text, sign, words)


def _after_cue(text: str, cue: int, start: int, words: _Words) -> Iterator[_Claim]:
    """What stands right after "정답은": a sign, an option's words, or both."""
    claims = list(_sign_claims(text, start, words, STATED, _END, _STATED_END))
    if not claims:
        claims = list(_word_claims(text, start, words, STATED))
    for claim in claims:
        yield _Claim(claim.option, cue, claim.end, claim.reason)


def _called_right(text: str, sign: re.Match[str], words: _Words) -> Iterator[_Claim]:
    """ "3번이 정답입니다", "option C is correct", with or without the option's words."""
    option = _option(sign[1], words.n)
    if option is None:
        return
    _, end = words.at(text, _skip(_BEFORE_WORDS, text, sign.end()))
    for after in {sign.end(), end}:
        right = _RIGHT.match(text, after)
        if right and not re.match(r"[^.\n]{0,4}아[니닙닌님]", text[right.end() :]):
            yield _Claim(option, sign.start(), right.end(), STATED)


def _topics(text: str, words: _Words) -> Iterator[_Claim]:
    """ "가장 적절한 검사는 3번입니다", unless the text names several options."""
    if len(words.mentioned(text)) > 1:
        return
    for topic in _TOPIC.finditer(text):
        start = topic.end()
        # "횟수는 3이다" counts something; "3번", "3)" and "C" point at an option.
        if re.match(r"[1-9](?:번|\))|[A-I]", text[start:]):
            yield from _sign_claims(text, start, words, STATED, _END)
        else:
            yield from _word_claims(text, start, words, OPTION_TEXT)


def _mentions(text: str, words: _Words) -> Iterator[_Claim]:
    """ "… 4) 폐렴입니다": a number with its own words that ends a sentence and is not denied."""
    for sign in _SIGN.finditer(text):
        option = _option(sign[1], words.n)
        found, end = words.at(text, _skip(_BEFORE_WORDS, text, sign.end()))
        sentence = re.split(r"[.\n]", text[end:])[0]
        if option in found and _FINISH.match(text, end) and not _WRONG.search(sentence):
            yield _Claim(option, sign.start(), end, STATED)


def _word_claims(text: str, start: int, words: _Words, reason: str) -> Iterator[_Claim]:
    """An option's words, as a predicate; "폐렴(3번)" claims the number too."""
    found, end = words.at(text, start)
    if not found or not re.match(
        rf"[)\]]*\s*(?:\(|[.,;\n]|$|{_COPULA}|으로|로|이라|라고)", text[end:]
    ):
        return
    if _WRONG.match(text[end:].lstrip("이가은는 ")):
        return
    beside = re.match(r"\s*\(([1-9]|[A-I])번?\)", text[end:])
    number = _option(beside[1], words.n) if beside else None
    for option in found | ({number} if number else set()):
        yield _Claim(option, start, end, reason)


def _sign_claims(
    text: str, start: int, words: _Words, reason: str, *ends: re.Pattern[str]
) -> Iterator[_Claim]:
    """The option that a sign at `start` claims; two, if its words or a second sign disagree."""
    sign = _SIGN.match(text, start)
    option = _option(sign[1], words.n) if sign else None
    if sign is None or option is None:
        return
    if (turned := _NOT.match(text, sign.end())) is not None:
        yield from _turned(text, turned, words, reason)
        return
    found, end = words.at(text, _skip(_BEFORE_WORDS, text, sign.end()))
    if found and _denied(text, end):
        return
    second = _second(text, end if found else sign.end(), words, bool(found))
    if not found and not second and not _ends(text, sign.end(), ends):
        return
    named = found if found and option not in found else set()
    for claimed in {option, *named, *second}:
        yield _Claim(claimed, start, max(end, sign.end()), reason)


def _denied(text: str, end: int) -> bool:
    """ "2) 폐렴은 배제된다": the words are the subject of a sentence that rules them out."""
    subject = re.match(r"[은는이가]\s([^.\n]*)", text[end:])
    return subject is not None and _WRONG.search(subject[1]) is not None


def _turned(text: str, denied: re.Match[str], words: _Words, reason: str) -> Iterator[_Claim]:
    """ "3번이 아니라 2번입니다" claims 2; "3번이 아닙니다" claims nothing."""
    if denied["turn"]:
        start = _skip(re.compile(r"[,\s(]*"), text, denied.end())
        yield from _sign_claims(text, start, words, reason, _END, _STATED_END)


def _second(text: str, start: int, words: _Words, after_words: bool) -> set[int]:
    """A second sign joined to the first: "2번과 3번", "2, 4", "2) 폐렴 3) 결핵"."""
    joint = _AND.match(text, start)
    if joint is None or "\n" in joint[0]:
        return set()
    sign = _SIGN.match(text, joint.end())
    option = _option(sign[1], words.n) if sign else None
    if sign is None or option is None or (joint["join"] is None and not after_words):
        return set()
    found, _ = words.at(text, _skip(_BEFORE_WORDS, text, sign.end()))
    return {option} if option in found or _ends(text, sign.end(), (_END, _STATED_END)) else set()


def _option(sign: str, n_options: int) -> int | None:
    number = int(sign) if sign.isdigit() else _LETTERS.index(sign.upper()) + 1
    return _within(number, n_options)


def _skip(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _ends(text: str, start: int, ends: Iterable[re.Pattern[str]]) -> bool:
    return any(end.match(text, start) for end in ends)
