"""The service beside others, over HTTP: throughput and time to first token by clients.

    python bench/serve.py --model FILE.gguf [--servers kormed,llama-cpp-python,llama-server]
        [--llama-server "COMMAND"] [--clients 1,8] [--tokens 32] [--requests 24] [--context 1024]
        [--slots 8] [--threads N] [--gpu-layers N] [--times 3]

Every server is a process of its own on a free port, with the same file, slots, context a slot and
threads; one runs at a time, and in each round another one comes first. Clients ask synthetic
questions under the product's system prompt, each the next one when it has its answer; greedily, as
streams, and with the end tokens forbidden, so that all answers have `--tokens` tokens.

`llama-server` is `--llama-server`'s command, which gets llama.cpp's usual options, or else the
server in the package xllamacpp, if that can be imported. A server that does not start is left out,
with its last words. Then, one request at a time: decode speed beside `llama_cpp.Llama`, and what
the service adds to the time to first token. Let nothing else run meanwhile. Prints Markdown.
"""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from kormed_edge.engine import Engine
from kormed_edge.prompts import SYSTEM_MESSAGE, question_messages
from kormed_edge.speed import endless, ends, percentile, synthetic_question

KORMED, PACKAGED, LLAMA = "kormed", "llama-cpp-python", "llama-server"
READY = {KORMED: "/readyz", PACKAGED: "/v1/models", LLAMA: "/health"}
START_S, PAUSE_S, ANSWER_S = 180.0, 0.1, 600.0
ALL_LAYERS = 999
STARTS = 40
"""Streams of which the start is timed."""
XLLAMACPP = """
import json, sys, time, xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = given["model"]
params.port, params.n_parallel = given["port"], given["slots"]
params.n_ctx = given["context"] * given["slots"]
params.n_gpu_layers = given["gpu_layers"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


@dataclass(frozen=True)
class Answered:
    """What a client saw of one request."""

    first: float
    """Seconds to the first text."""
    prompt: int | None
    completion: int


@dataclass
class Row:
    """What was measured of one server with one number of clients, over the rounds."""

    rates: list[float] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)


class CannotStartError(Exception):
    """A server ended, or did not become ready; its last words."""


def command(name: str, given: argparse.Namespace, port: int) -> list[str]:
    layers = ALL_LAYERS if given.gpu_layers is None else given.gpu_layers
    python, model, threads = sys.executable, str(given.model), given.threads
    options: dict[str, Any]
    if name == KORMED:
        start = [python, "-m", "kormed_edge.cli", "serve", "--allow-unverified"]
        options = {
            "model": model, "port": port, "context": given.context, "slots": given.slots,
            "threads": threads, "queue": 1000,
        }  # fmt: skip
        if given.gpu_layers is not None:
            options["gpu-layers"] = given.gpu_layers
    elif name == PACKAGED:
        start = [python, "-m", "llama_cpp.server"]
        # Unless told otherwise it keeps the logits of every token of a prompt, and breaks an
        # answer off when another request comes.
        options = {
            "model": model, "port": port, "n_ctx": given.context, "n_threads": threads,
            "n_threads_batch": threads, "n_gpu_layers": layers, "logits_all": False,
            "interrupt_requests": False,
        }  # fmt: skip
    elif given.llama_server:
        start = shlex.split(given.llama_server)
        options = {
            "model": model, "port": port, "ctx-size": given.context * given.slots,
            "parallel": given.slots, "threads": threads, "threads-batch": threads,
            "n-gpu-layers": layers,
        }  # fmt: skip
    else:
        settings = {name: getattr(given, name) for name in ("slots", "context", "threads")}
        settings |= {"model": model, "port": port, "gpu_layers": layers}
        return [python, "-c", XLLAMACPP, json.dumps(settings)]
    return start + [str(word) for key, value in options.items() for word in (f"--{key}", value)]


@contextmanager
def started(name: str, given: argparse.Namespace) -> Iterator[str]:
    """The address of a server that is ready; `CannotStartError` when it does not come so far."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command(name, given, port), stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _becomes_ready(process, url + READY[name]):
                log.seek(0)
                words = [line for line in log.read().splitlines() if line.strip()]
                raise CannotStartError(words[-1] if words else "it said nothing")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _becomes_ready(process: "subprocess.Popen[bytes]", url: str) -> bool:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(PAUSE_S)
    return False


def body(name: str, seed: int, tokens: int, end_ids: list[int]) -> dict[str, Any]:
    """A streamed chat whose answer no token may end."""
    endlessly: dict[str, Any] = {"logit_bias": {str(token): -100 for token in end_ids}}
    if name == LLAMA:
        endlessly = {"ignore_eos": True}
    return {
        "messages": question_messages(synthetic_question(seed)),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **endlessly,
    }


def make_client(url: str) -> httpx.AsyncClient:
    """Every request has a connection of its own.

    llama.cpp's server closes one after a stream, at times just when the next request was sent.
    """
    return httpx.AsyncClient(
        base_url=url,
        timeout=ANSWER_S,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        headers={"Connection": "close"},
    )


async def ask(client: httpx.AsyncClient, sent: dict[str, Any]) -> Answered:
    """One request. Raises `ValueError` for an answer of another length than was asked for."""
    started_at = time.perf_counter()
    first: float | None = None
    usage: dict[str, int] = {}
    reason: str | None = None
    async with client.stream("POST", "/v1/chat/completions", json=sent) as answer:
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                if first is None and (choice.get("delta") or {}).get("content"):
                    first = time.perf_counter() - started_at
    if first is None:  # bytes that never became a character
        first = time.perf_counter() - started_at
    # A server that tells no usage has told that it stopped at the length.
    completion = usage.get("completion_tokens", sent["max_tokens"])
    if reason != "length" or completion != sent["max_tokens"]:
        raise ValueError(f"{completion} tokens, ended by {reason}, of {sent['max_tokens']}")
    return Answered(first, usage.get("prompt_tokens"), completion)


async def load(
    url: str, bodies: list[dict[str, Any]], clients: int
) -> tuple[float, list[Answered]]:
    """Seconds until the last of the requests is answered, and the answers."""
    left = iter(bodies)
    async with make_client(url) as client:

        async def work() -> list[Answered]:
            return [await ask(client, sent) for sent in left]

        started_at = time.perf_counter()
        answers = await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - started_at
    return seconds, [one for each in answers for one in each]


def one_round(
    name: str, url: str, given: argparse.Namespace, end_ids: list[int], at: int,
    rows: dict[tuple[str, int], Row],
) -> None:  # fmt: skip
    """Warm the server up, then measure it with every number of clients."""

    def bodies(first: int, count: int) -> list[dict[str, Any]]:
        return [body(name, first + i, given.tokens, end_ids) for i in range(count)]

    warm = max(given.slots, *given.clients)
    asyncio.run(load(url, bodies(0, warm), warm))
    for clients in given.clients:
        # The same questions for every server; none comes twice in a round.
        sent = bodies(1_000_000 * clients + 1000 * at, given.requests)
        seconds, answers = asyncio.run(load(url, sent, clients))
        row = rows.setdefault((name, clients), Row())
        row.rates.append(sum(one.completion for one in answers) / seconds)
        row.answers += answers


def side_by_side(
    given: argparse.Namespace, end_ids: list[int]
) -> tuple[dict[tuple[str, int], Row], dict[str, str]]:
    """What was measured, and why which server was left out."""
    rows: dict[tuple[str, int], Row] = {}
    failed: dict[str, str] = {}
    for at in range(given.times):
        turn = at % len(given.servers)
        for name in given.servers[turn:] + given.servers[:turn]:
            if name in failed:
                continue
            try:
                with started(name, given) as url:
                    one_round(name, url, given, end_ids, at, rows)
            except (CannotStartError, OSError, ValueError, httpx.HTTPError) as error:
                failed[name] = f"{error}" or type(error).__name__
    return rows, failed


def table(rows: dict[tuple[str, int], Row]) -> Iterator[str]:
    yield "| clients | server | generated tokens/s | × llama-server | to first token, ms | × |"
    yield "|---|---|---|---|---|---|"
    for name, clients in sorted(rows, key=lambda key: key[1]):
        row, other = rows[name, clients], rows.get((LLAMA, clients))
        rate, firsts = statistics.median(row.rates), _firsts(row)
        ratios = ("–", "–")
        if other:
            median, p95 = (a / b for a, b in zip(firsts, _firsts(other), strict=True))
            ratios = (f"{rate / statistics.median(other.rates):.2f}", f"{median:.2f} / {p95:.2f}")
        spread = f"{min(row.rates):,.1f}–{max(row.rates):,.1f}"
        yield (
            f"| {clients} | {name} | {rate:,.1f} ({spread}) | {ratios[0]} "
            f"| {firsts[0] * 1000:,.0f} / {firsts[1] * 1000:,.0f} | {ratios[1]} |"
        )


def _firsts(row: Row) -> tuple[float, float]:
    firsts = [one.first for one in row.answers]
    return statistics.median(firsts), percentile(firsts, 95)


def prompts(rows: dict[tuple[str, int], Row]) -> str:
    """Mean length of the prompts as each server counts it: equal when templates agree."""
    told: dict[str, list[int]] = {}
    for (name, _), row in rows.items():
        told.setdefault(name, []).extend(one.prompt for one in row.answers if one.prompt)
    means = [f"{name} {statistics.mean(n):.1f}" for name, n in told.items() if n]
    return ", ".join(means) or "not told"


def make_engine(given: argparse.Namespace) -> Engine:
    """As `kormed serve` has it."""
    return Engine(
        given.model, context=given.context, slots=given.slots, threads=given.threads,
        gpu_layers=given.gpu_layers, prefix=[SYSTEM_MESSAGE],
    )  # fmt: skip


def decode_speeds(given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Tokens per second of the engine and of `Llama`, in turn, after the first token.

    `Llama.generate` is its bare loop: no text is made, and no end token stops it.
    """
    from llama_cpp import Llama

    layers = ALL_LAYERS if given.gpu_layers is None else given.gpu_layers
    peer = Llama(
        str(given.model), n_ctx=given.context, n_threads=given.threads,
        n_threads_batch=given.threads, n_gpu_layers=layers, verbose=False,
    )  # fmt: skip
    ours, theirs = [], []
    with make_engine(given) as engine:
        for seed in range(given.times + 1):
            request = endless(engine, seed, 2 * given.tokens)
            ours.append(_engine_decode(engine, request))
            theirs.append(_llama_decode(peer, request.ids, 2 * given.tokens))
    peer.close()
    return ours[1:], theirs[1:]  # the first warmed up


def _engine_decode(engine: Engine, request: Any) -> float:
    answer = engine.submit(request)
    next(answer)
    before, started_at = answer.completion_tokens, time.perf_counter()
    list(answer)
    return (answer.completion_tokens - before) / (time.perf_counter() - started_at)


def _llama_decode(llama: Any, ids: tuple[int, ...], tokens: int) -> float:
    answer = llama.generate(list(ids), temp=0.0)
    next(answer)
    started_at = time.perf_counter()
    count = sum(1 for _ in islice(answer, tokens - 1))
    return count / (time.perf_counter() - started_at)


def stream_starts(given: argparse.Namespace, end_ids: list[int]) -> tuple[list[float], list[float]]:
    """Seconds to the first text of one prompt, over HTTP and from the engine, in turn.

    The prompt was answered before, so that both compute its last token only: what HTTP adds would
    be lost in the noise of reading a whole one. Tokenizing counts as the service's.
    """
    sent = body(KORMED, 0, 8, end_ids)
    http: list[float] = []
    engine_only: list[float] = []

    async def alternate(url: str) -> None:
        async with make_client(url) as client:
            for _ in range(STARTS + 1):
                http.append((await ask(client, sent)).first)
                started_at = time.perf_counter()
                answer = engine.submit(request)
                next(answer)
                engine_only.append(time.perf_counter() - started_at)
                list(answer)

    with started(KORMED, given) as url, make_engine(given) as engine:
        request = endless(engine, 0, 8)
        asyncio.run(alternate(url))
    return http[1:], engine_only[1:]


def versions() -> str:
    """What is measured, and which of the CPU's instructions each build of llama.cpp uses.

    A wheel made for every CPU is slower than a build for this one.
    """
    names = ("kormed-edge", "llama-cpp-python", "xllamacpp")
    modules = dict(zip(names, ("kormed_edge", "llama_cpp", "xllamacpp"), strict=True))
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}{_instructions(module)}"
        for name, module in modules.items()
        if importlib.util.find_spec(module)
    )


def _instructions(module: str) -> str:
    asked = {
        "llama_cpp": "llama_cpp.llama_print_system_info().decode()",
        "xllamacpp": "xllamacpp.get_system_info()",
    }.get(module)
    if asked is None:
        return ""
    # In a process of its own: two builds of llama.cpp in one might not agree.
    told = subprocess.run(
        [sys.executable, "-c", f"import {module}; print({asked})"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return f" ({' '.join(re.findall(r'([A-Z0-9_]+) = 1', told))})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        if wrong := [name for name in text.split(",") if name not in READY]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(READY)}")
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--servers", type=names, default=list(READY))
    parser.add_argument("--llama-server", help="the command of a built llama-server")
    parser.add_argument("--clients", type=counts, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=24, help="of all clients together")
    parser.add_argument("--context", type=int, default=1024, help="of each slot")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--times", type=int, default=3, help="rounds")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with make_engine(given) as engine:
        end_ids, layers = ends(engine), engine.memory.gpu_layers
    print(
        f"{given.model.name}, {given.slots} slots of {given.context} tokens, {given.threads} "
        f"threads, {layers} layers on GPUs, answers of {given.tokens} tokens, {given.requests} "
        f"requests, {given.times} rounds; {versions()}\n",
        flush=True,
    )
    rows, failed = side_by_side(given, end_ids)
    print("\n".join(table(rows)), end="\n\n")
    for name, reason in failed.items():
        print(f"Left out or stopped early: {name}: {reason}\n")
    print(f"Tokens a prompt: {prompts(rows)}\n", flush=True)
    ours, theirs = map(statistics.median, decode_speeds(given))
    print(f"Decode, one stream: kormed {ours:,.1f} tokens/s, Llama {theirs:,.1f}; ", end="")
    print(f"ratio {ours / theirs:.3f}\n", flush=True)
    http, bare = map(statistics.median, stream_starts(given, end_ids))
    print(f"Start of a stream: HTTP {http * 1e3:.1f} ms, engine {bare * 1e3:.1f} ms; ", end="")
    print(f"the service adds {(http - bare) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
