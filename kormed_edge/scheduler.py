"""Continuous batching: one thread owns the context, and every step serves all who are there."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from kormed_edge.errors import DecodeError, EngineClosedError, EngineError
from kormed_edge.generation import Job
from kormed_edge.inbox import Inbox
from kormed_edge.llama_context import LlamaContext, Run
from kormed_edge.llama_model import LlamaModel
from kormed_edge.request import EngineStatus, FinishReason, Piece
from kormed_edge.sampling import log_probabilities, token_logprob
from kormed_edge.slots import Slot, Work, choose_slot, common_prefix, shared_prefix
from kormed_edge.text_stream import TextStream

TURN = 8
"""Steps that one adapter's requests get before another's that wait."""
WORTH_WAITING = 16
"""Prompt tokens that a request lets another compute first, to share them."""

Parts = list[tuple[Slot, list[int]]]


class Scheduler:
    """Takes jobs from any thread, answers them in its own, and frees context and model at its end.

    A step decodes one token of every request that is speaking and then, oldest first, some more
    tokens of the prompts: `chunk` at most while someone speaks, so that nobody waits long for the
    next token. `prefix` is computed before everything else, with `prefix_adapter`, and kept in a
    sequence of its own, from which that adapter's prompts that begin with it go on. `reuse` keeps
    the keys and values of all prompts for those that begin alike; without it, what enters an idle
    scheduler is computed in the same way whatever came before, to the last bit.
    """

    def __init__(
        self, model: LlamaModel, context: LlamaContext, *, slots: int, room: int, batch: int,
        chunk: int, reuse: bool, prefix: Sequence[int] = (), prefix_adapter: str | None = None,
        queue: int | None = None, on_end: Callable[[Job], None] | None = None,
    ) -> None:  # fmt: skip
        self.steps = 0
        self._inbox = Inbox(None if queue is None else slots + queue)
        self._on_end = on_end
        self._model, self._context = model, context
        self._slots = [Slot(index) for index in range(slots)]
        self._prefix = Slot(slots, list(prefix), prefix_adapter)
        self._room, self._batch, self._chunk, self._reuse = room, batch, chunk, reuse
        self._waiting: list[Job] = []
        self._arrivals = count()
        self._adapter: str | None = None
        self._turn = 0
        # A daemon, so that the interpreter can end; its end calls `close` first.
        self._thread = threading.Thread(target=self._live, name="kormed-engine", daemon=True)

    def start(self) -> None:
        """Begin with what was submitted so far."""
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Put jobs in the queue, all before the same step, or none of them."""
        try:
            self._inbox.put(jobs)
        except EngineError:
            for job in jobs:
                job.sampler.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._inbox.is_open

    def status(self) -> EngineStatus:
        """What goes on at this moment; exact only while nothing changes."""
        busy = len(self._busy())
        return EngineStatus(
            slots=len(self._slots),
            busy=busy,
            waiting=max(0, self._inbox.under_way - busy),
            kv_used=sum(len(slot.tokens) for slot in self._slots),
            kv_size=self._room * len(self._slots),
        )

    def close(self) -> None:
        """End all requests with an error and free everything; waits for the step under way."""
        self._inbox.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _live(self) -> None:
        reason = EngineClosedError()
        try:
            self._compute_prefix()
            while self._receive():
                self._step()
        except Exception as error:
            reason = EngineClosedError(f"the engine failed: {error!r}")
            raise
        finally:
            self._inbox.close()
            self._end_all(reason)
            self._context.close()
            self._model.close()

    def _compute_prefix(self) -> None:
        tokens = self._prefix.tokens
        self._context.apply(self._prefix.adapter)
        for start in range(0, len(tokens), self._batch):
            run = Run(self._prefix.index, start, tokens[start : start + self._batch], False)
            status, _ = self._context.decode([run])
            if status:
                raise DecodeError(f"llama.cpp cannot decode the prefix: status {status}")

    def _receive(self) -> bool:
        """Take what has come in, waiting only when there is nothing to do; False at the end."""
        while True:
            idle = not self._waiting and not self._busy()
            jobs = self._inbox.take(wait=idle)
            if not jobs:
                return jobs is not None
            self._waiting += jobs

    def _end_all(self, error: EngineError) -> None:
        for slot in self._busy():
            self._fail(slot, error)
        while (jobs := self._inbox.take(wait=False)) != ():
            self._waiting += jobs or ()
        for job in self._waiting:
            self._end(job, error)

    def _busy(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.work is not None]

    def _step(self) -> None:
        self.steps += 1
        self._drop_cancelled()
        self._admit()
        for parts in self._plan(self._choose_group()):
            self._decode(parts)

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.work is not None and slot.work.job.cancelled:
                self._finish(slot, "cancelled")
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            self._end(job, Piece("", "cancelled"))

    def _admit(self) -> None:
        if not self._reuse and not self._busy():
            # Where in the batch or the cache a token lies can change the last bit of an answer.
            for slot in self._slots:
                self._context.forget(slot.index)
            self._slots = [Slot(index) for index in range(len(self._slots))]
        while self._waiting:
            request = self._waiting[0].request
            free = choose_slot(self._slots, request.ids, request.adapter)
            if free is None:
                return
            job = self._waiting.pop(0)
            left = min(request.max_tokens, self._room - len(request.ids))
            text = TextStream(request.stop)
            free.work = Work(job, next(self._arrivals), list(request.ids), left, text)
            free.used = self.steps

    def _choose_group(self) -> list[Slot]:
        """The requests of one adapter: all that are decoded together share the context's."""
        busy = self._busy()
        adapters = {_adapter(slot) for slot in busy}
        if self._adapter not in adapters or (len(adapters) > 1 and self._turn >= TURN):
            others = [slot for slot in busy if _adapter(slot) != self._adapter] or busy
            if not others:
                return []
            self._adapter = _adapter(min(others, key=lambda slot: slot.used))
            self._turn = 0
        self._turn += 1
        return [slot for slot in busy if _adapter(slot) == self._adapter]

    def _plan(self, group: list[Slot]) -> list[Parts]:
        """Which tokens of which slot this step decodes: those of who speaks, then of prompts.

        Apart, because attention skips what a whole tile of queries may not see, and in a tile of
        many requests that is nothing: llama.cpp's ggml-cpu/ops.cpp, flash attention.
        """
        speaking = [(slot, slot.work.pending) for slot in group if slot.work and slot.work.speaking]
        budget, prompts = self._chunk if speaking else self._batch, Parts()
        reading = [(slot, slot.work) for slot in group if slot.work and not slot.work.speaking]
        for slot, work in sorted(reading, key=lambda pair: pair[1].arrival):
            if budget <= 0:
                break
            if not work.started and not self._begin(slot, work, prompts):
                continue
            prompts.append((slot, work.pending[:budget]))
            budget -= len(prompts[-1][1])
        return [parts for parts in (speaking, prompts) if parts]

    def _begin(self, slot: Slot, work: Work, parts: Parts) -> bool:
        """Keep or copy what the cache has of a prompt; False to wait for what is being computed."""
        ids, adapter = work.job.request.ids, work.job.request.adapter
        donors = [*(self._slots if self._reuse else ()), self._prefix]
        known = {donor.index: shared_prefix(donor, ids, adapter) for donor in donors}
        donor = max(donors, key=lambda donor: (known[donor.index], donor is slot))
        have = known[donor.index]
        if self._reuse and any(
            min(common_prefix([*other.tokens, *tokens], ids), len(ids) - 1) >= have + WORTH_WAITING
            for other, tokens in parts
        ):
            return False
        self._context.forget(slot.index, have if donor is slot else 0)
        if donor is not slot and have:
            self._context.share(donor.index, slot.index, have)
        slot.tokens, slot.adapter = list(ids[:have]), adapter
        work.job.cached_tokens, work.pending, work.started = have, list(ids[have:]), True
        return True

    def _decode(self, parts: Parts) -> None:
        """Decode a plan and let every slot go on; a request that cannot be decoded ends alone."""
        self._context.apply(self._adapter)
        runs = [_run(slot, tokens) for slot, tokens in parts]
        status, rows = self._context.decode(runs)
        if status == 0:
            for (slot, tokens), run, row in zip(parts, runs, rows, strict=True):
                self._advance(slot, tokens, row if run.output else None)
            return
        for slot, _ in parts:
            self._context.forget(slot.index, len(slot.tokens))
        if len(parts) > 1:
            for part in parts:
                self._decode([part])
        else:
            error = DecodeError(f"llama.cpp cannot decode the request: status {status}")
            self._fail(parts[0][0], error)

    def _advance(self, slot: Slot, tokens: list[int], row: int | None) -> None:
        work = slot.work
        if work is None:
            return
        slot.tokens += tokens
        slot.used = self.steps
        work.pending = work.pending[len(tokens) :]
        if row is None:
            return
        try:
            if work.job.request.options and not work.job.options:
                self._note_options(work, row)
            if work.left:
                self._speak(slot, work, row)
            else:
                self._finish(slot, "stop")
        except EngineError as error:
            self._fail(slot, error)

    def _note_options(self, work: Work, row: int) -> None:
        log_probs = log_probabilities(self._context.logits(row))
        work.job.options = tuple(
            token_logprob(log_probs, option, 0, self._model) for option in work.job.request.options
        )

    def _speak(self, slot: Slot, work: Work, row: int) -> None:
        request = work.job.request
        token = work.job.sampler.sample(self._context, row)
        if self._model.ends(token):
            self._finish(slot, "stop")
            return
        work.job.completion_tokens += 1
        work.job.first_token = work.job.first_token or time.monotonic()
        if request.logprobs is not None:
            log_probs = log_probabilities(self._context.logits(row))
            entry = token_logprob(log_probs, token, request.logprobs, self._model)
            work.logprobs.append(entry)
        text = work.text.push(self._model.bytes_of(token))
        work.left -= 1
        if work.text.stopped or not work.left:
            self._finish(slot, "stop" if work.text.stopped else "length", text)
            return
        work.pending, work.speaking = [token], True
        if text:
            work.job.deliver(Piece(text, None, tuple(work.logprobs)))
            work.logprobs = []

    def _finish(self, slot: Slot, reason: FinishReason, text: str = "") -> None:
        work, slot.work = slot.work, None
        if work is not None:
            self._end(work.job, Piece(text + work.text.finish(), reason, tuple(work.logprobs)))

    def _fail(self, slot: Slot, error: EngineError) -> None:
        work, slot.work = slot.work, None
        if work is not None:
            self._end(work.job, error)

    def _end(self, job: Job, last: Piece | EngineError) -> None:
        job.sampler.close()
        self._inbox.note_end()
        job.ended = time.monotonic()
        if self._on_end:
            self._on_end(job)
        job.deliver(last)


def _adapter(slot: Slot) -> str | None:
    return slot.work.job.request.adapter if slot.work else None


def _run(slot: Slot, tokens: list[int]) -> Run:
    output = slot.work is not None and len(tokens) == len(slot.work.pending)
    return Run(slot.index, len(slot.tokens), tokens, output)
