"""The hospital's own guidelines: documents cut into passages, and the passages of a question.

Search is BM25 over morphemes (SQLite FTS5). BM25's scores have no upper end and mean nothing
between two questions, so whether a passage is relevant is decided by another number: the share of
the question's terms that it has, weighted by how rare they are, times their weight. A passage with
half of a question of four rare terms has 0.5 x 2 = 1. `bench/retrieval.py` measured `RELEVANT`.
"""

import math
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from kormed_edge.guideline_chunks import Chunk, chunks_of
from kormed_edge.guideline_documents import load, read_document
from kormed_edge.guideline_terms import analysis, find_terms
from kormed_edge.guidelines_file import (
    GuidelinesError,
    errors_of,
    open_to_read,
    open_to_write,
)
from kormed_edge.transaction import transaction

RELEVANT = 0.7
LIMIT = 5
CANDIDATES = 20
FEWEST_PASSAGES = 100
"""Rarity is counted as if there were at least so many: in one short document every word that is
there at all would otherwise be a common one."""
MAX_LETTERS = 4_000
MAX_TERMS = 400
"""Of a question."""
Outcome = Literal["added", "replaced", "unchanged"]
_PASSAGE = (
    "SELECT passages.id, name, page, heading, text FROM passages "
    "JOIN documents ON documents.id = document WHERE passages.id = ?"
)
_SEARCH = (
    "SELECT passages.id, name, page, heading, text, terms FROM "
    "(SELECT rowid, rank AS place, terms FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?) w "
    "JOIN passages ON passages.id = w.rowid JOIN documents ON documents.id = document "
    "ORDER BY place, passages.id"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. `page` counts from 1, None where a document has no pages."""

    id: int
    document: str
    page: int | None
    heading: str
    text: str
    relevance: float = 0.0
    """To the question that found it."""


@dataclass(frozen=True, slots=True)
class Document:
    """`added` is UTC, ISO 8601; `name` is the file's without its folder."""

    name: str
    sha256: str
    added: str
    passages: int


class Guidelines:
    """An index, opened to read unless `write`; a `with` closes it. From any thread."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """`GuidelinesError` for a file that is missing, is no index or was cut by another Kiwi."""
        self.path = path
        self._lock = threading.Lock()
        self._connection = open_to_write(path) if write else open_to_read(path)
        try:
            self._require_same_analysis(write)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> "Guidelines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, errors_of(self.path):
            yield self._connection

    def add(self, path: Path) -> Outcome:
        """Index a document; one of the same name is replaced, all or nothing.

        Raises `DocumentError` for a file that cannot be used.
        """
        name, content = normalize("NFC", path.name), load(path)
        digest = sha256(content).hexdigest()
        known = self._digest_of(name)
        if known == digest:
            return "unchanged"
        chunks = list(chunks_of(read_document(name, content)))
        terms = find_terms([f"{chunk.heading}\n{chunk.text}" for chunk in chunks])
        with self._using() as connection, transaction(connection):
            _remove(connection, name)
            _insert(connection, name, digest, chunks, terms)
        return "replaced" if known else "added"

    def _digest_of(self, name: str) -> str | None:
        query = "SELECT sha256 FROM documents WHERE name = ?"
        with self._using() as connection:
            row = connection.execute(query, (name,)).fetchone()
        return row[0] if row else None

    def remove(self, name: str) -> None:
        """Take a document out. Raises `GuidelinesError` for one that is not in."""
        with self._using() as connection, transaction(connection):
            if not _remove(connection, normalize("NFC", name)):
                raise GuidelinesError(f"{name} is not in {self.path}", "a document of the index",
                                      f"kormed guidelines list --index {self.path}")  # fmt: skip

    def documents(self) -> list[Document]:
        query = (
            "SELECT name, sha256, added, (SELECT count(*) FROM passages WHERE document = d.id) "
            "FROM documents d ORDER BY name"
        )
        with self._using() as connection:
            return [Document(*row) for row in connection.execute(query)]

    def passage(self, id: int) -> Passage | None:
        with self._using() as connection:
            row = connection.execute(_PASSAGE, (id,)).fetchone()
        return Passage(*row) if row else None

    def search(
        self, question: str, *, limit: int = LIMIT, at_least: float = RELEVANT
    ) -> list[Passage]:
        """The passages that a question is about, best first; none where nothing is relevant."""
        [found] = find_terms([question[:MAX_LETTERS]])
        terms = list(dict.fromkeys(found))[:MAX_TERMS]
        if not terms:
            return []
        with self._using() as connection:
            weights = _weights(connection, terms)
            # Quoted, a term is a string of FTS5 and never its syntax.
            query = " OR ".join(f'"{term}"' for term in terms)
            rows = connection.execute(_SEARCH, (query, CANDIDATES)).fetchall()
        passages = [
            replace(Passage(*row[:-1]), relevance=relevance(weights, set(row[-1].split())))
            for row in rows
        ]
        return [passage for passage in passages if passage.relevance >= at_least][:limit]

    def _require_same_analysis(self, write: bool) -> None:
        with self._using() as connection:
            [found] = connection.execute("SELECT analysis FROM meta").fetchone()
            if found == analysis():
                return
            if not write:
                raise GuidelinesError(
                    f"{self.path} was made with {found or 'nothing'}", analysis(),
                    f"kormed guidelines reindex --index {self.path}",
                )  # fmt: skip
            with transaction(connection):
                _index_anew(connection)


def relevance(weights: dict[str, float], terms: set[str]) -> float:
    """Share of a question's weight that is in a text, times that weight itself, which lets many
    shared terms outweigh a long question, and a stray one count for little."""
    shared = sum(weight for term, weight in weights.items() if term in terms)
    return shared * shared / sum(weights.values())


def _weights(connection: sqlite3.Connection, terms: Sequence[str]) -> dict[str, float]:
    """How rare each term is: 1 where no passage has it, near 0 where all have it."""
    [count] = connection.execute("SELECT count(*) FROM passages").fetchone()
    marks = ", ".join("?" * len(terms))
    query = f"SELECT term, doc FROM vocabulary WHERE term IN ({marks})"
    number = dict(connection.execute(query, terms).fetchall())
    total = max(count, FEWEST_PASSAGES)
    rarest = _rarity(0, total)
    return {term: _rarity(number.get(term, 0), total) / rarest for term in terms}


def _rarity(having: int, total: int) -> float:
    return math.log(1 + (total - having + 0.5) / (having + 0.5))


def _insert(
    connection: sqlite3.Connection, name: str, digest: str, chunks: Sequence[Chunk],
    terms: Sequence[Sequence[str]],
) -> None:  # fmt: skip
    added = datetime.now(UTC).isoformat(timespec="seconds")
    cursor = connection.execute(
        "INSERT INTO documents (name, sha256, added) VALUES (?, ?, ?)", (name, digest, added)
    )
    document = cursor.lastrowid
    for chunk, words in zip(chunks, terms, strict=True):
        cursor = connection.execute(
            "INSERT INTO passages (document, page, heading, text) VALUES (?, ?, ?, ?)",
            (document, chunk.page, chunk.heading, chunk.text),
        )
        _insert_words(connection, cursor.lastrowid, words)


def _insert_words(connection: sqlite3.Connection, id: int | None, words: Sequence[str]) -> None:
    row = (id, " ".join(words))
    connection.execute("INSERT INTO words (rowid, terms) VALUES (?, ?)", row)


def _remove(connection: sqlite3.Connection, name: str) -> bool:
    connection.execute(
        "DELETE FROM words WHERE rowid IN (SELECT passages.id FROM passages "
        "JOIN documents ON documents.id = document WHERE name = ?)", (name,),
    )  # fmt: skip
    return connection.execute("DELETE FROM documents WHERE name = ?", (name,)).rowcount > 0


def _index_anew(connection: sqlite3.Connection) -> None:
    """Cut every passage again, as this version of the kit and of Kiwi's model does."""
    rows = connection.execute("SELECT id, heading, text FROM passages").fetchall()
    connection.execute("DELETE FROM words")
    for (id, *_), words in zip(rows, find_terms([f"{h}\n{t}" for _, h, t in rows]), strict=True):
        _insert_words(connection, id, words)
    connection.execute("UPDATE meta SET analysis = ?", (analysis(),))
