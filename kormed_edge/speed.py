"""How fast an engine answers: alone, to many clients at once, and how fast it could be at best."""

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

from kormed_edge.engine import Engine
from kormed_edge.ggml import GgufHeader
from kormed_edge.prompts import END, SYSTEM_PROMPT, question_messages
from kormed_edge.request import Request, Sampling

SUBJECTS = ("65세 남자", "30세 임신부", "생후 8개월 남아", "22세 여자", "48세 당뇨 환자")
COMPLAINTS = ("가슴 통증", "고열과 기침", "질 출혈", "의식 저하", "우하복부 통증", "호흡 곤란")
FINDINGS = ("혈압 90/60 mmHg", "맥박 120회/분", "체온 39.2℃", "백혈구 18,000/mm³", "SpO₂ 88 %")
OPTIONS = ("심전도", "흉부 엑스선", "복부 초음파", "뇌파", "폐 기능 검사", "혈액 배양", "요 검사")
ENDS = (END, "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
"""What ends an answer in the families that the kit serves."""


@dataclass(frozen=True)
class Asked:
    """What a client saw of one request; counts are tokens."""

    first: float
    """Seconds to the first piece of the answer."""
    prompt: int
    cached: int
    """Of the prompt, what was not computed again."""
    completion: int


@dataclass(frozen=True)
class Alone:
    """Tokens per second of one request at a time, whose prompt shares nothing."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Served:
    """Every request of clients that asked together, and the seconds until the last was answered."""

    clients: int
    seconds: float
    asked: tuple[Asked, ...]

    @property
    def rate(self) -> float:
        """Generated tokens per second of all clients together."""
        return sum(one.completion for one in self.asked) / self.seconds

    @property
    def shared(self) -> float:
        """Part of the prompts that was not computed again."""
        return sum(one.cached for one in self.asked) / sum(one.prompt for one in self.asked)

    @property
    def firsts(self) -> list[float]:
        return [one.first for one in self.asked]


def synthetic_question(seed: int) -> str:
    """A multiple-choice question about nobody, of the length and shape of AI Hub's."""
    chance = random.Random(seed)
    stem = (
        f"{chance.choice(SUBJECTS)}가 {chance.randint(1, 9)}일 전부터 "
        f"{chance.choice(COMPLAINTS)}을 호소하며 왔다. "
        f"{', '.join(chance.sample(FINDINGS, 3))}이었다. "
        "가장 먼저 시행할 검사는 무엇인가?"
    )
    options = [f"{n}) {o}" for n, o in enumerate(chance.sample(OPTIONS, 5), 1)]
    return "\n".join([stem, *options])


def endless(engine: Engine, seed: int, tokens: int, system: str = SYSTEM_PROMPT) -> Request:
    """A question that is answered greedily with exactly `tokens` tokens: no token may end it."""
    _, user = question_messages(synthetic_question(seed))
    ids = engine.encode_messages([{"role": "system", "content": system}, user])
    return Request(tuple(ids), tokens, Sampling(logit_bias=dict.fromkeys(ends(engine), -inf)))


def ends(engine: Engine) -> list[int]:
    """Those of `ENDS` that are one token to this model; the others are common text to it."""
    return [ids[0] for ids in map(engine.encode, ENDS) if len(ids) == 1]


def alone(engine: Engine, tokens: int, times: int = 3) -> Alone:
    """Medians over `times` requests, one after another."""
    prefill, decode = [], []
    for seed in range(times):
        # Another first word, so that nothing is shared.
        request = endless(engine, seed, tokens, f"{seed} {SYSTEM_PROMPT}")
        started = time.perf_counter()
        answer = engine.submit(request)
        next(answer)
        first = time.perf_counter()
        # Bytes of a syllable are held back until it is whole, so more than one may be done.
        before = answer.completion_tokens
        list(answer)
        prefill.append((answer.prompt_tokens - answer.cached_tokens) / (first - started))
        decode.append((answer.completion_tokens - before) / (time.perf_counter() - first))
    return Alone(statistics.median(prefill), statistics.median(decode))


def serve(engine: Engine, clients: int, questions: int, tokens: int) -> Served:
    """Let each of `clients` ask so many `questions`, one after another; none comes twice."""
    seeds = range(1_000_000 * clients, 1_000_000 * clients + clients * questions)
    requests = [endless(engine, seed, tokens) for seed in seeds]
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        work = [pool.submit(_ask, engine, requests[n::clients]) for n in range(clients)]
        asked = [one for client in work for one in client.result()]
        seconds = time.perf_counter() - started
    return Served(clients, seconds, tuple(asked))


def _ask(engine: Engine, requests: Sequence[Request]) -> list[Asked]:
    asked = []
    for request in requests:
        started = time.perf_counter()
        answer = engine.submit(request)
        next(answer)
        first = time.perf_counter() - started
        list(answer)
        counts = (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens)
        asked.append(Asked(first, *counts))
    return asked


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def weights_per_token(model: Path) -> int:
    """Bytes of a GGUF's weights that decoding one token reads.

    All but the table of embeddings, of which it reads a row; where the table is the output layer
    too, all.
    """
    with GgufHeader(model) as header:
        has_output = header.tensor_size("output.weight") > 0
        table = header.tensor_size("token_embd.weight") if has_output else 0
        return model.stat().st_size - header.data_offset - table


def read_bandwidth(threads: int, size: int, times: int = 5) -> float:
    """Bytes per second of RAM: numpy sums `size` bytes of float64, a part in each thread.

    The best of `times`. `size` has to be a multiple of the largest cache.
    """
    import numpy as np

    parts = [np.ones(size // threads // 8) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(times):
            started = time.perf_counter()
            list(pool.map(np.sum, parts))
            seconds.append(time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / min(seconds)
