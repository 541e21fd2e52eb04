"""How fast a GGUF is served: prefill, decode, time to first token, and throughput by clients.

    python bench/serve.py --model FILE.gguf [--clients 1,2,4,8,16] [--tokens 32] [--context 1024]
                          [--slots N] [--threads N] [--gpu-layers N] [--questions 2]

Every client asks `--questions` synthetic Korean questions one after another under the product's
system prompt, greedily, with the end token forbidden so that all answers have `--tokens` tokens.
Prefill is of prompts that share nothing; in the rows by clients the system prompt is shared, as
when serving. `--slots` defaults to the number of clients, at most 16. Prints a Markdown table.
"""

import argparse
import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kormed_edge.engine import Engine
from kormed_edge.prompts import END, SYSTEM_PROMPT
from kormed_edge.request import Request, Sampling

SUBJECTS = ("65세 남자", "30세 임신부", "생후 8개월 남아", "22세 여자", "48세 당뇨 환자")
COMPLAINTS = ("가슴 통증", "고열과 기침", "질 출혈", "의식 저하", "우하복부 통증", "호흡 곤란")
FINDINGS = ("혈압 90/60 mmHg", "맥박 120회/분", "체온 39.2℃", "백혈구 18,000/mm³", "SpO₂ 88 %")
OPTIONS = ("심전도", "흉부 엑스선", "복부 초음파", "뇌파", "폐 기능 검사", "혈액 배양", "요 검사")


@dataclass(frozen=True)
class Asked:
    first: float
    """Seconds to the first token."""
    cached: int
    prompt: int


def question(seed: int) -> str:
    chance = random.Random(seed)
    stem = (
        f"{chance.choice(SUBJECTS)}가 {chance.randint(1, 9)}일 전부터 "
        f"{chance.choice(COMPLAINTS)}을 호소하며 왔다. "
        f"{', '.join(chance.sample(FINDINGS, 3))}이었다. "
        "가장 먼저 시행할 검사는 무엇인가?"
    )
    options = [f"{n}) {o}" for n, o in enumerate(chance.sample(OPTIONS, 5), 1)]
    return "\n".join([stem, *options])


def request(engine: Engine, seed: int, tokens: int, system: str = SYSTEM_PROMPT) -> Request:
    ids = engine.encode_messages(
        [{"role": "system", "content": system}, {"role": "user", "content": question(seed)}]
    )
    ends = {token: float("-inf") for token in engine.encode(f"{END}<|endoftext|>")}
    return Request(tuple(ids), tokens, Sampling(logit_bias=ends))


def client(engine: Engine, requests: list[Request]) -> Iterator[Asked]:
    for one in requests:
        started = time.perf_counter()
        answer = engine.submit(one)
        next(answer)
        first = time.perf_counter() - started
        list(answer)
        yield Asked(first, answer.cached_tokens, answer.prompt_tokens)


def serve(engine: Engine, clients: int, questions: int, tokens: int) -> tuple[float, list[Asked]]:
    """Seconds that all clients need together, and what each request saw."""
    asked: list[Asked] = []
    seeds = count(1_000_000 * clients)  # no question comes twice
    work = [
        [request(engine, next(seeds), tokens) for _ in range(questions)] for _ in range(clients)
    ]
    threads = [
        threading.Thread(target=lambda mine=mine: asked.extend(client(engine, mine)))
        for mine in work
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, asked


def alone(engine: Engine, tokens: int) -> tuple[float, float]:
    """Prefill and decode speed of one request at a time, in tokens per second."""
    prefill, decode = [], []
    for seed in range(3):
        # Another first word, so that nothing is shared.
        one = request(engine, seed, tokens, f"{seed} {SYSTEM_PROMPT}")
        started = time.perf_counter()
        answer = engine.submit(one)
        next(answer)
        first = time.perf_counter()
        before = answer.completion_tokens
        list(answer)
        prefill.append((answer.prompt_tokens - answer.cached_tokens) / (first - started))
        decode.append((answer.completion_tokens - before) / (time.perf_counter() - first))
    return statistics.median(prefill), statistics.median(decode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--questions", type=int, default=2)
    given = parser.parse_args()
    counts = [int(number) for number in given.clients.split(",")]
    slots = given.slots or min(16, max(counts))
    engine = Engine(
        given.model, context=given.context, slots=slots, threads=given.threads,
        gpu_layers=given.gpu_layers,
    )  # fmt: skip
    prefill, decode = alone(engine, given.tokens)
    print(
        f"{given.model.name}: {slots} slots of {given.context} tokens, "
        f"{engine.memory.gpu_layers} layers on GPUs, {engine.memory.total / 2**20:,.0f} MiB; "
        f"prefill {prefill:,.0f} tokens/s, decode {decode:,.1f} tokens/s\n"
    )
    print("| clients | generated tokens/s | median / longest time to first token, s | shared |")
    print("|---|---|---|---|")
    for clients in counts:
        seconds, asked = serve(engine, clients, given.questions, given.tokens)
        firsts = [one.first for one in asked]
        shared = sum(one.cached for one in asked) / sum(one.prompt for one in asked)
        rate = len(asked) * given.tokens / seconds
        print(
            f"| {clients} | {rate:,.1f} | {statistics.median(firsts):.2f} / {max(firsts):.2f} "
            f"| {shared:.0%} |",
            flush=True,
        )
    engine.close()


if __name__ == "__main__":
    main()
