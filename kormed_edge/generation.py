"""A request under way: the caller's end of it, and what that shares with the scheduler."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kormed_edge.errors import EngineError
from kormed_edge.request import Piece, Request, TokenLogprob

if TYPE_CHECKING:
    from kormed_edge.sampling import Sampler


class Job:
    """What the caller's thread and the scheduler's share of a request."""

    def __init__(self, request: Request, sampler: "Sampler") -> None:
        self.request = request
        self.sampler = sampler
        self.cancelled = False
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.options: tuple[TokenLogprob, ...] = ()
        self.pieces: SimpleQueue[Piece | EngineError] = SimpleQueue()


class Generation(Iterator[Piece]):
    """The pieces of an answer as they come; dropping or closing it cancels the request.

    Iterating raises `EngineError` when the request fails. One thread at a time may iterate; any
    may cancel.
    """

    def __init__(self, job: Job, keep: object) -> None:
        """`keep` stays alive as long as this does: the engine."""
        self._job = job
        self._keep = keep
        self._ended = False

    def __next__(self) -> Piece:
        if self._ended:
            raise StopIteration
        piece = self._job.pieces.get()
        if isinstance(piece, EngineError):
            self._ended = True
            raise piece
        self._ended = piece.finish_reason is not None
        return piece

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
