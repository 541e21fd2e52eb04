import pytest

from kormed_edge.citations import cite, cited_numbers, numbered, without_citations
from kormed_edge.errors import PromptTooLongError
from kormed_edge.guidelines import Passage

SHORT = Passage(3, "소생.pdf", 12, "약물 › 용량", "에피네프린 1 mg [7]")
LONG = Passage(4, "긴.txt", None, "", "가" * 300)


def test_passages_are_numbered_with_their_place() -> None:
    text, taken = cite("용량은?", [SHORT], count=len, budget=1000)
    assert taken == [SHORT]
    assert "\n\n[1] (소생.pdf, 12쪽 — 약물 › 용량)\n에피네프린 1 mg (7)\n\n질문:\n용량은?" in text


def test_passage_that_does_not_fit_leaves_its_place_to_the_next() -> None:
    text, taken = cite("용량은?", [LONG, SHORT], count=len, budget=300)
    assert taken == [SHORT]
    assert "[1] (소생.pdf" in text
    assert len(text) <= 300


def test_without_a_passage_the_question_is_as_it_was() -> None:
    def refuse(_text: str) -> int:
        raise PromptTooLongError("too long")

    assert cite("용량은?", [], count=len, budget=0) == ("용량은?", [])
    assert cite("용량은?", [SHORT], count=refuse, budget=1000) == ("용량은?", [])


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("1 mg이다 [2]. 정맥 [1][2].", [2, 1]),
        ("둘 다 [1, 3]", [1, 3]),
        ("지어낸 것 [4] [0] [99]", []),
        ("번호가 없다 (1)", []),
    ],
)
def test_only_numbers_of_passages_count_as_cited(answer: str, numbers: list[int]) -> None:
    assert cited_numbers(answer, 3) == numbers


def test_number_of_a_passage_is_no_number_of_an_option() -> None:
    assert without_citations("3) 심전도 [1] [2, 3]").rstrip() == "3) 심전도"


def test_passages_are_told_under_their_numbers() -> None:
    first, second = numbered([SHORT, LONG])
    assert (first["number"], first["id"], first["page"]) == (1, 3, 12)
    assert second.keys() == {"number", "id", "document", "page", "heading", "text"}
