"""Ranks: the processes that `accelerate launch` or torchrun starts for one command.

Rank 0 leads: it alone runs a command that is `led`, so that a stage is opened, written and reported
once, as by a single process. The other ranks wait for what it hands out with `everywhere`, do it
too, and leave when the command has ended.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any

from kormed_edge.errors import KormedError
from kormed_edge.manifest import gpu_names

_PATIENCE = timedelta(days=30)  # of a rank that is done with its share, or whose leader scores


@dataclass(frozen=True, slots=True)
class Rank:
    """A process's place among all of its launch, and among those of its own machine."""

    index: int
    count: int
    local: int
    local_count: int


def this_rank() -> Rank:
    """What the launcher put into the environment; the only rank where there is no launcher."""
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    return Rank(*(int(os.environ.get(name, number)) for name, number in alone.items()))


def led(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let rank 0 run a command, and the others what it hands out; alone, it is not changed."""

    @wraps(command)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        rank = this_rank()
        if rank.count == 1:
            return command(*arguments, **named)
        with _connected(rank):
            if rank.index > 0:
                return _follow()
            try:
                result = command(*arguments, **named)
            except Exception:  # no interrupt: that reaches every rank, and none would hear of it
                _hand_out(None)
                raise
            _hand_out(None)
            return result

    return wrapper


def everywhere(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function at every rank of a `led` command, and return when all have ended.

    The function and its arguments are pickled. An error of any rank is raised here, after the
    others have done what they could.
    """
    if this_rank().count == 1:
        function(*arguments)
        return
    _hand_out((function, arguments))
    failure, others = _do(function, arguments)
    if failure is not None:
        raise failure
    for index, text in enumerate(others):
        if text is not None:
            raise KormedError(f"rank {index}: {text}", remedy="the same command again: it goes on")


@contextmanager
def in_step() -> Iterator[None]:
    """Work in which ranks wait for one another all the time, as in training.

    A rank that fails in it ends its process at once, with what went wrong on stderr: the others
    would wait for it for ever, where the launcher ends them when one is gone.
    """
    rank = this_rank()
    if rank.count == 1:
        yield
        return
    # Of its GPUs each rank sees its own alone; a library that counts by local rank finds it at 0.
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    except Exception as error:
        sys.stderr.write(f"rank {rank.index}: {_describe(error)}\n")
        sys.stderr.flush()
        os._exit(1)
    finally:
        os.environ["LOCAL_RANK"] = str(rank.local)


def _follow() -> None:
    while (work := _hand_out()) is not None:
        _do(*work)


def _do(
    function: Callable[..., None], arguments: tuple[Any, ...]
) -> tuple[Exception | None, list[str | None]]:
    """This rank's error, and at rank 0 what every rank says of its own."""
    import torch.distributed as dist

    rank, failure = this_rank(), None
    try:
        with _own_cores(rank):
            function(*arguments)
    except Exception as error:
        failure = error
    said: list[str | None] = [None] * rank.count
    dist.gather_object(_describe(failure), said if rank.index == 0 else None)
    return failure, said


def _describe(error: Exception | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, KormedError):
        return str(error)
    return "".join(traceback.format_exception(error))


def _hand_out(work: Any = None) -> Any:
    """What rank 0 gives, at every rank; None when it has nothing more to do."""
    import torch.distributed as dist

    box = [work]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def _connected(rank: Rank) -> Iterator[None]:
    take_gpu(rank)
    import torch.distributed as dist

    # Objects go by way of the CPU, a training's gradients from GPU to GPU.
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and _has_gpu() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def take_gpu(rank: Rank) -> None:
    """Hide all GPUs but one from this process: for torch, bitsandbytes and llama.cpp alike.

    Works only before any of them has looked. Raises `KormedError` where GPUs are too few.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i, _ in enumerate(gpu_names())] if named is None else named.split(",")
    if not any(gpus):
        return
    if rank.local >= len(gpus):
        raise KormedError(
            f"{rank.local_count} ranks on a machine with {len(gpus)} GPU(s)",
            "a GPU for every rank",
            f"--num_processes {len(gpus)}",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank.local]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@contextmanager
def _own_cores(rank: Rank) -> Iterator[None]:
    """Keep to a share of the machine's cores: the engine takes as many as it may run on, and two
    engines on the same cores wait for one another."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // rank.local_count
    os.sched_setaffinity(0, cores[rank.local * share :][:share] or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
