import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from serving import Running, read_all, ready, running
from starlette.types import Receive, Scope, Send

from kormed_edge.connection import Bounds
from kormed_edge.limits import BodyLimit
from kormed_edge.loading import LoadingApp

GET = "GET /x HTTP/1.1\r\nHost: h\r\n"
POST = "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"
SOON = Bounds(header_seconds=0.2, read_seconds=0.2)


@pytest.fixture
def service() -> Iterator[Running]:
    app = FastAPI()

    @app.api_route("/x", methods=["GET", "POST"])
    def x() -> str:
        return "x"

    with running(LoadingApp(ready(app)), bounds=SOON) as it:
        yield it


@pytest.mark.parametrize("begun", ["", "G", GET])
def test_headers_that_do_not_end_are_waited_for_a_while(service: Running, begun: str) -> None:
    assert service.say(begun) == b""  # returns when the service hangs up


def test_one_byte_now_and_then_wins_no_time(service: Running) -> None:
    with service.connect() as sock:
        sock.settimeout(0.02)
        sent = 0
        for letter in GET + "X: " + "y" * 10_000:
            try:
                sock.sendall(letter.encode())
                if sock.recv(1) == b"":
                    break
            except TimeoutError:
                sent += 1
            except OSError:
                break
    assert sent < 100


def test_a_body_of_one_byte_now_and_then_is_refused() -> None:
    service = LoadingApp(ready())
    with running(service, BodyLimit(service, most=10, seconds=0.2)) as it:
        answer = it.say(POST + "1")
    assert b"HTTP/1.1 408" in answer
    assert b"connection: close" in answer


def test_one_connection_too_many_is_told_so() -> None:
    bounds = Bounds(connections=2)
    with running(LoadingApp(ready()), bounds=bounds) as it, it.connect() as a, it.connect() as b:
        for sock in (a, b):  # an answer shows that the connection was taken
            sock.sendall(f"{GET}\r\n".encode())
            assert sock.recv(12) == b"HTTP/1.1 404"
        refused = it.say("")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b'"code": "too_many_connections"' in refused
        a.sendall(f"{GET}Connection: close\r\n\r\n".encode())
        assert b"HTTP/1.1 404" in read_all(a)


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    app, ended = FastAPI(), threading.Event()

    async def flood(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):  # 64 MB, which is more than sockets hold
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        ended.set()

    app.mount("/", flood)
    with running(LoadingApp(ready(app)), bounds=SOON) as it, it.connect() as sock:
        sock.sendall(f"{GET}\r\n".encode())
        assert ended.wait(30)
