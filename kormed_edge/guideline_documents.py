"""A hospital's documents as blocks of text, each with its heading and its page.

Files are untrusted: all that is read has a limit, and what is refused is refused with its name.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from unicodedata import normalize

from kormed_edge.errors import KormedError

MAX_BYTES = 64_000_000
MAX_PAGES = 3_000
MAX_LETTERS = 10_000_000
FEWEST_LETTERS = 16
"""A PDF with fewer letters a page, on average, is a scan with a stamp on it."""
HEADING_LETTERS = 60
"""A longer line of a text or a PDF is no heading."""
WAY_LETTERS = 100
"""What is kept of each heading on the way to a block."""
_MARKDOWN = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_FENCE = re.compile(r"\s*(```|~~~)")
# 제1장 · 1. · 2.1 · Ⅱ. · IV. and then words that do not end as a sentence does.
_NUMBERED = re.compile(
    r"(제\s*\d+\s*[장절]|[1-9]\d*(?:\.\d+)+\.?|[1-9]\d*\.|[Ⅰ-Ⅻ]+\.?|[IVX]+\.)"
    r"\s+[가-힣A-Z(].*[^.?!,;:다요음함임됨]"
)
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class DocumentError(KormedError):
    """A document cannot be read."""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph or a heading. `heading` is the way to it, "용량 › 소아"; `page` counts from 1."""

    text: str
    heading: str = ""
    page: int | None = None
    is_heading: bool = False


def load(path: Path) -> bytes:
    """A document's bytes; `DocumentError` for a file of another kind, too large or unreadable."""
    if path.suffix.lower() not in _READERS:
        raise DocumentError(
            f"{path.name} is not of a kind that can be read", ", ".join(_READERS),
            "save it as a PDF with text, or as .docx",
        )  # fmt: skip
    if not path.is_file():  # a pipe or a device would never end
        raise DocumentError(f"{path.name} is not a file", "a document")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"{path.name} cannot be read: {error.strerror}",
                            "a file that you may read") from None  # fmt: skip
    if len(content) > MAX_BYTES:
        raise DocumentError(
            f"{path.name} is too large", f"at most {MAX_BYTES / 1e6:g} MB",
            "save it without its pictures, or split it",
        )  # fmt: skip
    return content


def read_document(name: str, content: bytes) -> list[Block]:
    """The blocks of a txt, md, pdf or docx; `DocumentError` for one that cannot be used."""
    blocks, letters = [], 0
    for block in _READERS[Path(name).suffix.lower()](name, content):
        letters += len(block.text)
        if letters > MAX_LETTERS:
            raise DocumentError(f"{name} has more than {MAX_LETTERS:,} letters", "fewer",
                                "split it into its chapters")  # fmt: skip
        blocks.append(block)
    if not blocks:
        raise DocumentError(f"{name} holds no text", "a document with text")
    return blocks


def tidy(text: str) -> str:
    """NFC, on one line, without characters that are not seen: some turn the order of others."""
    return " ".join(_UNSEEN.sub("", normalize("NFC", text).replace("\x0c", " ")).split())


class Headings:
    """The way to where a reader is: a heading ends those of its level and below."""

    def __init__(self) -> None:
        self._way: list[tuple[int, str]] = []

    def enter(self, level: int, text: str, page: int | None = None) -> Iterator[Block]:
        """Go on under a heading, which is a block too: what stands in it must be found."""
        self._way = [step for step in self._way if step[0] < level] + [
            (level, tidy(text)[:WAY_LETTERS])
        ]
        if tidy(text):
            yield Block(tidy(text), str(self), page, is_heading=True)

    def __str__(self) -> str:
        return " › ".join(text for _, text in self._way if text)


def _read_text(name: str, content: bytes) -> Iterator[Block]:
    return _paragraphs(_decode(name, content).split("\n"), Headings(), None)


def _read_markdown(name: str, content: bytes) -> Iterator[Block]:
    fenced = False

    def is_heading(line: str) -> tuple[int, str] | None:
        nonlocal fenced
        fenced ^= _FENCE.match(line) is not None
        match = None if fenced else _MARKDOWN.match(line)
        return (len(match[1]), match[2]) if match else None

    return _paragraphs(_decode(name, content).split("\n"), Headings(), None, is_heading)


def _decode(name: str, content: bytes) -> str:
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    # CP949 is what Windows' editor wrote in Korea for decades.
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp949"):
        with suppress(UnicodeDecodeError):
            return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    raise DocumentError(
        f"{name} is not text in UTF-8, UTF-16 or CP949", "one of these",
        "open it in an editor and save it as UTF-8",
    )  # fmt: skip


def _numbered_heading(line: str) -> tuple[int, str] | None:
    """Level and text of a line that looks like one; the level is how many numbers it has."""
    line = line.strip()
    match = _NUMBERED.fullmatch(line) if len(line) <= HEADING_LETTERS else None
    return (match[1].strip(".").count(".") + 1, line) if match else None


def _paragraphs(
    lines: Iterable[str], headings: Headings, page: int | None,
    heading_of: Callable[[str], tuple[int, str] | None] = _numbered_heading,
) -> Iterator[Block]:  # fmt: skip
    """Blocks between empty lines and headings."""
    gathered: list[str] = []
    for line in [*lines, ""]:
        found = heading_of(line)
        if found is None and line.strip():
            gathered.append(line)
            continue
        if text := tidy(" ".join(gathered)):
            yield Block(text, str(headings), page)
        gathered.clear()
        if found is not None:
            yield from headings.enter(*found, page)


def _read_pdf(name: str, content: bytes) -> Iterator[Block]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    try:
        with PdfReader(BytesIO(content)) as reader:
            # Many a PDF is encrypted with an empty password, to forbid printing.
            if reader.is_encrypted and not reader.decrypt(""):
                raise _locked(name)
            if len(reader.pages) > MAX_PAGES:
                raise DocumentError(f"{name} has {len(reader.pages):,} pages",
                                    f"at most {MAX_PAGES:,}", "split it")  # fmt: skip
            pages = [page.extract_text() for page in reader.pages]
    except DocumentError:
        raise
    except DependencyError:
        raise _locked(name) from None
    except Exception as error:  # a damaged file makes pypdf stumble in every way
        raise damaged(name, error) from error
    if sum(len(tidy(page)) for page in pages) < FEWEST_LETTERS * len(pages):
        raise DocumentError(
            f"{name} has no text layer: it is scanned, or made of pictures",
            "a PDF whose text can be marked", "run it through OCR (ocrmypdf -l kor), then add it",
        )  # fmt: skip
    headings = Headings()
    for number, page in enumerate(pages, 1):
        yield from _paragraphs(page.split("\n"), headings, number)


def _locked(name: str) -> DocumentError:
    return DocumentError(f"{name} is encrypted", "a PDF without a password",
                         "save it without its password, then add it")  # fmt: skip


def damaged(name: str, error: Exception) -> DocumentError:
    return DocumentError(
        f"{name} is damaged: {type(error).__name__}: {tidy(str(error))[:200]}", "a whole file",
        "open it and save it anew",
    )  # fmt: skip


def _read_docx(name: str, content: bytes) -> Iterator[Block]:
    from kormed_edge.guideline_docx import read_docx

    return read_docx(name, content)


_READERS: dict[str, Callable[[str, bytes], Iterator[Block]]] = {
    ".txt": _read_text, ".md": _read_markdown, ".pdf": _read_pdf, ".docx": _read_docx,
}  # fmt: skip
