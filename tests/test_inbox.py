import pytest

from kormed_edge.errors import EngineBusyError, EngineClosedError
from kormed_edge.generation import Job
from kormed_edge.inbox import Inbox
from kormed_edge.request import Request


def job() -> Job:
    return Job(Request((1,), 1), None)  # type: ignore[arg-type]


def test_what_is_put_in_together_comes_out_together() -> None:
    inbox, pair, one = Inbox(None), (job(), job()), (job(),)
    inbox.put(pair)
    inbox.put(one)
    assert (inbox.take(wait=True), inbox.take(wait=False), inbox.take(wait=False)) == (
        pair,
        one,
        (),
    )


def test_room_counts_until_a_job_has_ended() -> None:
    inbox = Inbox(2)
    inbox.put((job(),))
    inbox.take(wait=True)
    with pytest.raises(EngineBusyError, match="1 requests are under way"):
        inbox.put((job(), job()))
    inbox.put((job(),))
    inbox.note_end()
    inbox.put((job(),))
    assert inbox.under_way == 2


def test_closed_inbox_gives_out_what_it_has_and_takes_nothing() -> None:
    inbox, last = Inbox(None), (job(),)
    inbox.put(last)
    inbox.close()
    with pytest.raises(EngineClosedError):
        inbox.put((job(),))
    assert (inbox.take(wait=True), inbox.take(wait=True)) == (last, None)
