"""The loop alone: the context and the model are doubles that record what each step decodes."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest

from kormed_edge.errors import EngineBusyError, EngineError
from kormed_edge.generation import Generation, Job
from kormed_edge.llama_context import Run
from kormed_edge.request import EngineStatus, Request
from kormed_edge.scheduler import TURN, Scheduler

END = 0


class Model:
    closed = False

    def bytes_of(self, token: int) -> bytes:
        return f"{token} ".encode()

    def ends(self, token: int) -> bool:
        return token == END

    def close(self) -> None:
        self.closed = True


class Context:
    """Fails where a run holds the token 666; calls `on_step` with the number of the step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str | None, list[Run]]] = []
        self.shared: list[tuple[int, int, int]] = []
        self.forgotten: list[tuple[int, int]] = []
        self.adapter: str | None = None
        self.on_step: Callable[[int], None] = lambda _: None

    def apply(self, adapter: str | None) -> None:
        self.adapter = adapter

    def decode(self, runs: Sequence[Run]) -> tuple[int, list[int]]:
        self.steps.append((self.adapter, list(runs)))
        self.on_step(len(self.steps))
        return (1 if any(666 in run.tokens for run in runs) else 0), [run.sequence for run in runs]

    def forget(self, sequence: int, start: int = 0) -> None:
        self.forgotten.append((sequence, start))

    def share(self, source: int, target: int, end: int) -> None:
        self.shared.append((source, target, end))

    def close(self) -> None:
        pass

    def lengths(self) -> list[list[tuple[int, int]]]:
        """Sequence and number of tokens of every run of every step."""
        return [[(run.sequence, len(run.tokens)) for run in runs] for _, runs in self.steps]


class Script:
    """A sampler that says given tokens."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens, self.closed = iter(tokens), False

    def sample(self, _context: Context, _row: int) -> int:
        return next(self.tokens)

    def close(self) -> None:
        self.closed = True


class Loop:
    """A scheduler and its doubles; `add` before `run`."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.context = Model(), Context()
        sizes = {"slots": 4, "room": 4096, "batch": 64, "chunk": 16, "reuse": True}
        model: Any = self.model
        context: Any = self.context
        self.scheduler = Scheduler(model, context, **{**sizes, **settings})

    def add(self, ids: Iterable[int], max_tokens: int = 3, **wanted: Any) -> Generation:
        said: Any = Script(wanted.pop("says", count(500)))
        self.job = Job(Request(tuple(ids), max_tokens, **wanted), said)
        generation = Generation(self.job, None)
        self.scheduler.submit(self.job)
        return generation


@pytest.fixture
def loop() -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def make(**settings: Any) -> Loop:
        loops.append(Loop(**settings))
        return loops[-1]

    yield make
    for made in loops:
        made.scheduler.close()


def text(generation: Generation) -> tuple[str, str | None]:
    pieces = list(generation)
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


Make = Callable[..., Loop]


def test_those_who_speak_get_a_token_in_every_step_of_a_long_prompt(loop: Make) -> None:
    made = loop()
    short, long = made.add([1], 9), made.add(range(2, 130), 1)
    made.scheduler.start()
    assert (text(short)[1], text(long)[1]) == ("length", "length")
    assert made.context.lengths()[:11] == [
        [(0, 1), (1, 63)],
        *([(0, 1)], [(1, 16)]) * 4,
        *([(0, 1)], [(1, 1)]),
    ]


def test_only_the_end_of_a_prompt_asks_for_logits(loop: Make) -> None:
    made = loop()
    generation = made.add(range(1, 101), 1)
    made.scheduler.start()
    list(generation)
    assert [run.output for _, [run] in made.context.steps] == [False, True]
    assert [run.start for _, [run] in made.context.steps] == [0, 64]


def test_system_prompt_is_computed_once_for_all_who_come_together(loop: Make) -> None:
    made, system = loop(slots=3), list(range(100, 120))
    asked = [made.add([*system, 200 + i, 300 + i], 2) for i in range(3)]
    made.scheduler.start()
    assert [text(generation)[1] for generation in asked] == ["length"] * 3
    assert made.context.lengths()[:3] == [[(0, 22)], [(0, 1)], [(1, 2), (2, 2)]]
    assert made.context.shared == [(0, 1, 20), (0, 2, 20)]
    assert [generation.cached_tokens for generation in asked] == [0, 20, 20]


def test_next_question_of_a_conversation_computes_what_is_new(loop: Make) -> None:
    made = loop()
    first = made.add([1, 2, 3], 2, says=[7, END])
    made.scheduler.start()
    assert text(first) == ("7 ", "stop")
    second = made.add([1, 2, 3, 7, 8, 9], 1)
    assert text(second)[1] == "length"
    assert second.cached_tokens == 4
    assert made.context.steps[-1][1][0].start == 4
    assert list(made.context.steps[-1][1][0].tokens) == [8, 9]


def test_without_reuse_every_prompt_is_computed_whole(loop: Make) -> None:
    made = loop(slots=1, reuse=False)
    first, second = made.add([1, 2, 3], 1), made.add([1, 2, 3], 1)
    made.scheduler.start()
    assert text(first) == text(second)
    assert made.context.lengths() == [[(0, 3)], [(0, 3)]]
    assert made.context.shared == []


def test_more_requests_than_slots_are_answered_in_the_order_they_came(loop: Make) -> None:
    made = loop(slots=1)
    asked = [made.add([10 * i, 1], 1, says=[i]) for i in range(1, 4)]
    made.scheduler.start()
    assert [text(generation)[0] for generation in asked] == ["1 ", "2 ", "3 "]
    assert [run.tokens[0] for _, [run] in made.context.steps] == [10, 20, 30]


def test_cancel_frees_the_slot_before_the_next_step(loop: Make) -> None:
    made = loop(slots=1)
    endless, waiting = made.add([1], 1000), made.add([2], 1)
    made.context.on_step = lambda step: endless.cancel() if step == 3 else None
    made.scheduler.start()
    assert text(waiting) == ("500 ", "length")
    assert text(endless) == ("500 501 502 ", "cancelled")
    assert [run.tokens[0] for _, [run] in made.context.steps] == [1, 500, 501, 2]


def test_request_cancelled_in_the_queue_is_never_begun(loop: Make) -> None:
    made = loop(slots=1)
    first, second = made.add([1], 2), made.add([2], 1)
    second.cancel()
    made.scheduler.start()
    assert text(second) == ("", "cancelled")
    assert text(first)[1] == "length"
    assert all(run.tokens[0] != 2 for _, [run] in made.context.steps)


def test_request_that_cannot_be_decoded_ends_alone(loop: Make) -> None:
    made = loop()
    good, bad = made.add([1, 2], 2), made.add([3, 666], 2)
    made.scheduler.start()
    with pytest.raises(EngineError, match="cannot decode the request: status 1"):
        list(bad)
    assert text(good) == ("500 501 ", "length")
    assert [made.context.forgotten.count((slot, 0)) for slot in (0, 1)] == [2, 3]
    assert made.add([5], 1).__next__().text == "500 "


def test_adapters_take_turns_and_never_share_a_step(loop: Make) -> None:
    made = loop()
    asked = [made.add([1, i], 20, adapter=name) for i, name in enumerate((None, "one", None))]
    made.scheduler.start()
    assert {text(generation)[1] for generation in asked} == {"length"}
    sequences = {None: {0, 2}, "one": {1}}
    for adapter, runs in made.context.steps:
        assert {run.sequence for run in runs} <= sequences[adapter]
    turns = "".join("o" if adapter else "-" for adapter, _ in made.context.steps)
    assert turns.startswith("-" * TURN + "o" * TURN + "-" * TURN)


def test_prefix_of_another_adapter_is_computed_again(loop: Make) -> None:
    made = loop()
    first = made.add(range(1, 21), 1)
    made.scheduler.start()
    list(first)
    second = made.add(range(1, 21), 1, adapter="one")
    list(second)
    assert second.cached_tokens == 0
    assert made.context.lengths()[-1] == [(1, 20)]


def test_answer_ends_where_its_slot_does(loop: Make) -> None:
    made = loop(room=8)
    generation = made.add([1, 2, 3], 100)
    made.scheduler.start()
    assert text(generation)[1] == "length"
    assert generation.completion_tokens == 5


def test_stop_string_ends_the_answer(loop: Make) -> None:
    made = loop()
    generation = made.add([1], 100, stop=("2 50",))
    made.scheduler.start()
    assert text(generation) == ("500 501 50", "stop")


def test_closing_ends_what_is_under_way_with_an_error(loop: Make) -> None:
    made = loop(slots=1)
    speaking, waiting = made.add([1], 100), made.add([2], 1)
    made.context.on_step = lambda step: made.scheduler.close() if step == 3 else None
    made.scheduler.start()
    for generation in (speaking, waiting):
        with pytest.raises(EngineError, match="the engine was closed"):
            list(generation)
    made.scheduler.close()
    assert made.model.closed
    assert len(made.context.steps) == 3
    with pytest.raises(EngineError, match="the engine was closed"):
        made.add([3])


def test_sampler_of_every_request_is_freed(loop: Make) -> None:
    made, samplers, kept = loop(), [], []
    for ids in ([1], [666], [2]):
        kept.append(made.add(ids, 1))
        samplers.append(made.job.sampler)
    kept[2].cancel()
    made.scheduler.start()
    made.scheduler.close()
    assert [sampler.closed for sampler in samplers] == [True] * 3


def test_scheduler_is_open_until_it_is_closed(loop: Make) -> None:
    made = loop()
    made.scheduler.start()
    assert made.scheduler.is_open
    made.scheduler.close()
    assert not made.scheduler.is_open


def test_full_queue_refuses_and_takes_again_when_one_has_ended(loop: Make) -> None:
    made = loop(slots=1, queue=1)
    first, second = made.add([1], 1), made.add([2], 1)
    with pytest.raises(EngineBusyError, match="2 requests are under way"):
        made.add([3], 1)
    assert made.job.sampler.closed  # type: ignore[attr-defined]
    made.scheduler.start()
    assert (text(first)[1], text(second)[1]) == ("length", "length")
    assert text(made.add([3], 1))[1] == "length"


def test_status_counts_slots_queue_and_cache(loop: Make) -> None:
    made = loop(slots=1, room=8)
    seen: list[EngineStatus] = []
    made.context.on_step = lambda _: seen.append(made.scheduler.status())
    answers = [made.add([1, 2, 3], 1), made.add([7, 8], 1)]
    made.scheduler.start()
    for answer in answers:
        list(answer)
    assert seen[0] == EngineStatus(slots=1, busy=1, waiting=1, kv_used=0, kv_size=8)
    assert seen[1] == EngineStatus(slots=1, busy=1, waiting=0, kv_used=0, kv_size=8)
    after = made.scheduler.status()
    assert (after.busy, after.waiting, after.kv_used) == (0, 0, 2)


def test_every_ended_request_is_told_with_its_times(loop: Make) -> None:
    ended: list[Job] = []
    made = loop(slots=1, on_end=ended.append)
    answers = [made.add([1, 2], 2), made.add([3], 9, says=[END])]
    made.scheduler.start()
    for answer in answers:
        list(answer)
    spoke, silent = ended
    assert spoke.first_token is not None
    assert spoke.ended is not None
    assert spoke.submitted <= spoke.first_token <= spoke.ended
    assert (silent.first_token, silent.completion_tokens) == (None, 0)


def test_prefix_is_computed_in_steps_and_shared_by_what_begins_with_it(loop: Make) -> None:
    made = loop(slots=1, prefix=range(100, 180), reuse=False)
    begins, other = made.add([*range(100, 180), 1, 2], 1), made.add([100, 3], 1)
    adapted = made.add([*range(100, 180), 1], 1, adapter="v2")
    made.scheduler.start()
    for answer in (begins, other, adapted):
        list(answer)
    assert made.context.lengths()[:3] == [[(1, 64)], [(1, 16)], [(0, 2)]]
    assert made.context.shared == [(1, 0, 80), (1, 0, 1)]
    assert (begins.cached_tokens, other.cached_tokens, adapted.cached_tokens) == (80, 1, 0)


def test_prefix_is_computed_with_its_adapter_and_is_for_its_prompts(loop: Make) -> None:
    made = loop(slots=1, prefix=range(100, 180), prefix_adapter="v2", reuse=False)
    ids = [*range(100, 180), 1]
    adapted, plain = made.add(ids, 1, adapter="v2"), made.add(ids, 1)
    made.scheduler.start()
    for answer in (adapted, plain):
        list(answer)
    assert [adapter for adapter, _ in made.context.steps] == ["v2", "v2", "v2", None, None]
    assert (adapted.cached_tokens, plain.cached_tokens) == (80, 0)


def test_prefix_that_cannot_be_decoded_ends_everything_with_its_reason(
    loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    made = loop(prefix=[666])
    answer = made.add([1], 1)
    made.scheduler.start()
    with pytest.raises(EngineError, match="cannot decode the prefix: status 1"):
        list(answer)


def test_jobs_that_come_together_are_taken_together_or_not_at_all(loop: Make) -> None:
    made = loop(slots=1, queue=1)
    said: Any = Script(count(500))
    jobs = [Job(Request((i,), 1), said) for i in (1, 2, 3)]
    generations = [Generation(job, None) for job in jobs]
    with pytest.raises(EngineBusyError):
        made.scheduler.submit(*jobs)
    made.scheduler.submit(*jobs[:2])
    made.scheduler.start()
    assert [text(generation)[1] for generation in generations[:2]] == ["length"] * 2


def test_without_reuse_an_idle_scheduler_begins_with_an_empty_cache_and_the_first_slot(
    loop: Make,
) -> None:
    made = loop(slots=2, reuse=False)
    pair = [made.add([1, 2], 5), made.add([3, 4], 1)]  # the second slot is free first
    made.scheduler.start()
    for answer in pair:
        list(answer)
    steps, forgotten = len(made.context.steps), len(made.context.forgotten)
    list(made.add([5, 6], 1))
    assert made.context.lengths()[steps:] == [[(0, 2)]]
    assert made.context.forgotten[forgotten:][:2] == [(0, 0), (1, 0)]
