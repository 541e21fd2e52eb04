"""When not to trust an answer, and when not to wait for one: words in both languages.

Warnings stand beside an answer. Guidance stands above it, and depends on the question alone.
"""

import re
from dataclasses import dataclass
from unicodedata import normalize

from kormed_edge.calibration import LOW_CONFIDENCE
from kormed_edge.records import split_options

# Script=Han of Unicode's Scripts.txt, with the unassigned rest of planes 2 and 3.
_HAN = re.compile(
    "[\u2e80-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufad9\U00016ff0\U00016ff1\U00020000-\U0003ffff]"
)

# Letters that are neither Hangul nor Han, Latin or Greek: Cyrillic to Georgian, Ethiopic to Vedic,
# kana and bopomofo, Yi and its neighbours, presentation forms.
_FOREIGN = re.compile(
    "[\u0400-\u10ff\u1200-\u1cff\u3041-\u3096\u30a1-\u30fa\u3105-\u312f\u31f0-\u31ff"
    "\ua000-\ua71f\ua800-\ua95f\ua980-\uaaff\ufb1d-\ufdff\ufe70-\ufefc\uff66-\uff9d]"
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
    "불확실: 전문의 확인 필요. 모델이 이 답을 확신하지 못합니다.",
    "Uncertain: have a specialist confirm it. The model is not sure of this answer.",
)
HAN_LEAK = Warning(
    "han_leak",
    "답변에 한자가 섞여 있습니다. 중국어로 흐른 답일 수 있습니다.",
    "The answer contains Han characters: it may have drifted into Chinese.",
)
FOREIGN_SCRIPT = Warning(
    "foreign_script",
    "답변에 한글도 로마자도 아닌 글자가 섞여 있습니다. 다른 언어로 흐른 답일 수 있습니다.",
    "The answer contains letters of another script: it may have drifted into another language.",
)
UNFINISHED = Warning(
    "unfinished",
    "답변이 길이 제한에서 끊겼습니다.",
    "The answer was cut at the length limit.",
)


def has_han(text: str) -> bool:
    """Whether any Han character is present; Hanja that is in its place counts too."""
    return _HAN.search(text) is not None


def has_foreign(text: str) -> bool:
    """Whether any letter is of a script that Korean medicine does not write; Han is not counted."""
    return _FOREIGN.search(text) is not None


def drifts(text: str) -> bool:
    """Whether an answer has left Korean and the Latin letters of its terms."""
    return has_han(text) or has_foreign(text)


def find_warnings(
    text: str,
    *,
    unfinished: bool,
    has_options: bool,
    option: int | None,
    confidence: float | None,
    threshold: float = LOW_CONFIDENCE,
) -> list[Warning]:
    """What to say about an answer; `option` is the number read from it, of `has_options`, and a
    `confidence` below `threshold` is low."""
    found = {
        OPTION_UNREAD: has_options and option is None,
        CONFIDENCE_LOW: confidence is not None and confidence < threshold,
        HAN_LEAK: has_han(text),
        FOREIGN_SCRIPT: has_foreign(text),
        UNFINISHED: unfinished,
    }
    return [warning for warning, applies in found.items() if applies]


@dataclass(frozen=True, slots=True)
class Guidance:
    """Whom to call first."""

    code: str
    ko: str
    en: str


EMERGENCY = Guidance(
    "emergency",
    "지금 위급한 상황이라면 먼저 119에 전화하고 안내에 따르십시오. 병원 안이라면 원내 응급 호출을 "
    "하십시오. 아래 답변은 그다음에 참고하십시오.",
    "If this is happening now, call 119 first and follow what they say; inside a hospital, make "
    "the emergency call. Read the answer below after that.",
)
SELF_HARM = Guidance(
    "self_harm",
    "많이 힘드신 것 같습니다. 혼자 견디지 마십시오. 자살예방 상담전화 109에서 24시간 이야기를 들어 "
    "드립니다. 당장 위험하다면 119에 전화하십시오.",
    "This sounds very hard, and you need not bear it alone. The suicide prevention line 109 "
    "listens at any hour. In immediate danger, call 119.",
)


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_SYMPTOM = _any(
    r"흉통|가슴.{0,10}(아프|아파|조이|조여|쥐어짜|답답|통증)",
    r"의식.{0,6}(없|잃|소실|저하|흐려)|쓰러(졌|지셨|져)|기절|정신을 잃|깨워도|반응이 없",
    r"숨.{0,6}(안 ?쉬|못 ?쉬|쉬지|멎|멈|막혀|막혔|차요)|호흡.{0,5}(없|정지|멈|멎|곤란)",
    r"심정지|심장이.{0,4}(멈|멎|안 뛰)|맥박이.{0,4}(없|안 )",
    r"대량 ?출혈|하혈|피를 토|(피가|출혈).{0,12}(안 멈|멈추|멎|많이|계속|쏟|철철)",
    r"경련|발작|아나필락시스|(목|입술|혀|얼굴)[이가].{0,6}(붓|부었|부어)",
    r"중독|과다 ?복용|(농약|락스|세제|수면제|건전지|약[을를]).{0,16}(먹|마셨|마셔|마신|삼켰|삼켜)",
    r"(한쪽|오른쪽|왼쪽|반신).{0,10}(마비|힘이 ?(없|빠)|안 움직)|말이 어눌",
    r"(목|기도)[에이가].{0,8}(걸렸|걸려|막혔|막혀)",
)
_SELF_HARM = _any(
    r"죽고 ?싶|죽어 ?버리고|자살|자해|살고 싶지 않|살기 싫|사라지고 싶|목숨을 끊|극단적.{0,3}선택"
)
_NOW = _any(
    r"지금(?!까지|껏)|방금|도와 ?(주세요|주십|주시|줘)|살려 ?(주세요|주십|줘)|어떡",
    r"쓰러(졌어|졌습|졌는데|지셨)|숨을 ?(안|못) ?쉬(어|는데|고 있|세)",
)
# Someone who speaks of himself or his own, and not of "a man of 54".
_OWN = _any(
    r"(^|\s)(저|제|나|내|저희|우리)(는|가|를|도|에게| )",
    r"(남편|아내|와이프|엄마|아빠|어머니|아버지|할머니|할아버지|아이|아기|애|딸|아들|동생|친구|동료)"
    r"(이|가|도)( |$)",
)
_SPOKEN = _any(r"([어아여해워와려려져셔돼나죠]요?|니다|는데요?)\s*([.!?~,…]|$)")
_SELF = _any(
    r"(죽고|죽어 ?버리고|사라지고|(자살|자해)를? ?하고|끊고|선택을? ?하고) ?"
    r"싶(어(?! ?[하한했])|습니|네|은데|다\s*[.!…]?\s*$)",
    r"살고 싶지 않(아|습니|네|다\s*[.!…]?\s*$)|살기 싫(어|습니|다\s*[.!…]?\s*$)",
    r"(자살|자해)(을|를)? ?(했어|할래|할 거|하려고 해|하려고 합|하고 있어|해 ?버릴|할까)",
)
_VIGNETTE = _any(
    r"\d+ ?(세|살|개월|주)( ?된)?[ 의]{0,2}"
    r"(남|여|환|산모|임신|임산|초산|경산|영아|신생|소아|아이가)",
    r"내원|이송되|호소하|다음 중|옳은 것|고르시오|환자에서|환자의",
)
_QUOTED = _any(r"[\"“‘'][^\"”’']{1,200}[\"”’'](?=\s?(이?라|하|고|며|는))")


def find_guidance(question: str) -> Guidance | None:
    """Whom to call before reading on, if someone seems to ask in distress; else None.

    Most questions here are about patients in emergencies: the words alone mean nothing. Somebody
    must speak of what happens now or of people of his own, and an examination's item is neither.
    It is a help and no triage: what it does not find can be an emergency all the same.
    """
    text = _QUOTED.sub(" ", normalize("NFC", question))
    own = _OWN.search(text) is not None
    if split_options(text)[1] or (_VIGNETTE.search(text) and not own):
        return None
    pleads = own and _SPOKEN.search(text) is not None
    if _SELF.search(text) or (pleads and _SELF_HARM.search(text)):
        return SELF_HARM
    if _SYMPTOM.search(text) and (pleads or _NOW.search(text)):
        return EMERGENCY
    return None
