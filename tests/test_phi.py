from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kormed_edge.phi import LABELS, Kind, find_phi, mask

PERSONAL: list[tuple[Kind, str, str]] = [
    ("resident_number", "환자 {} 남자", "900101-1234567"),
    ("resident_number", "환자 {} 남자", "9001011234567"),
    ("resident_number", "환자({})의", "900101 - 1234567"),
    ("resident_number", "환자 {}의", "900101–1234567"),
    ("resident_number", "환자 {}의", "900101ㅡ1234567"),
    ("resident_number", "환자 {}의", "900101 1234567"),
    ("resident_number", "환자 {}의", "９００１０１－１２３４５６７"),
    ("resident_number", "환자{}입니다", "991231-8234567"),
    ("resident_number", "환자 {}", "900101-1******"),
    ("resident_number", "주민등록번호: {}", "991399-9234567"),
    ("resident_number", "주민번호는 {} 이고", "001399-3234567"),
    ("resident_number", "외국인등록번호 {}", "900101-5234567"),
    ("phone", "보호자 {}로 연락", "010-1234-5678"),
    ("phone", "보호자 {}로 연락", "01012345678"),
    ("phone", "보호자는{}번", "010 1234 5678"),
    ("phone", "tel.{}", "010.1234.5678"),
    ("phone", "보호자 {}", "011-234-5678"),
    ("phone", "보호자 {}", "+82-10-1234-5678"),
    ("phone", "보호자 {}", "+82 10 1234 5678"),
    ("phone", "보호자 {}", "+82 (0)10-1234-5678"),
    ("phone", "자택 {}", "02-123-4567"),
    ("phone", "자택 {}", "02)1234-5678"),
    ("phone", "자택 {}", "(031)123-4567"),
    ("phone", "자택 {}", "064-123-4567"),
    ("phone", "자택 {}", "070-1234-5678"),
    ("phone", "자택 {}", "+82-2-123-4567"),
    ("chart_number", "등록번호 {}", "12345678"),
    ("chart_number", "등록번호: {} 환자", "00123456"),
    ("chart_number", "환자등록번호는 {}", "12-345678"),
    ("chart_number", "차트번호 {}의", "A123456"),
    ("chart_number", "차트 번호 : {}", "123456"),
    ("chart_number", "병록번호={}", "1234567"),
    ("chart_number", "환자번호 No.{}", "1234"),
    ("chart_number", "MRN {}", "1234567"),
    ("chart_number", "Chart No. {}", "1234567"),
    ("email", "메일은 {} 입니다", "kim.c+1@hospital.or.kr"),
    ("email", "메일:{}로", "a@b.co"),
]
HARMLESS = [
    "혈압 120/80 mmHg, 맥박 98회/분, 체온 38.5도",
    "WBC 18,000/mm3, Hb 9.8 g/dL, Plt 150,000",
    "Na 140 K 4.0 Cl 102, CRP 12.34 mg/dL, BNP 1234567",
    "2024-01-15 내원, 2024.01.15 14:30, 20240115, 1990년 1월 1일생",
    "CA 19-9 37 U/mL, CA-125, HLA-B*5801, CD4 200-500",
    "ICD-10 J18.9, EDI 642901234, KCD S72.00, LOINC 2345-7",
    "임상시험 등록번호 NCT01234567, KCT0001234",
    "사업자등록번호 123-45-67890, 품목등록번호 1234567",
    "등록번호를 확인한다. 환자번호 12",
    "1) 10 mg 2) 20 mg 3) 0.02-0.05 mg 4) 010 5) 100",
    "1.5-2.0 × 10^9/L, 1234-5678, 010-123",
    "02-03-2024에 시작한 열이 3-4일 지속",
    "진료비는 9001011234567890원",
    "2900101-1234567 및 900101-12345678, 901301-1234567, 900101-9234567",
    "용량 5 mg/kg @ 8시간, 트위터 @hospital",
    "환자 등록 후 12345명, 032 mg-1234",
]


@pytest.mark.parametrize(("kind", "text", "number"), PERSONAL)
def test_personal_number_is_found_and_masked(kind: Kind, text: str, number: str) -> None:
    whole = text.format(number)
    [found] = find_phi(whole)
    assert (found.kind, whole[found.start : found.end]) == (kind, number)
    assert mask(whole) == text.format(LABELS[kind])


@pytest.mark.parametrize("text", HARMLESS)
def test_medical_number_is_not_personal(text: str) -> None:
    assert find_phi(text) == ()
    assert mask(text) == text


def test_several_are_found_in_their_order() -> None:
    text = "등록번호 12345678, 900101-1234567, 010-1234-5678, a@b.co, 혈압 120/80"
    assert [f.kind for f in find_phi(text)] == ["chart_number", "resident_number", "phone", "email"]
    assert mask(text) == "등록번호 [등록번호], [주민등록번호], [전화번호], [이메일], 혈압 120/80"


@given(st.text("0190-ab@. 등록번호주민+82()", max_size=80))
def test_findings_never_overlap_and_nothing_is_left_after_the_mask(text: str) -> None:
    found = find_phi(text)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(0 <= f.start < f.end <= len(text) for f in found)


@pytest.mark.parametrize(
    "unit", ["a", "1", "010", "900101-", "a@", "a.", "등록번호 ", "주민번호 ", "900101-1234567 "]
)
def test_long_text_costs_no_more_than_its_length(unit: str) -> None:
    """A quadratic search of a million characters would not come back."""
    text = unit * (1_000_000 // len(unit))
    assert (find_phi(text) != ()) is (unit in ("900101-1234567 ",))
