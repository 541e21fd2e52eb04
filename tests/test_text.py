import pytest

from eval.text import (
    char_f1,
    exact_match,
    han_leak,
    missing_end,
    non_korean_share,
    normalize,
    repetition,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" 당뇨병성 케톤산증입니다. ", "당뇨병성케톤산증"),
        ("천식이다", "천식"),
        ("ＣＯＰＤ", "copd"),
        ("인슐린을", "인슐린"),
        ("검사를", "검사"),
        ("에피네프린 (epinephrine)", "에피네프린epinephrine"),
        ("마을", "마을"),
        ("질산은", "질산은"),
        ("나이", "나이"),
        ("증가", "증가"),
        ("책임", "책임"),
        ("1.5 mg", "1.5mg"),
        ("-3", "-3"),
        ("X-ray", "xray"),
        ("1/2", "1/2"),
        ("입니다", "입니다"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        ("케톤산증입니다.", "케톤 산증", True),
        ("15 mg", "1.5 mg", False),
        ("천식", "폐렴", False),
        ("", "", False),
        ("...", "!", False),
    ],
)
def test_exact_match(prediction: str, reference: str, equal: bool) -> None:
    assert exact_match(prediction, reference) is equal


def test_char_f1_counts_shared_characters() -> None:
    assert char_f1("급성 충수염", "충수염") == pytest.approx(2 * 3 / 8)
    assert char_f1("천식", "천식이다") == 1
    assert char_f1("", "천식") == 0


@pytest.mark.parametrize("text", ["肺炎입니다", "답은 答", "々", "\U00020000"])
def test_han_is_seen(text: str) -> None:
    assert han_leak(text)


@pytest.mark.parametrize("text", ["폐렴입니다", "COPD 1.5 mg", "カナ", "", "①。「」"])
def test_other_scripts_are_no_han(text: str) -> None:
    assert not han_leak(text)


def test_non_korean_share_is_of_letters() -> None:
    assert non_korean_share("폐렴 ab 12.") == 0.5
    assert non_korean_share("12.") == 0


def test_only_a_cut_answer_misses_its_end() -> None:
    assert missing_end("length")
    assert not missing_end("stop")


def test_a_loop_repeats_and_a_sentence_does_not() -> None:
    assert repetition("네" * 104) == pytest.approx(1 - 1 / 101)
    assert repetition("급성 충수염은 수술로 치료한다.") == 0
    assert repetition("네네") == 0
