"""`kormed bench`: how fast this machine answers with a GGUF, and how near that is to its limit."""

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from kormed_edge import __version__
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError
from kormed_edge.manifest import gpu_names, hardware, library_versions
from kormed_edge.memory_plan import MemoryPlan, free_ram
from kormed_edge.model_options import model_options, model_path
from kormed_edge.progress import console
from kormed_edge.prompts import SYSTEM_MESSAGE
from kormed_edge.verification import verify_model

if TYPE_CHECKING:
    from kormed_edge.speed import Alone, Served

POSITIVE = click.IntRange(min=1)
MOST_SLOTS = 16
ARRAY = 2**30
"""Bytes that are read to measure RAM: several times the largest cache of a workstation."""


@click.command("bench")
@model_options
@click.option("--gpu-layers", type=click.IntRange(min=0), help="[default: as many as fit]")
@click.option("--slots", type=POSITIVE, help=f"[default: one a client, at most {MOST_SLOTS}]")
@click.option(
    "--clients",
    default="1,2,4,8,16",
    show_default=True,
    help="How many ask at once, one row for each number.",
)
@click.option(
    "--tokens", type=POSITIVE, default=32, show_default=True, help="Length of every answer."
)
@click.option(
    "--questions",
    type=POSITIVE,
    default=2,
    show_default=True,
    help="That each client asks, one after another.",
)
def bench_command(**given: Any) -> None:
    """Measure prefill, decode, time to first token and throughput by clients.

    Synthetic Korean questions under the product's system prompt, in this process, without HTTP.
    Let nothing else run meanwhile.

    \b
    Example: kormed bench --run demo
             kormed bench --model /models/demo-Q4_K_M.gguf --clients 1,8 --gpu-layers 0
    """
    from kormed_edge.speed import alone, serve

    counts = _counts(given["clients"])
    path = model_path(given["run_name"], given["type_"], given["model"], given["runs_dir"])
    verify_model(path, allow_unverified=given["allow_unverified"])
    slots = given["slots"] or min(MOST_SLOTS, max(counts))
    threads = given["threads"] or len(os.sched_getaffinity(0))
    with Engine(
        path, context=given["context"], slots=slots, threads=threads,
        gpu_layers=given["gpu_layers"], prefix=[SYSTEM_MESSAGE],
    ) as engine:  # fmt: skip
        _show_machine(path, threads, slots, given["context"], engine.memory)
        limit = None if engine.memory.gpu_layers else _limit(path, threads)
        _show_alone(alone(engine, given["tokens"]), limit)
        rows = [serve(engine, clients, given["questions"], given["tokens"]) for clients in counts]
    _show_served(rows)


def _counts(text: str) -> list[int]:
    counts = [int(number) if number.isdecimal() else 0 for number in text.split(",")]
    if min(counts) < 1:
        raise ConfigError(
            f"--clients {text}", "numbers with commas between them", "--clients 1,2,4"
        )
    return counts


def _show_machine(path: Path, threads: int, slots: int, context: int, memory: MemoryPlan) -> None:
    machine, libraries = hardware(), library_versions()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", str(path))
    table.add_row("CPU", f"{machine['cpu']}, {machine['cores']} cores, {threads} threads used")
    table.add_row("GPU", f"{', '.join(gpu_names()) or 'none'}; {memory.gpu_layers} layers on it")
    table.add_row("memory", _plan(memory, slots, context))
    table.add_row(
        "versions",
        f"kormed-edge {__version__}, llama-cpp-python {libraries.get('llama-cpp-python', '?')}, "
        f"Python {machine['python']}, {machine['system']}",
    )
    console.print(table)


def _plan(memory: MemoryPlan, slots: int, context: int) -> str:
    mib = [f"{size / 2**20:,.0f} MiB" for size in (memory.weights, memory.kv, memory.buffers)]
    return (
        f"{memory.total / 2**20:,.0f} MiB: weights {mib[0]}, keys and values {mib[1]} "
        f"({slots} slots of {context:,} tokens and the shared beginning), buffers {mib[2]}"
    )


def _limit(path: Path, threads: int) -> tuple[int, float]:
    """Bytes that a token needs, and bytes per second of this machine's RAM."""
    from kormed_edge.speed import read_bandwidth, weights_per_token

    return weights_per_token(path), read_bandwidth(threads, min(ARRAY, free_ram() // 4))


def _show_alone(speed: "Alone", limit: tuple[int, float] | None) -> None:
    console.print(
        f"\nOne request alone: prefill {speed.prefill:,.0f} tokens/s, "
        f"decode {speed.decode:,.1f} tokens/s",
        highlight=False,
    )
    if limit is None:
        console.print("No limit is reckoned for a GPU: its memory was not measured.\n")
        return
    size, bandwidth = limit
    console.print(
        f"Limit of decode: {bandwidth / size:,.1f} tokens/s, {size / 1e6:,.1f} MB of weights a "
        f"token at {bandwidth / 1e9:,.1f} GB/s (RAM as numpy sums an array in as many threads); "
        f"reached: {speed.decode * size / bandwidth:.0%}\n",
        highlight=False,
    )


def _show_served(rows: "list[Served]") -> None:
    from kormed_edge.speed import percentile

    table = Table(
        "clients", "requests", "tokens each", "generated tokens/s",
        "first token, median s", "95th percentile s", "prompt shared", box=None, pad_edge=False,
    )  # fmt: skip
    for row in rows:
        lengths = sorted({one.completion for one in row.asked})
        cells = (
            row.clients, len(row.asked), "–".join(map(str, lengths[:: max(1, len(lengths) - 1)])),
            f"{row.rate:,.1f}", f"{statistics.median(row.firsts):.3f}",
            f"{percentile(row.firsts, 95):.3f}", f"{row.shared:.0%}",
        )  # fmt: skip
        table.add_row(*map(str, cells))
    console.print(table)
