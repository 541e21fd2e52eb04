import asyncio

import pytest

from kormed_edge.errors import EngineError
from kormed_edge.generation import AsyncGeneration, Generation, Job
from kormed_edge.request import Piece, Request


@pytest.fixture
def job() -> Job:
    return Job(Request((1, 2), 3), None)  # type: ignore[arg-type]


def test_pieces_end_after_the_one_with_a_reason(job: Job) -> None:
    generation = Generation(job, None)
    for piece in (Piece("심"), Piece("전도", "stop"), Piece("more")):
        job.deliver(piece)
    assert [piece.text for piece in generation] == ["심", "전도"]


def test_error_is_raised_once_and_ends_it(job: Job) -> None:
    generation = Generation(job, None)
    job.deliver(EngineError("broken"))
    with pytest.raises(EngineError, match="broken"):
        next(generation)
    assert list(generation) == []


def test_generation_that_nobody_holds_is_cancelled(job: Job) -> None:
    generation = Generation(job, None)
    assert not job.cancelled
    del generation
    assert job.cancelled


def test_closed_generation_has_no_more_pieces(job: Job) -> None:
    generation = Generation(job, None)
    job.deliver(Piece("심"))
    generation.close()
    assert (list(generation), job.cancelled) == ([], True)


def test_counts_are_those_of_the_request(job: Job) -> None:
    job.cached_tokens, job.completion_tokens = 1, 4
    generation = Generation(job, None)
    counts = (generation.prompt_tokens, generation.cached_tokens, generation.completion_tokens)
    assert counts == (2, 1, 4)


def test_coroutine_gets_the_pieces_of_another_thread(job: Job) -> None:
    async def texts() -> list[str]:
        generation = AsyncGeneration(job, None, asyncio.get_running_loop())
        for piece in (Piece("심"), Piece("전도", "stop")):
            await asyncio.to_thread(job.deliver, piece)
        return [piece.text async for piece in generation]

    assert asyncio.run(texts()) == ["심", "전도"]


def test_coroutine_gets_the_error(job: Job) -> None:
    async def first() -> Piece:
        generation = AsyncGeneration(job, None, asyncio.get_running_loop())
        job.deliver(EngineError("broken"))
        return await anext(generation)

    with pytest.raises(EngineError, match="broken"):
        asyncio.run(first())


def test_piece_for_a_closed_loop_is_dropped(job: Job) -> None:
    loop = asyncio.new_event_loop()
    generation = AsyncGeneration(job, None, loop)
    loop.close()
    job.deliver(Piece("심", "stop"))
    assert not generation.completion_tokens
