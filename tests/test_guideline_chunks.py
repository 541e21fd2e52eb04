from kormed_edge.guideline_chunks import ENOUGH, LETTERS, Chunk, chunks_of
from kormed_edge.guideline_documents import Block

LONG = "가" * ENOUGH


def test_short_sections_stay_together_under_the_first_way() -> None:
    blocks = [Block("A", "A", is_heading=True), Block("하나", "A")]
    blocks += [Block("B", "B", is_heading=True), Block("둘", "B")]
    assert list(chunks_of(blocks)) == [Chunk("A\n하나\nB\n둘", "A", None)]


def test_heading_begins_a_chunk_after_enough_text() -> None:
    blocks = [Block(LONG, "A"), Block("B", "B", is_heading=True), Block("둘", "B")]
    assert list(chunks_of(blocks)) == [Chunk(LONG, "A", None), Chunk("B\n둘", "B", None)]


def test_chunk_never_spans_pages_and_a_heading_goes_with_its_text() -> None:
    blocks = [Block("하나", "A", 1), Block("B", "B", 1, is_heading=True), Block("둘", "B", 2)]
    assert list(chunks_of(blocks)) == [Chunk("하나", "A", 1), Chunk("B\n둘", "B", 2)]


def test_long_paragraph_is_cut_at_ends_of_sentences() -> None:
    sentence = "나" * 199 + "."
    found = [chunk.text for chunk in chunks_of([Block(" ".join([sentence] * 5), "A", 3)])]
    assert found == [f"{sentence} {sentence}", f"{sentence} {sentence}", sentence]


def test_text_without_sentences_or_spaces_is_cut_and_kept_whole() -> None:
    text = "다" * (2 * LETTERS + 1)
    found = [chunk.text for chunk in chunks_of([Block(text)])]
    assert [len(piece) for piece in found] == [LETTERS, LETTERS, 1]
    assert "".join(found) == text


def test_nothing_but_headings_is_still_found_and_bounded() -> None:
    headings = [Block("제" * 100, "x", is_heading=True)] * 12
    found = list(chunks_of(headings))
    assert [len(chunk.text.split("\n")) for chunk in found] == [5, 5, 2]
