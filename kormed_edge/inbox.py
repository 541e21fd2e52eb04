"""The way of jobs from any thread to the one that answers them, with room for so many."""

import threading
from queue import Empty, SimpleQueue

from kormed_edge.errors import EngineBusyError, EngineClosedError
from kormed_edge.generation import Job


class Inbox:
    """Takes jobs as long as it is open and fewer than `most` are under way; None is any number."""

    def __init__(self, most: int | None) -> None:
        self.is_open = True
        self.under_way = 0
        """Jobs that were put in and have not ended, whoever has them."""
        self._most = most
        self._jobs: SimpleQueue[tuple[Job, ...] | None] = SimpleQueue()
        # The collector may call `close` inside any of our calls.
        self._lock = threading.RLock()

    def put(self, jobs: tuple[Job, ...]) -> None:
        """All of the jobs or, with `EngineClosedError` or `EngineBusyError`, none."""
        with self._lock:
            if not self.is_open:
                raise EngineClosedError
            if self._most is not None and self.under_way + len(jobs) > self._most:
                raise EngineBusyError(
                    f"{self.under_way} requests are under way", "fewer", "ask again in a moment"
                )
            self.under_way += len(jobs)
            self._jobs.put(jobs)

    def take(self, *, wait: bool) -> tuple[Job, ...] | None:
        """What came in together; nothing if nothing has and `wait` is False; None when closed."""
        try:
            return self._jobs.get(block=wait)
        except Empty:
            return ()

    def note_end(self) -> None:
        """A job that was put in has ended."""
        with self._lock:
            self.under_way -= 1

    def close(self) -> None:
        """Let nothing in any more; `take` says so after what is in already."""
        with self._lock:
            self.is_open = False
            self._jobs.put(None)
