from io import BytesIO
from pathlib import Path

import pytest
from guideline_files import docx, locked, paragraph, pdf

import kormed_edge.guideline_docx as word
from kormed_edge import guideline_documents as documents
from kormed_edge.guideline_documents import Block, DocumentError, load, read_document

TEXT = "Epinephrine 1 mg is given every 3 to 5 minutes."


def test_markdown_headings_are_the_way_to_a_paragraph() -> None:
    text = "# 소생술\n\n압박은 5 cm.\n\n## 약물\n첫 줄\n둘째 줄\n\n# 기도\n삽관한다.\n"
    assert read_document("a.md", text.encode()) == [
        Block("소생술", "소생술", is_heading=True),
        Block("압박은 5 cm.", "소생술"),
        Block("약물", "소생술 › 약물", is_heading=True),
        Block("첫 줄 둘째 줄", "소생술 › 약물"),
        Block("기도", "기도", is_heading=True),
        Block("삽관한다.", "기도"),
    ]


def test_comment_in_a_fenced_block_is_no_heading() -> None:
    blocks = read_document("a.md", b"```\n# not a heading\n```\n")
    assert [block.is_heading for block in blocks] == [False]


@pytest.mark.parametrize(
    ("line", "is_heading"),
    [
        ("제1장 총론", True),
        ("2.1 소아 용량", True),
        ("Ⅱ. 적응증", True),
        ("1. 기도를 확보한다.", False),
        ("1. 기도를 확보한다", False),
        ("28세 남자", False),
        ("1.5 mg/kg 정맥 투여", False),
        ("3. " + "긴 제목 " * 20, False),
    ],
)
def test_numbered_line_is_a_heading_by_its_look(line: str, is_heading: bool) -> None:
    [block] = read_document("a.txt", line.encode())
    assert block.is_heading is is_heading


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
def test_text_of_korean_editors_is_read(encoding: str) -> None:
    assert read_document("a.txt", "급성 충수염".encode(encoding)) == [Block("급성 충수염")]


def test_decomposed_and_unseen_characters_become_plain_ones() -> None:
    text = "\u1112\u1161\u11ab\u202e\u200b 글"
    assert read_document("a.txt", text.encode()) == [Block("한 글")]


def test_pdf_blocks_have_their_page() -> None:
    found = read_document("a.pdf", pdf("1. Dose\n" + TEXT, "Amiodarone 300 mg\nis given next."))
    assert found == [
        Block("1. Dose", "1. Dose", 1, is_heading=True),
        Block(TEXT, "1. Dose", 1),
        Block("Amiodarone 300 mg is given next.", "1. Dose", 2),
    ]


def test_pdf_that_only_forbids_printing_is_read() -> None:
    assert read_document("a.pdf", locked(pdf(TEXT), ""))[0].text == TEXT


def test_docx_has_headings_by_style_and_rows_of_tables() -> None:
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("성인", "0.5 mg"))
    body = paragraph("아나필락시스", "1") + paragraph("용량", "22")
    body += f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>" + paragraph("근육주사한다.")
    way = "아나필락시스 › 용량"
    assert read_document("a.docx", docx(body))[1:] == [
        Block("용량", way, is_heading=True),
        Block("성인 | 0.5 mg", way),
        Block("근육주사한다.", way),
    ]


def test_docx_leaves_out_what_was_deleted() -> None:
    moved = f"<w:moveFrom>{paragraph('옮긴 글')}</w:moveFrom>"
    inside = f"<w:sdt><w:sdtContent>{paragraph('있는 글')}</w:sdtContent></w:sdt>"
    assert read_document("a.docx", docx(moved + inside)) == [Block("있는 글")]


def blank_pdf() -> bytes:
    from pypdf import PdfWriter

    file, writer = BytesIO(), PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(file)
    return file.getvalue()


DOCTYPE = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">]>'
REFUSED = {
    "scanned": ("s.pdf", blank_pdf(), "no text layer.*ocrmypdf"),
    "locked": ("s.pdf", locked(pdf(TEXT), "secret"), "encrypted"),
    "cut off": ("s.pdf", pdf(TEXT)[:60], "damaged"),
    "no PDF": ("s.pdf", b"hello", "damaged"),
    "no zip": ("s.docx", b"hello", "damaged"),
    "locked docx": ("s.docx", b"\xd0\xcf\x11\xe0", "encrypted"),
    "entities": ("s.docx", docx("", DOCTYPE), "document type"),
    "nested": ("s.docx", docx("<w:x>" * 9000 + "</w:x>" * 9000), "damaged"),
    "empty docx": ("s.docx", docx(""), "no text"),
    "binary": ("s.txt", b"\xff\xff\x80\x81", "UTF-8"),
    "empty": ("s.txt", b" \n", "no text"),
}


@pytest.mark.parametrize(("name", "content", "said"), REFUSED.values(), ids=REFUSED)
def test_document_that_cannot_be_used_is_refused_by_name(
    name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DocumentError, match=f"(?s)^{name}.*{said}"):
        read_document(name, content)


def test_docx_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "MAX_XML", 10_000)
    bomb = docx(paragraph("0" * 20_000))
    assert len(bomb) < 2_000
    with pytest.raises(DocumentError, match="unpacks to more"):
        read_document("a.docx", bomb)


@pytest.mark.parametrize(("limit", "most"), [("MAX_PAGES", 1), ("MAX_LETTERS", 50)])
def test_too_many_pages_or_letters_are_refused(
    limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, limit, most)
    with pytest.raises(DocumentError, match="split it"):
        read_document("a.pdf", pdf(TEXT, TEXT))


def test_only_files_of_known_kinds_and_sizes_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 3)
    (tmp_path / "a.TXT").write_bytes(b"123")
    assert load(tmp_path / "a.TXT") == b"123"
    (tmp_path / "b.txt").write_bytes(b"1234")
    (tmp_path / "c.hwp").write_bytes(b"1")
    (tmp_path / "d.txt").mkdir()
    for name, said in (("b.txt", "too large"), ("c.hwp", "kind"), ("d.txt", "not a file")):
        with pytest.raises(DocumentError, match=said):
            load(tmp_path / name)
