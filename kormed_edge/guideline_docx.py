"""The text of a Word document, with its headings.

Read from the two parts that matter, each with a limit: nothing else of the archive is unpacked,
no picture, no macro, no linked file. Word's pages exist only once it has laid them out, so blocks
have no page.
"""

import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder, XMLParser
from zipfile import BadZipFile, ZipFile

from kormed_edge.guideline_documents import Block, DocumentError, Headings, damaged, tidy

MAX_XML = 32_000_000
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_LEFT_OUT = {f"{_W}del", f"{_W}moveFrom", _FALLBACK}
"""What is no longer there, and what stands there a second time for older programs."""
_SPACES = {f"{_W}{name}" for name in ("tab", "br", "cr", "p")}
_DAMAGE = (BadZipFile, zlib.error, OSError, EOFError, ValueError, SyntaxError, RuntimeError)
"""RuntimeError is a password on the archive, and a document that is nested too deeply."""
_OLE = b"\xd0\xcf\x11\xe0"


class _NoDoctype(TreeBuilder):
    def doctype(self, *_: Any) -> None:
        """Word writes none; what has one may let entities grow."""
        raise ValueError("it declares a document type")


def read_docx(name: str, content: bytes) -> Iterator[Block]:
    """Paragraphs, and rows of tables with " | " between cells; headings by their style."""
    if content.startswith(_OLE):
        raise DocumentError(
            f"{name} is encrypted, or of Word 2003", "a .docx without a password",
            "open it in Word and save it as .docx without a password",
        )  # fmt: skip
    try:
        with ZipFile(BytesIO(content)) as archive:
            levels = _heading_levels(_part(archive, "word/styles.xml", name))
            body = _part(archive, "word/document.xml", name)
        if body is None:
            raise ValueError("it has no word/document.xml")
        yield from _blocks(body, levels, Headings())
    except DocumentError:
        raise
    # RuntimeError: a password on the archive; RecursionError is one too.
    except (
        BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        RuntimeError,
    ) as error:
        raise damaged(name, error) from error


def _part(archive: ZipFile, part: str, name: str) -> Element | None:
    """One XML part; what the archive says of its size is not believed."""
    if part not in archive.namelist():
        return None
    with archive.open(part) as stream:
        content = stream.read(MAX_XML + 1)
    if len(content) > MAX_XML:
        raise DocumentError(
            f"{name} unpacks to more than {MAX_XML / 1e6:g} MB of text", "less",
            "split it into its chapters",
        )  # fmt: skip
    parser = XMLParser(target=_NoDoctype())
    parser.feed(content)
    root: Element = parser.close()
    return root


def _heading_levels(styles: Element | None) -> dict[str, int]:
    """Level of each heading style by its id. Names are English in every Word, ids are not."""
    levels: dict[str, int] = {}
    for style in styles.iter(f"{_W}style") if styles is not None else ():
        name, level = style.find(f"{_W}name"), _outline(style)
        words = (name.get(f"{_W}val", "") if name is not None else "").lower().split()
        if len(words) == 2 and words[0] == "heading" and words[1].isdecimal():
            level = int(words[1])
        elif words == ["title"]:
            level = 0
        if level is not None:
            levels[style.get(f"{_W}styleId", "")] = level
    return levels


def _outline(element: Element) -> int | None:
    found = element.find(f"{_W}pPr/{_W}outlineLvl")
    value = found.get(f"{_W}val", "") if found is not None else ""
    # 9 is body text.
    return int(value) + 1 if value.isdecimal() and int(value) < 9 else None


def _blocks(parent: Element, levels: dict[str, int], headings: Headings) -> Iterator[Block]:
    for element in parent:
        if element.tag == f"{_W}p":
            yield from _paragraph(element, levels, headings)
        elif element.tag == f"{_W}tr":
            cells = [tidy("".join(_pieces(cell))) for cell in element.iter(f"{_W}tc")]
            if any(cells):
                yield Block(" | ".join(cells), str(headings))
        elif element.tag not in _LEFT_OUT:
            yield from _blocks(element, levels, headings)


def _paragraph(element: Element, levels: dict[str, int], headings: Headings) -> Iterator[Block]:
    text = tidy("".join(_pieces(element)))
    if not text:
        return
    style = element.find(f"{_W}pPr/{_W}pStyle")
    level = levels.get(style.get(f"{_W}val", "")) if style is not None else None
    own = _outline(element)
    if own is not None or level is not None:
        yield from headings.enter(own if own is not None else level or 0, text)
    else:
        yield Block(text, str(headings))


def _pieces(element: Element) -> Iterator[str]:
    for child in element:
        if child.tag == f"{_W}t":
            yield child.text or ""
        elif child.tag not in _LEFT_OUT:
            yield " " if child.tag in _SPACES else ""
            yield from _pieces(child)
