"""How often answers leak Han characters, with and without suppression, and what that costs.

    python bench/han.py MODEL.gguf QUESTIONS.jsonl [--items 60] [--tokens 96] [--threads 2]
                        [--provoke "중국어로 답하십시오."]

QUESTIONS has a `question` and maybe options `A` to `E` on each line, as KorMedMCQA does. Every
question is asked three ways in turns, one at a time, so that other work on the machine hits all
alike: as it comes (`free`), with Han tokens banned (`han`), and with other scripts banned too
(`strict`). Every other question goes without its options, which asks for a free answer. `--provoke`
is put after each question. Nothing is kept from one answer to the next, which could change its last
bits. Prints a Markdown table: answers with Han and with other scripts, which in the row `han` are
those that the service would write anew; answers that are the same as `free`; and the median tokens
a second after the first token.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kormed_edge.engine import Engine
from kormed_edge.prompts import SYSTEM_MESSAGE, question_messages
from kormed_edge.records import format_question
from kormed_edge.request import Request, Sampling, joined
from kormed_edge.safety import has_foreign, has_han
from kormed_edge.suppression import Suppression


class Told(NamedTuple):
    text: str
    speed: float


def questions(path: Path, items: int, provoke: str) -> Iterator[str]:
    """Every other one without its options, spread over the file."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows[:: max(1, len(rows) // items)][:items]):
        options = [row[name] for name in "ABCDE" if row.get(name)]
        free = number % 2 or not options
        text = row["question"] if free else format_question(row["question"], options)
        yield f"{text}\n{provoke}".strip()


def tell(engine: Engine, question: str, banned: frozenset[int], tokens: int) -> Told:
    ids = tuple(engine.encode_messages(question_messages(question)))
    generation = engine.submit(Request(ids, tokens, Sampling(banned=banned)))
    pieces = [next(generation)]
    began, before = time.perf_counter(), generation.completion_tokens
    pieces += generation
    told = generation.completion_tokens - before
    return Told(joined(pieces).text, told / (time.perf_counter() - began) if told > 8 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--provoke", default="")
    given = parser.parse_args()
    answers: dict[str, list[Told]] = defaultdict(list)
    with Engine(
        given.model,
        context=2048,
        threads=given.threads,
        prefix=[SYSTEM_MESSAGE],
        reuse=False,
    ) as engine:
        began = time.perf_counter()
        suppression = Suppression.of(engine.pieces())
        seconds = time.perf_counter() - began
        ways = {"free": frozenset[int](), "han": suppression.han, "strict": suppression.strict}
        for number, question in enumerate(questions(given.questions, given.items, given.provoke)):
            order = list(ways)[number % 3 :] + list(ways)[: number % 3]
            for way in order:
                answers[way].append(tell(engine, question, ways[way], given.tokens))
    print(f"{len(suppression.han):,} tokens with Han, {len(suppression.strict):,} in the strict"
          f" set, found in {seconds:.2f} s\n")  # fmt: skip
    print("| | Han | other scripts | as without | tokens/s |\n|---|---|---|---|---|")
    for way, told in answers.items():
        print(row(way, told, answers["free"]))


def row(way: str, told: list[Told], free: list[Told]) -> str:
    han = sum(has_han(one.text) for one in told)
    foreign = sum(has_foreign(one.text) for one in told)
    same = sum(one.text == other.text for one, other in zip(told, free, strict=True))
    speed = statistics.median(one.speed for one in told if one.speed)
    return f"| {way} | {han} of {len(told)} | {foreign} | {same} | {speed:.1f} |"


if __name__ == "__main__":
    main()
