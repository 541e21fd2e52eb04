"""Whatever is sent, the service answers as its own document says, and never with its own fault."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_server import ENDPOINTS, client_of, serve

from kormed_edge.engine import Engine

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
CHAT = "/v1/chat/completions"
FIELDS = {
    CHAT: (
        *("messages", "model", "temperature", "top_p", "min_p", "repeat_penalty", "seed"),
        *("max_tokens", "stop", "logit_bias", "logprobs", "top_logprobs", "response_format"),
        *("n", "tools", "stream_options", "stream", "presence_penalty"),
    ),
    "/v1/completions": ("prompt", "logprobs", "echo", "suffix", "best_of", "max_tokens"),
    "/v1/ask": ("question", "options", "model", "stream", "guidelines"),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from([-1, 10**400, 2**63, float("nan"), float("inf"), "\ud800", "json_schema"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "schema", "7"]), inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def engine(scripted_gguf: Path) -> Iterator[Engine]:
    with Engine(scripted_gguf, context=512, slots=2, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    return client_of(engine, max_new_tokens=8)


@pytest.fixture(scope="module")
def document(engine: Engine) -> Any:
    app = serve(engine, max_new_tokens=8)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/models", "/v1/models/{name}", "/readyz"])
def test_service_keeps_to_its_own_document(document: Any, path: str) -> None:
    operation = document[path]["POST" if path in ENDPOINTS else "GET"]

    @FEW
    @given(case=operation.as_strategy())
    def answer(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    answer()


def post(client: TestClient, path: str, body: str | bytes) -> Any:
    return client.post(path, content=body, headers={"content-type": "application/json"})


def require_refused(answer: Any, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert json.loads(answer.content.decode(), parse_constant=pytest.fail)["error"]["message"]


@pytest.mark.parametrize("path", ENDPOINTS)
@FEW
@given(data=st.data())
def test_any_value_of_any_field_is_answered_or_refused(
    client: TestClient, path: str, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(FIELDS[path]))
    value = data.draw(VALUES)
    answer = post(client, path, json.dumps({**ENDPOINTS[path], field: value}))
    if answer.status_code != 200:
        require_refused(answer, 400, 404, 422)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repeat_penalty"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "-1", "1e400", "9" * 400])
def test_number_out_of_range_is_refused(
    client: TestClient, path: str, name: str, value: str
) -> None:
    body = json.dumps({**ENDPOINTS[path], name: 0}).replace(f'"{name}": 0', f'"{name}": {value}')
    if path != "/v1/ask":
        require_refused(post(client, path, body), 422)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 100_000, b"9" * 5000, b'"a"'],
)
def test_body_that_is_no_object_is_refused(client: TestClient, path: str, body: bytes) -> None:
    require_refused(post(client, path, body), 400, 422)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}),
        (CHAT, {"model": "\ud800"}),
        (CHAT, {"stop": ["\ud800"]}),
        (CHAT, {"logit_bias": {"\ud800": 1}}),
        (CHAT, {"messages": [{"role": "\ud800", "content": ""}]}),
        ("/v1/completions", {"prompt": "\ud800"}),
        ("/v1/ask", {"question": "\ud800"}),
        ("/v1/ask", {"options": ["\ud800", "가"]}),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(client: TestClient, path: str, change: Any) -> None:
    require_refused(post(client, path, json.dumps({**ENDPOINTS[path], **change})), 422)


def test_half_of_a_surrogate_pair_that_is_ignored_is_no_fault(client: TestClient) -> None:
    body = {**ENDPOINTS[CHAT], "user": "\ud800", "metadata": {"\ud800": float("nan")}}
    assert post(client, CHAT, json.dumps(body)).status_code == 200


def schema(**content: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": content}}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


TOO_LARGE = {
    "deep schema": (schema(**nested(40)), "32 levels"),
    "long schema": (schema(enum=["가" * 70_000]), "65536 bytes"),
    "long string": (schema(type="string", minLength=10**9), "minLength"),
    "negative length": (schema(type="string", maxLength=-1), "maxLength"),
    "many items": (schema(type="array", items={}, minItems=10**9), "minItems"),
    "repeated pattern": (schema(type="string", pattern="^a{999}{999}{999}$"), "repetitions"),
    "ambiguous pattern": (schema(type="string", pattern="^" + "a?" * 300 + "$"), "? * +"),
    "deep pattern": (schema(type="string", pattern="^" + "(" * 300 + "$"), "groups"),
    "schema in itself": (schema(type="array", items={"$ref": "#"}), "hold themselves"),
    "schemas in each other": (
        schema(
            **{"$ref": "#/$defs/a"},
            **{
                "$defs": {
                    "a": {"items": {"$ref": "#/$defs/b"}},
                    "b": {"not": {"$ref": "#/$defs/a"}},
                }
            },
        ),
        "hold themselves",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_schema_that_would_take_the_service_down_is_refused(client: TestClient, name: str) -> None:
    change, limit = TOO_LARGE[name]
    answer = post(client, CHAT, json.dumps({**ENDPOINTS[CHAT], **change}))
    require_refused(answer, 400)
    assert limit in answer.json()["error"]["message"]


@pytest.mark.parametrize("value", ["NaN", r'"\ud800"', r'{"\ud800": 1}'])
def test_schema_that_is_no_json_is_refused(client: TestClient, value: str) -> None:
    body = json.dumps({**ENDPOINTS[CHAT], **schema(const="여기")})
    body = body.replace(json.dumps("여기"), value)
    require_refused(post(client, CHAT, body), 422)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_pile_of_marks_on_a_letter_is_refused(client: TestClient, path: str) -> None:
    pile = "a" + "\u0301\u0316" * 16_000
    body = json.dumps(ENDPOINTS[path]).replace(json.dumps("질문"), json.dumps(pile))
    body = body.replace(json.dumps("가장 먼저 할 검사는?"), json.dumps(pile))
    require_refused(post(client, path, body), 422)


def test_letters_with_their_marks_are_text(client: TestClient) -> None:
    """Hangul as macOS writes it into file names is a row of letters, not of marks."""
    from unicodedata import normalize

    body = {**ENDPOINTS["/v1/ask"], "question": normalize("NFD", "급성 충수염" * 9)}
    assert post(client, "/v1/ask", json.dumps(body)).status_code == 200
