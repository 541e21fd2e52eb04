"""What many requests leave behind: memory of a service, and whether all were answered or refused.

    python bench/soak.py --model TINY.gguf [--requests 10000] [--clients 16] [--slots 4]

Starts `kormed serve` on a unix socket and asks it over HTTP, every tenth request as a stream that
its client leaves after the first event. Prints a Markdown row every 1,000 requests. Use a tiny
model: what is measured is the service. Memory is flat when the last rows are alike.
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

EVERY = 1000
START_S = 60.0


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def ask(client: httpx.AsyncClient, number: int) -> str:
    """One request; how it ended."""
    body = {
        "messages": [{"role": "user", "content": f"질문 {number}"}],
        "max_tokens": 8,
        "stream": number % 10 == 0,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if body["stream"] and answer.status_code == 200:
            async for _ in answer.aiter_lines():
                return "left"
        await answer.aread()
        return str(answer.status_code)


async def soak(socket: Path, pid: int, requests: int, clients: int) -> Counter[str]:
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    ended: Counter[str] = Counter()
    numbers = iter(range(1, requests + 1))
    started = time.perf_counter()

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            ended[await ask(client, number)] += 1
            if ended.total() % EVERY == 0:
                seconds = time.perf_counter() - started
                print(f"| {ended.total()} | {resident(pid):.1f} | {seconds:.0f} |", flush=True)

    async with httpx.AsyncClient(
        transport=transport, base_url="http://kormed", timeout=60
    ) as client:
        await ready(client)
        print("| requests | resident MiB | s |\n|---|---|---|")
        print(f"| 0 | {resident(pid):.1f} | 0 |", flush=True)
        await asyncio.gather(*(work(client) for _ in range(clients)))
        page = (await client.get("/metrics")).text
    for line in page.splitlines():
        if line.startswith(("kormed_queue", "kormed_slots_busy", "kormed_requests_in_flight")):
            print(line)
    return ended


async def ready(client: httpx.AsyncClient) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.ConnectError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the service did not become ready")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "s.sock"
        command = [sys.executable, "-m", "kormed_edge.cli", "serve", "--allow-unverified"]
        options = ["--context", 512, "--threads", 1, "--unix-socket", socket]
        options += ["--model", given.model, "--slots", given.slots]
        with subprocess.Popen([*command, *map(str, options)]) as service:
            try:
                ended = asyncio.run(soak(socket, service.pid, given.requests, given.clients))
            finally:
                service.send_signal(signal.SIGTERM)
    print(f"ended: {dict(ended)}; exit code of the service {service.returncode}")


if __name__ == "__main__":
    main()
