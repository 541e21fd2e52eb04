from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from kormed_edge.generation import Job
from kormed_edge.limits import REJECT
from kormed_edge.metrics import Metered, Metrics, MetricsPage
from kormed_edge.request import EngineStatus, Request

NO_SAMPLER: Any = None


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


KINDS = ("prompt", "cached", "completion")


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def job(first_token: float | None, tokens: int, cached: int = 0) -> Job:
    """A request of four prompt tokens that came at 10 s and ended at 14 s."""
    job = Job(Request((1, 2, 3, 4), 8), NO_SAMPLER)
    job.submitted, job.first_token, job.ended = 10.0, first_token, 14.0
    job.completion_tokens, job.cached_tokens = tokens, cached
    return job


def test_tokens_are_added_up_by_kind(metrics: Metrics) -> None:
    metrics.note(job(12.0, 5, cached=3))
    metrics.note(job(12.0, 2))
    kinds = {kind: value(metrics, "kormed_tokens_total", kind=kind) for kind in KINDS}
    assert kinds == {"prompt": 8, "cached": 3, "completion": 7}


def test_an_answer_is_timed_to_its_first_token_and_after_it(metrics: Metrics) -> None:
    metrics.note(job(12.0, 5))
    assert value(metrics, "kormed_time_to_first_token_seconds_sum") == 2.0
    assert value(metrics, "kormed_decode_tokens_per_second_sum") == 2.0  # 4 more tokens in 2 s


@pytest.mark.parametrize(("first", "tokens"), [(None, 0), (12.0, 1), (14.0, 2)])
def test_what_has_no_speed_is_not_measured(
    metrics: Metrics, first: float | None, tokens: int
) -> None:
    metrics.note(job(first, tokens))
    assert value(metrics, "kormed_decode_tokens_per_second_count") == 0
    expected = 0 if first is None else 1
    assert value(metrics, "kormed_time_to_first_token_seconds_count") == expected


def test_slots_queue_and_cache_are_read_when_asked(metrics: Metrics) -> None:
    now = EngineStatus(slots=4, busy=1, waiting=0, kv_used=10, kv_size=4096)
    metrics.watch(lambda: now, model="tiny", sha256="ab")
    assert value(metrics, "kormed_slots_busy") == 1
    now = EngineStatus(slots=4, busy=3, waiting=7, kv_used=99, kv_size=4096)
    names = ("slots", "slots_busy", "queue", "kv_tokens", "kv_tokens_limit")
    assert [value(metrics, f"kormed_{name}") for name in names] == [4, 3, 7, 99, 4096]
    assert value(metrics, "kormed_model_info", name="tiny", sha256="ab") == 1


def test_default_adapter_is_the_model_that_answers(metrics: Metrics) -> None:
    now = EngineStatus(slots=4, busy=1, waiting=0, kv_used=10, kv_size=4096)
    metrics.watch(lambda: now, model="v2", sha256="ab", adapter_sha256="cd")
    assert value(metrics, "kormed_model_info", name="v2", sha256="ab", adapter_sha256="cd") == 1


def test_two_services_share_nothing(metrics: Metrics) -> None:
    Metrics().note(job(12.0, 5))
    assert value(metrics, "kormed_tokens_total", kind="prompt") is None


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """What the path says: a status, 429 by the rate, or nothing."""
    word = scope["path"][1:]
    if word == "rate":
        scope[REJECT] = "rate"
    if word != "gone":
        status = 429 if word == "rate" else int(word)
        await PlainTextResponse("", status)(scope, receive, send)


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("200", "200", None), ("401", "401", "key"), ("413", "413", "size"), ("408", "408", "slow"),
        ("429", "429", "queue"), ("rate", "429", "rate"), ("503", "503", "unavailable"),
        ("422", "422", "invalid"), ("500", "500", None),
    ],
)  # fmt: skip
def test_a_request_counts_by_status_and_a_refusal_by_reason(
    metrics: Metrics, path: str, status: str, reason: str | None
) -> None:
    metrics.paths |= {f"/{path}"}
    TestClient(Metered(answer, metrics)).get(f"/{path}")
    assert value(metrics, "kormed_requests_total", endpoint=f"/{path}", status=status) == 1
    rejects = [
        s for f in metrics.registry.collect() for s in f.samples if "rejects_total" in s.name
    ]
    assert [s.labels["reason"] for s in rejects] == ([reason] if reason else [])
    assert value(metrics, "kormed_requests_in_flight") == 0


def test_a_client_that_left_is_counted(metrics: Metrics) -> None:
    with pytest.raises(AssertionError):  # the test client's, which wants an answer
        TestClient(Metered(answer, metrics)).get("/gone")
    assert value(metrics, "kormed_requests_total", endpoint="other", status="gone") == 1


def test_a_path_that_anyone_can_make_up_makes_no_label(metrics: Metrics) -> None:
    client = TestClient(Metered(answer, metrics))
    for path in ("/404", "/0404", "/00404"):
        client.get(path)
    assert value(metrics, "kormed_requests_total", endpoint="other", status="404") == 3


def test_a_request_under_way_is_seen(metrics: Metrics) -> None:
    text = TestClient(Metered(MetricsPage(answer, metrics), metrics)).get("/metrics").text
    assert "kormed_requests_in_flight 1.0\n" in text


def test_the_page_is_prometheus_text(metrics: Metrics) -> None:
    client = TestClient(MetricsPage(answer, metrics))
    page = client.get("/metrics")
    assert page.headers["Content-Type"].startswith("text/plain; version=")
    assert "# TYPE kormed_requests_total counter" in page.text
    assert client.get("/200").status_code == 200
