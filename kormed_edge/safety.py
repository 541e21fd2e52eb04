"""When not to trust an answer: warnings that a clinician sees beside it, in both languages."""

import re
from dataclasses import dataclass

LOW_CONFIDENCE = 0.5
"""Below it the option answered is less likely than all others together."""

# Script=Han of Unicode's Scripts.txt, with the unassigned rest of planes 2 and 3.
_HAN = re.compile(
    "[\u2e80-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufad9\U00016ff0\U00016ff1\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, slots=True)
class Warning:
    code: str
    ko: str
    en: str


OPTION_UNREAD = Warning(
    "option_unread",
    "답변에서 어느 보기를 골랐는지 분명하지 않습니다.",
    "The answer does not plainly say which option it chose.",
)
CONFIDENCE_LOW = Warning(
    "low_confidence",
    "모델이 이 답을 확신하지 못합니다.",
    "The model is not sure of this answer.",
)
HAN_LEAK = Warning(
    "han_leak",
    "답변에 한자가 섞여 있습니다. 중국어로 흐른 답일 수 있습니다.",
    "The answer contains Han characters: it may have drifted into Chinese.",
)
UNFINISHED = Warning(
    "unfinished",
    "답변이 길이 제한에서 끊겼습니다.",
    "The answer was cut at the length limit.",
)


def has_han(text: str) -> bool:
    """Whether any Han character is present; Hanja that is in its place counts too."""
    return _HAN.search(text) is not None


def find_warnings(
    text: str,
    *,
    unfinished: bool,
    has_options: bool,
    option: int | None,
    confidence: float | None,
) -> list[Warning]:
    """What to say about an answer; `option` is the number read from it, of `has_options`."""
    found = {
        OPTION_UNREAD: has_options and option is None,
        CONFIDENCE_LOW: confidence is not None and confidence < LOW_CONFIDENCE,
        HAN_LEAK: has_han(text),
        UNFINISHED: unfinished,
    }
    return [warning for warning, applies in found.items() if applies]
