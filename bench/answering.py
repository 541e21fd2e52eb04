"""How fast arms answer: many items at once against one by one.

    python bench/answering.py hf FOLDER [--items 256] [--alone 12] [--batch 64]
    python bench/answering.py gguf FILE [--items 96] [--slots 16] [--times 3] [--data samples]

`hf`: FOLDER is what `bench/export_7b.py build` wrote, with the tokenizer of the real base in
FOLDER/base. Random weights never end an answer, so lengths are drawn for every item by its type:
15 to 30 tokens for multiple choice, 3 to 12 for short answers, 60 to 200 for descriptions; one by
one and together they are the same.

`gguf`: multiple choice of the data's records, through the edge engine and through
`llama_cpp.Llama.create_chat_completion`, with its own number of threads and with all, in turns;
answers read with the kit's reader. Prints medians.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.arms import HuggingFaceArms, answer_with_gguf
from eval.predictions import Prediction
from eval.protocol import Protocol, kit
from kormed_edge.answers import read_tolerant
from kormed_edge.prompts import question_messages
from kormed_edge.records import MULTIPLE_CHOICE, Record, split_options
from train.source import read_source

LENGTHS = {"multiple_choice": (15, 30), "short_answer": (3, 12), "descriptive": (60, 200)}


def records_of(source: str) -> list[Record]:
    return sorted(read_source(source).records, key=lambda r: r.qa_id)


def drawn_length(record: Record) -> int:
    return random.Random(record.qa_id).randint(*LENGTHS[record.q_type])


class Timed(HuggingFaceArms):
    """Arms whose answers end at drawn lengths."""

    def _answer_batch(self, batch: Sequence[Record], protocol: Protocol) -> Iterator[Prediction]:
        import torch

        lengths = torch.tensor([drawn_length(record) for record in batch], device=self.model.device)
        generate = type(self.model).generate.__get__(self.model)

        def until_drawn(**given: Any) -> Any:
            start = given["input_ids"].shape[1]
            ended = lambda ids, *_, **__: ids.shape[1] - start >= lengths  # noqa: E731
            return generate(**given, stopping_criteria=[ended])

        self.model.generate = until_drawn
        yield from super()._answer_batch(batch, protocol)


def hf(folder: Path, items: int, alone: int, batch: int) -> None:
    import torch

    arms = Timed.nf4(folder / "base", folder / "adapter")
    protocol = kit(256)
    chance = random.Random(0)
    records = chance.sample(records_of("samples"), items)
    few = chance.sample(records, alone)
    list(arms.answer("adapter", few[:2], protocol, 2))
    for arm in ("base", "adapter"):
        one = timed(lambda arm=arm: arms.answer(arm, few, protocol, 1))[0] / alone
        torch.cuda.reset_peak_memory_stats()
        many = timed(lambda arm=arm: arms.answer(arm, records, protocol, batch))[0] / items
        print(
            f"{arm}: one by one {1 / one:.2f} items/s, {batch} at once {1 / many:.2f} items/s: "
            f"{one / many:.1f} times; peak {torch.cuda.max_memory_reserved() / 1e9:.1f} GB reserved"
        )


def timed(answers: Callable[[], Iterator[Prediction]]) -> tuple[float, list[Prediction]]:
    started = time.perf_counter()
    predictions = list(answers())
    return time.perf_counter() - started, predictions


def gguf(model: Path, items: int, slots: int, times: int, data: str) -> None:
    import llama_cpp

    records = [r for r in records_of(data) if r.q_type == MULTIPLE_CHOICE][:items]

    def completions(**threads: int) -> Iterator[Prediction]:
        llama = llama_cpp.Llama(str(model), n_ctx=2048, verbose=False, **threads)
        for record in records:
            answer: Any = llama.create_chat_completion(
                question_messages(record.question), max_tokens=64, temperature=0
            )
            text = answer["choices"][0]["message"]["content"].strip()
            yield {"qa_id": record.qa_id, "output": text, "question": record.question}
        llama.close()

    cores = len(os.sched_getaffinity(0))
    ways: dict[str, Callable[[], Iterator[Prediction]]] = {
        "kit": lambda: answer_with_gguf(model, records, kit(64), slots),
        "Llama as it comes": completions,
        f"Llama with {cores} threads": lambda: completions(n_threads=cores, n_threads_batch=cores),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    reads: dict[str, list[Any]] = {}
    for _ in range(times):
        for way, answers in ways.items():
            took, predictions = timed(answers)
            seconds[way].append(took)
            reads[way] = [read(p) for p in predictions]
    ours = statistics.median(seconds["kit"])
    for way, took in seconds.items():
        same = sum(a == b for a, b in zip(reads[way], reads["kit"], strict=True))
        median = statistics.median(took)
        print(
            f"{way}: {len(records) / median:.2f} items/s, {median / ours:.2f} times the kit's "
            f"time; {same} of {len(records)} answers read as the kit's"
        )


def read(prediction: Prediction) -> int | None:
    return read_tolerant(prediction["output"], split_options(prediction["question"])[1]).option


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("hf")
    one.add_argument("folder", type=Path)
    one.add_argument("--items", type=int, default=256)
    one.add_argument("--alone", type=int, default=12)
    one.add_argument("--batch", type=int, default=64)
    other = kinds.add_parser("gguf")
    other.add_argument("model", type=Path)
    other.add_argument("--items", type=int, default=96)
    other.add_argument("--slots", type=int, default=16)
    other.add_argument("--times", type=int, default=3)
    other.add_argument("--data", default="samples")
    given = vars(parser.parse_args())
    {"hf": hf, "gguf": gguf}[given.pop("kind")](**given)


if __name__ == "__main__":
    main()
