from pathlib import Path

import pytest

from kormed_edge.engine import Engine
from kormed_edge.suppression import Suppression


def kind(piece: bytes) -> str | None:
    """The set in which a token is that writes these bytes."""
    found = Suppression.of([piece])
    return "han" if found.han else "strict" if found.strict else None


@pytest.mark.parametrize(
    "text",
    ["중", " 심전도", "mg", "α", "㎎", "①", "、", "ㄱ", "≥", "°C", "", "，", "é", "가\u302e"],
)
def test_what_korean_medicine_writes_is_let_through(text: str) -> None:
    assert kind(text.encode()) is None


@pytest.mark.parametrize("text", ["心", " 患者", "심心", "㐀", "豈", "𠀀", "々", "3個"])
def test_token_with_a_han_character_is_banned(text: str) -> None:
    assert kind(text.encode()) == "han"


@pytest.mark.parametrize("text", ["の", " прив", "ア", "ไทย", "مر", "של", "ㄅ", "ｱ", "ა"])
def test_other_scripts_are_banned_from_the_second_answer(text: str) -> None:
    assert kind(text.encode()) == "strict"


@pytest.mark.parametrize(
    ("piece", "where"),
    [
        (b"\xe5", "han"), (b" \xe4", "han"), (b"\xe4\xb8", "han"), (b"\xe3\x90", "han"),
        (b"\xf0\xa0\x80", "han"), (b"\xef\xa4", "han"), ("가".encode() + b"\xe6\x82", "han"),
        (b"\xe3", "strict"), (b"\xe2", "strict"), (b"\xd0", "strict"), (b"\xe0\xb8", "strict"),
        (b"\xf0", "strict"), (b"\xe2\xbf", "strict"),
        (b"\xea", None), (b"\xeb", None), (b"\xec\x8b", None), (b"\xed\x9e", None),
        (b"\xce", None), (b"\xc2", None), (b"\xe2\x84", None), (b"\x90", None), (b"\xff", None),
        (b"\x88" + "다".encode(), None),
    ],
)  # fmt: skip
def test_part_of_a_character_is_banned_unless_hangul_needs_it(
    piece: bytes, where: str | None
) -> None:
    assert kind(piece) == where


def test_no_syllable_of_hangul_is_lost() -> None:
    for code in range(0xAC00, 0xD7A4):
        character = chr(code).encode()
        for piece in (character, character[:1], character[:2]):
            assert kind(piece) is None


def test_ids_are_those_of_the_model(scripted_gguf: Path) -> None:
    with Engine(scripted_gguf, context=64, threads=1) as engine:
        pieces = list(engine.pieces())
        found = Suppression.of(engine.pieces())
    assert found.han < found.strict
    assert {pieces[token] for token in found.han} == {bytes([byte]) for byte in range(0xE4, 0xEA)}
