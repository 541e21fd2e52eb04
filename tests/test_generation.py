import pytest

from kormed_edge.errors import EngineError
from kormed_edge.generation import Generation, Job
from kormed_edge.request import Piece, Request


@pytest.fixture
def job() -> Job:
    return Job(Request((1, 2), 3), None)  # type: ignore[arg-type]


def test_pieces_end_after_the_one_with_a_reason(job: Job) -> None:
    for piece in (Piece("심"), Piece("전도", "stop"), Piece("more")):
        job.pieces.put(piece)
    assert [piece.text for piece in Generation(job, None)] == ["심", "전도"]


def test_error_is_raised_once_and_ends_it(job: Job) -> None:
    job.pieces.put(EngineError("broken"))
    generation = Generation(job, None)
    with pytest.raises(EngineError, match="broken"):
        next(generation)
    assert list(generation) == []


def test_generation_that_nobody_holds_is_cancelled(job: Job) -> None:
    generation = Generation(job, None)
    assert not job.cancelled
    del generation
    assert job.cancelled


def test_closed_generation_has_no_more_pieces(job: Job) -> None:
    job.pieces.put(Piece("심"))
    generation = Generation(job, None)
    generation.close()
    assert (list(generation), job.cancelled) == ([], True)


def test_counts_are_those_of_the_request(job: Job) -> None:
    job.cached_tokens, job.completion_tokens = 1, 4
    generation = Generation(job, None)
    counts = (generation.prompt_tokens, generation.cached_tokens, generation.completion_tokens)
    assert counts == (2, 1, 4)
