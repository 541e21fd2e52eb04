"""A request under way: the caller's end of it, and what that shares with the scheduler."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kormed_edge.errors import EngineError
from kormed_edge.request import Piece, Request, TokenLogprob

if TYPE_CHECKING:
    from kormed_edge.sampling import Sampler


Outcome = Piece | EngineError


class Job:
    """What the caller's thread and the scheduler's share of a request."""

    deliver: Callable[[Outcome], None]
    """Called by the scheduler's thread with every piece, and at last with an error or a piece that
    has a finish reason."""

    def __init__(self, request: Request, sampler: "Sampler") -> None:
        self.request = request
        self.sampler = sampler
        self.cancelled = False
        # Seconds of time.monotonic(); None as long as it has not happened.
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self.ended: float | None = None
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.options: tuple[TokenLogprob, ...] = ()


class _Generation:
    """What both kinds of generation share: cancelling, and what is known about the request."""

    def __init__(self, job: Job, keep: object) -> None:
        """`keep` stays alive as long as this does: the engine."""
        self._job = job
        self._keep = keep
        self._ended = False

    def _take(self, outcome: Outcome) -> Piece:
        if isinstance(outcome, EngineError):
            self._ended = True
            raise outcome
        self._ended = outcome.finish_reason is not None
        return outcome

    def cancel(self) -> None:
        """Give the slot back before the next step; a piece with "cancelled" ends the answer."""
        self._job.cancelled = True

    def close(self) -> None:
        self.cancel()
        self._ended = True

    def __del__(self) -> None:
        # Only a flag: the collector may run this in any thread, inside any lock.
        self._job.cancelled = True

    @property
    def prompt_tokens(self) -> int:
        return len(self._job.request.ids)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose keys and values were at hand and were not computed again."""
        return self._job.cached_tokens

    @property
    def options(self) -> tuple[TokenLogprob, ...]:
        """The request's options after the prompt, once the first piece is there."""
        return self._job.options

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, without the end token."""
        return self._job.completion_tokens


class Generation(_Generation, Iterator[Piece]):
    """The pieces of an answer as they come; dropping or closing it cancels the request.

    Iterating raises `EngineError` when the request fails. One thread at a time may iterate; any
    may cancel.
    """

    def __init__(self, job: Job, keep: object) -> None:
        super().__init__(job, keep)
        self._pieces: SimpleQueue[Outcome] = SimpleQueue()
        job.deliver = self._pieces.put

    def __next__(self) -> Piece:
        if self._ended:
            raise StopIteration
        return self._take(self._pieces.get())


class AsyncGeneration(_Generation, AsyncIterator[Piece]):
    """As `Generation`, for a coroutine: waiting for a piece holds no thread."""

    def __init__(self, job: Job, keep: object, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is the one whose coroutine iterates; this may be made in another thread."""
        super().__init__(job, keep)
        self._loop = loop
        self._pieces: asyncio.Queue[Outcome] = asyncio.Queue()
        job.deliver = self._deliver

    def _deliver(self, outcome: Outcome) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, outcome)

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        return self._take(await self._pieces.get())
