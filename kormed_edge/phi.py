"""What looks like a person's number: resident registration, phone, chart, and email addresses.

Patterns only: names, addresses and rare diseases identify people too and are not found. A number
of the same look that is none, such as an accession number 240115-1234567, is found as well: for a
warning and a mask that is the harmless side to err on.
"""

import re
from dataclasses import dataclass
from typing import Literal

from kormed_edge.safety import Warning

Kind = Literal["resident_number", "phone", "chart_number", "email"]

LABELS: dict[Kind, str] = {
    "resident_number": "[주민등록번호]",
    "phone": "[전화번호]",
    "chart_number": "[등록번호]",
    "email": "[이메일]",
}
PERSONAL_DATA = Warning(
    "personal_data",
    "질문에 주민등록번호, 전화번호, 등록번호 또는 이메일로 보이는 내용이 있습니다. "
    "개인정보를 빼고 질문하십시오.",
    "The question seems to contain a resident, phone or chart number or an email address: "
    "ask without personal data.",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Where something personal stands: text[start:end]."""

    kind: Kind
    start: int
    end: int


# Hyphens of every keyboard and word processor, and ㅡ, which is often typed for one.
_H = r"[-\u00ad\u2010-\u2015\u2212\ufe63\uff0dㅡ~]"
_SPLIT = rf"\s?{_H}\s?"
_LOOSE = rf"(?:{_SPLIT}|[. ])"
_IS = r"(?:은|는|이|가)?\s{0,3}(?:[:：#=]|No\.?)?\s{0,3}"
_FREE = r"(?<![\dA-Za-z])"
_DATE = r"\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_SERIAL = r"[A-Za-z]{0,3}-?\d[\d-]{2,12}\d"
# Each has one group, and what follows it is no digit. A resident number has had no checksum since
# October 2020, so none is computed.
_FORMS: tuple[tuple[Kind, str], ...] = (
    (
        "resident_number",
        r"(?:주민|외국인)\s?(?:등록)?\s?(?:번호)?\s{0,3}"
        rf"{_IS}(\d{{6}}\s?{_H}?\s?[\d*●xX]{{7}})",
    ),
    (
        "resident_number",
        rf"(?<![\dA-Za-z.,])({_DATE}\s?{_H}?\s?[1-8](?:\d{{6}}|[*●xX]{{6}}))",
    ),
    (
        "phone",
        rf"{_FREE}((?:\+82{_LOOSE}?\(?0?\)?|0)10{_LOOSE}?\d{{4}}{_LOOSE}?\d{{4}})",
    ),
    ("phone", rf"{_FREE}(01[16789]{_LOOSE}\d{{3,4}}{_LOOSE}\d{{4}})"),
    # Without hyphens, too many other numbers look like these.
    (
        "phone",
        rf"{_FREE}((?:\+82{_LOOSE}?|\(?0)(?:2|[3-6][1-5]|70|50\d)(?:\)\s?|{_SPLIT})"
        rf"\d{{3,4}}{_SPLIT}\d{{4}})",
    ),
    (
        "chart_number",
        r"(?<!사업자)(?<!사업자 )(?<!품목)(?<!품목 )(?<!시험)(?<!시험 )"
        rf"(?:등록|차트|병록|환자|의무기록)\s?번호\s{{0,3}}{_IS}(?!NCT|KCT)({_SERIAL})",
    ),
    (
        "chart_number",
        r"(?i:(?<![A-Za-z])(?:MRN|chart\s?(?:number|no\.?)|patient\s?id))"
        rf"\s{{0,3}}[:：#=]?\s{{0,3}}({_SERIAL})",
    ),
    # Bounded, and begun only where a word begins: no text makes the search quadratic.
    (
        "email",
        r"(?<![A-Za-z0-9._%+-])"
        r"([A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9-])",
    ),
)
_HALF_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
_PATTERNS = [(kind, re.compile(rf"{form}(?!\d)")) for kind, form in _FORMS]


def find_phi(text: str) -> tuple[Finding, ...]:
    """What looks personal, in the order of the text, without overlaps."""
    plain = text.translate(_HALF_WIDTH)  # of the same length
    matches = [
        (match.start(1), order, match.end(1))
        for order, (_, pattern) in enumerate(_PATTERNS)
        for match in pattern.finditer(plain)
    ]
    found: list[Finding] = []
    for start, order, end in sorted(matches):
        if not found or start >= found[-1].end:
            found.append(Finding(_PATTERNS[order][0], start, end))
    return tuple(found)


def mask(text: str) -> str:
    """The text with its kind's name in the place of whatever looks personal."""
    parts, at = [], 0
    for finding in find_phi(text):
        parts += [text[at : finding.start], LABELS[finding.kind]]
        at = finding.end
    return "".join([*parts, text[at:]])
