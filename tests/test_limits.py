import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kormed_edge.api_keys import SCOPE_KEY
from kormed_edge.limits import BodyLimit, RateLimit


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    await PlainTextResponse(await request.body())(scope, receive, send)


async def call(app: ASGIApp, messages: Iterable[Message | None], **headers: str) -> list[Message]:
    """What an application sends when it gets these messages; at None a client says no more."""
    rest, sent = iter(messages), []

    async def receive() -> Message:
        message = next(rest)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/ask", "headers": pairs}
    await app(scope, receive, send)
    return sent


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_of_the_limit_passes_whole() -> None:
    client = TestClient(BodyLimit(echo, most=10))
    assert client.post("/", content=b"0123456789").text == "0123456789"
    assert client.get("/").text == ""


def test_a_longer_body_is_refused_by_its_length_unread() -> None:
    sent = asyncio.run(call(BodyLimit(echo, most=10), [], content_length="11"))
    assert sent[0]["status"] == 413
    assert b"10 bytes, the limit (--max-body)" in sent[1]["body"]


def test_a_longer_body_without_a_length_is_refused_where_it_passes_the_limit() -> None:
    parts = [part(b"0123456", True), part(b"0123", True)]  # asking for a third would fail
    sent = asyncio.run(call(BodyLimit(echo, most=10), parts))
    assert sent[0]["status"] == 413


def test_a_body_that_does_not_come_to_an_end_in_time_is_refused() -> None:
    app = BodyLimit(echo, most=10, seconds=0.01)
    sent = asyncio.run(call(app, [part(b"0", True), part(b"1", True), None]))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_client_that_left_is_not_answered() -> None:
    gone = {"type": "http.disconnect"}
    assert asyncio.run(call(BodyLimit(echo, most=10), [part(b"0", True), gone])) == []


def test_the_application_learns_that_the_client_left_after_its_request() -> None:
    seen: list[Any] = []

    async def listen(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen.extend([await receive(), await receive()])

    gone = {"type": "http.disconnect"}
    asyncio.run(call(BodyLimit(listen, most=10), [part(b"01", True), part(b"2"), gone]))
    assert seen == [part(b"012"), gone]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_gives_its_size_at_once_and_then_refills(clock: Clock) -> None:
    limit = RateLimit(echo, per_minute=6, clock=clock)
    assert [limit.take("a") for _ in range(7)] == [0.0] * 6 + [10.0]
    clock.now += 9
    assert limit.take("a") == pytest.approx(1)
    clock.now += 1
    assert limit.take("a") == 0.0
    clock.now += 3600
    assert [bool(limit.take("a")) for _ in range(7)] == [False] * 6 + [True]


@pytest.mark.parametrize("per_minute", [1, 7, 600, 100_000])
def test_rounding_costs_no_token(clock: Clock, per_minute: int) -> None:
    limit = RateLimit(echo, per_minute=per_minute, clock=clock)
    taken = [limit.take("a") for _ in range(per_minute + 1)]
    assert not any(taken[:-1])
    assert taken[-1] == pytest.approx(60 / per_minute, rel=1e-3)


def test_clients_do_not_share_a_bucket(clock: Clock) -> None:
    limit = RateLimit(echo, per_minute=1, clock=clock)
    assert limit.take("a") == limit.take("b") == 0.0
    assert limit.take("a") == limit.take("b") == 60.0


def test_a_flood_of_addresses_is_forgotten(clock: Clock) -> None:
    limit = RateLimit(echo, per_minute=60, clock=clock)
    for i in range(1000):
        limit.take(str(i))
    clock.now += 60
    limit.take("last")
    assert list(limit._full_at) == ["last"]


def test_too_many_requests_are_told_when_to_come_again(clock: Clock) -> None:
    client = TestClient(RateLimit(echo, per_minute=2, clock=clock))
    assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
    refused = client.get("/v1/models")
    assert refused.headers["Retry-After"] == "30"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests a minute, the limit (--rate)" in refused.json()["error"]["message"]


def test_health_and_metrics_are_not_counted(clock: Clock) -> None:
    client = TestClient(RateLimit(echo, per_minute=1, clock=clock))
    paths = ("/healthz", "/readyz", "/metrics") * 3
    assert {client.get(path).status_code for path in paths} == {200}


def test_a_key_has_a_bucket_of_its_own_whatever_the_address(clock: Clock) -> None:
    limit = RateLimit(echo, per_minute=1, clock=clock)

    async def with_key(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = scope["path"].removeprefix("/v1/")
        await limit(scope, receive, send)

    client = TestClient(with_key)
    assert [client.get(f"/v1/{key}").status_code for key in ("a", "b", "a")] == [200, 200, 429]
