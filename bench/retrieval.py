"""How well guidelines are found: recall@5, MRR, and what the relevance threshold keeps and stops.

    python bench/retrieval.py

The passages are the explanations of samples/facts, the questions those of the sample records; the
passage that a question is about is its own fact's explanation, all others distract. "stem" is the
question without its options; with them the right answer's words are among those searched for.
Prints JSON lines: first the tokenizers on the same FTS5 (unicode61; trigram; Kiwi's morphemes; the
same and letter pairs of nouns, which is what the kit does; the last with each fact's answer as a
heading of its own column under several weights), then the kit's own search from files to passages,
each explanation a passage or chunks of several, under several thresholds. `others` is the share of
questions that still get a passage when their whole department is taken out of the index, although
departments overlap; `off_topic` the same for questions that no guideline is about.
A minute on one core.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unicodedata import normalize

from kormed_edge import guideline_terms
from kormed_edge.guideline_terms import find_terms
from kormed_edge.guidelines import CANDIDATES, RELEVANT, Guidelines, Passage
from kormed_edge.records import DOMAINS, MULTIPLE_CHOICE, split_options

SAMPLES = Path(__file__).parents[1] / "samples"
AT = 5
THRESHOLDS = (0.0, 0.3, 0.5, RELEVANT, 0.9, 1.2)
HEADING_WEIGHTS = (0.5, 1.0, 2.0, 3.0)
FTS5 = "CREATE VIRTUAL TABLE words USING fts5(heading, text, tokenize = '{}')"
OFF_TOPIC = (
    "대한민국의 수도는 어디인가?",
    "오늘 점심 메뉴로 무엇을 추천하나요?",
    "파이썬에서 리스트를 정렬하는 방법은?",
    "세종대왕이 훈민정음을 반포한 해는 언제인가?",
    "자동차 엔진 오일은 얼마나 자주 교환해야 하는가?",
    "지구에서 달까지의 거리는 얼마인가?",
    "김치찌개를 맛있게 끓이는 방법을 설명하라.",
    "연말정산에서 월세 세액공제를 받으려면 어떤 서류가 필요한가?",
    "프랑스 혁명의 원인으로 가장 옳은 것은?",
    "축구에서 오프사이드 규칙을 설명하라.",
    "병원 주차장은 몇 시까지 운영하나요?",
    "직원 식당의 이번 주 식단은?",
    "연차 휴가를 신청하는 방법은?",
    "프린터 용지가 걸렸을 때 어떻게 하나요?",
    "와이파이 비밀번호는 무엇인가요?",
    "엑셀에서 피벗 테이블을 만드는 방법은?",
    "서울에서 부산까지 기차로 몇 시간이 걸리는가?",
    "고양이가 밤에 우는 이유는 무엇인가?",
    "주식과 채권의 차이를 설명하라.",
    "비가 올 때 운전에서 주의할 점은?",
)
Cut = Callable[[Sequence[str]], list[list[str]]]


class Fact(NamedTuple):
    domain: str
    question: str
    answer: str
    explanation: str

    @property
    def stem(self) -> str:
        return split_options(self.question)[0]


def read_facts() -> list[Fact]:
    build = run_path(str(SAMPLES / "build.py"))
    facts = []
    for code, domain in DOMAINS.items():
        rows = build["read_rows"](SAMPLES / "facts" / f"{domain}.yaml")
        for row, place in zip(rows, build["places"](rows, domain), strict=True):
            record = build["sample_record"](row, code, place)
            heading = row["answer"] if row["type"] == MULTIPLE_CHOICE else ""
            facts.append(Fact(domain, record["question"], heading, row["explanation"]))
    return facts


def words(texts: Sequence[str]) -> list[list[str]]:
    return [re.findall(r"[^\W_]+", normalize("NFKC", text).lower()) for text in texts]


def trigrams(texts: Sequence[str]) -> list[list[str]]:
    """Of each word, as FTS5's own tokenizer makes them."""
    return [[w[i : i + 3] for w in row for i in range(len(w) - 2)] for row in words(texts)]


def morphemes(texts: Sequence[str]) -> list[list[str]]:
    """The kit's terms without the letter pairs."""
    kept, guideline_terms.PAIRED_FROM = guideline_terms.PAIRED_FROM, 10**9
    try:
        return find_terms(texts)
    finally:
        guideline_terms.PAIRED_FROM = kept


def found_by(
    passages: Sequence[tuple[list[str], list[str]]], questions: Sequence[list[str]],
    tokenize: str = "unicode61 remove_diacritics 0", weight: float = 1.0,
) -> list[list[int]]:  # fmt: skip
    """For each question the numbers of the passages that share a term, by BM25."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(FTS5.format(tokenize))
        connection.executemany(
            "INSERT INTO words (rowid, heading, text) VALUES (?, ?, ?)",
            [(n, " ".join(heading), " ".join(text)) for n, (heading, text) in enumerate(passages)],
        )
        query = f"SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, {weight}, 1.0)"
        asked = [" OR ".join(f'"{term}"' for term in dict.fromkeys(q)) for q in questions]
        return [
            [n for (n,) in connection.execute(query, (text,))] if text else [] for text in asked
        ]


def ranks_of(found: Sequence[Sequence[int]], wanted: Sequence[int]) -> list[int]:
    """The place of each wanted passage, from 1; 0 where it was not found."""
    pairs = zip(found, wanted, strict=True)
    return [list(row).index(one) + 1 if one in row else 0 for row, one in pairs]


def scores(ranks: Sequence[int]) -> dict[str, float]:
    return {
        f"recall@{AT}": round(sum(0 < rank <= AT for rank in ranks) / len(ranks), 3),
        "mrr": round(sum(1 / rank for rank in ranks if rank) / len(ranks), 3),
    }


def tokenizer_rows(facts: Sequence[Fact]) -> Iterator[dict[str, Any]]:
    ways: dict[str, tuple[Cut, Cut, str]] = {
        "unicode61": (words, words, "unicode61 remove_diacritics 0"),
        "trigram": (words, trigrams, "trigram"),
        "morphemes": (morphemes, morphemes, "unicode61 remove_diacritics 0"),
        "morphemes and pairs": (find_terms, find_terms, "unicode61 remove_diacritics 0"),
    }
    asked = {"stem": [f.stem for f in facts], "whole": [f.question for f in facts]}
    wanted = range(len(facts))
    for name, (cut, cut_question, tokenize) in ways.items():
        passages: list[tuple[list[str], list[str]]] = [
            ([], text) for text in cut([f.explanation for f in facts])
        ]
        for kind, questions in asked.items():
            ranks = ranks_of(found_by(passages, cut_question(questions), tokenize), wanted)
            yield {"tokenizer": name, "question": kind, "n": len(ranks), **scores(ranks)}
    headings, texts = (
        find_terms([f.answer for f in facts]),
        find_terms([f.explanation for f in facts]),
    )
    for weight in HEADING_WEIGHTS:
        passages = list(zip(headings, texts, strict=True))
        ranks = ranks_of(found_by(passages, find_terms(asked["stem"]), weight=weight), wanted)
        yield {"heading_weight": weight, "question": "stem", "n": len(ranks), **scores(ranks)}


def index(facts: Sequence[Fact], folder: Path, *, together: bool) -> Guidelines:
    """An index of files: one for each department, or one for each explanation."""
    texts: dict[str, list[str]] = {}
    for number, fact in enumerate(facts):
        name = fact.domain if together else f"{fact.domain}-{number}"
        texts.setdefault(name, []).append(fact.explanation)
    guidelines = Guidelines(folder / f"{'together' if together else 'each'}.db", write=True)
    for name, paragraphs in texts.items():
        file = folder / f"{name}.txt"
        file.write_text("\n\n".join(paragraphs), encoding="utf-8")
        guidelines.add(file)
    return guidelines


def search_rows(facts: Sequence[Fact], folder: Path, *, together: bool) -> Iterator[dict[str, Any]]:
    with index(facts, folder, together=together) as guidelines:
        own = [everything(guidelines, f.question) for f in facts]
        off = [everything(guidelines, question) for question in OFF_TOPIC]
        passages = sum(document.passages for document in guidelines.documents())
        others: list[list[Passage]] = []
        for domain in DOMAINS.values():
            documents = [d.name for d in guidelines.documents() if d.name.startswith(domain)]
            for name in documents:
                guidelines.remove(name)
            others += [everything(guidelines, f.question) for f in facts if f.domain == domain]
            for name in documents:
                guidelines.add(folder / name)
    for least in THRESHOLDS:
        ranks = [_rank(row, f, least) for row, f in zip(own, facts, strict=True)]
        yield {
            "passages": passages, "least": least, "n": len(ranks), **scores(ranks),
            "others": _share(others, least), "off_topic": _share(off, least),
            "shown": round(sum(len(_kept(row, least)[:AT]) for row in own) / len(own), 2),
        }  # fmt: skip


def everything(guidelines: Guidelines, question: str) -> list[Passage]:
    return guidelines.search(question, limit=CANDIDATES, at_least=0)


def _rank(found: Sequence[Passage], fact: Fact, least: float) -> int:
    places = enumerate(_kept(found, least), 1)
    return next((n for n, one in places if fact.explanation in one.text), 0)


def _kept(found: Sequence[Passage], least: float) -> list[Passage]:
    return [passage for passage in found if passage.relevance >= least]


def _share(rows: Sequence[Sequence[Passage]], least: float) -> float:
    return round(sum(bool(_kept(row, least)) for row in rows) / len(rows), 3)


def main() -> None:
    facts = read_facts()
    with TemporaryDirectory(prefix="kormed-retrieval-") as folder:
        for row in tokenizer_rows(facts):
            print(json.dumps(row, ensure_ascii=False))
        for together in (False, True):
            for row in search_rows(facts, Path(folder), together=together):
                print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
