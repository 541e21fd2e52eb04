import re
import threading
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import ready
from test_server import Endless, client_of

from kormed_edge import __version__
from kormed_edge.api_keys import hash_key
from kormed_edge.calibration import Calibration
from kormed_edge.guards import Guards, guarded
from kormed_edge.loading import LoadingApp
from kormed_edge.metrics import Metrics
from kormed_edge.page_api import FILES, FOLDER
from kormed_edge.request import EngineStatus
from kormed_edge.served_adapters import ServedAdapter
from kormed_edge.server import create_app


class Idle(Endless):
    def status(self) -> EngineStatus:
        return EngineStatus(slots=4, busy=3, waiting=2, kv_used=0, kv_size=0)


@pytest.fixture
def client() -> TestClient:
    return client_of(Idle())


def directives(policy: str) -> dict[str, str]:
    parts = [part.strip().partition(" ") for part in policy.split(";")]
    return {name: value for name, _, value in parts}


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_as_what_it_is_and_under_the_policy(
    client: TestClient, path: str
) -> None:
    answer = client.get(path)
    name, media_type = FILES[path]
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = directives(answer.headers["content-security-policy"])
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == "'none'"


def test_the_folder_holds_what_is_served_and_no_more() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}


def test_every_file_that_the_page_names_is_served() -> None:
    texts = {path: (FOLDER / name).read_text("utf-8") for path, (name, _) in FILES.items()}
    named = re.findall(r'(?:src|href)="([^"]+)"', texts["/"])
    imported = [name for text in texts.values() for name in re.findall(r'from "\./(.+)"', text)]
    assert len(named) == 3
    assert {f"/{path}" for path in named} | {f"/page/{name}" for name in imported} == {*FILES} - {
        "/"
    }


def test_nothing_is_inline_and_no_text_becomes_markup() -> None:
    html = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == [""]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|https?://", html)
    for script in FOLDER.glob("*.js"):
        code = script.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", code)
        assert "http" not in code


def test_a_browser_that_has_the_file_gets_it_once(client: TestClient) -> None:
    first = client.get("/")
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (first.headers["cache-control"], again.status_code, again.content) == (
        "no-cache", 304, b"",
    )  # fmt: skip
    assert client.get("/page/page.css").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("path", ["/page/", "/page/../server.py", "/page/%2e%2e/server.py"])
def test_no_other_file_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_page_is_not_changed_by_anyone(client: TestClient) -> None:
    assert client.post("/").status_code == 405


def test_the_notice_stands_in_the_page_itself() -> None:
    html = (FOLDER / "index.html").read_text("utf-8")
    assert "단독 진단이나 처방에 사용할 수 없습니다" in html
    assert "not for independent diagnosis or prescription" in html


def status(verified: bool | None, **settings: Any) -> Any:
    app = create_app(
        Idle(),  # type: ignore[arg-type]
        model="tiny", sha256="ab" * 32, max_new_tokens=8, verified=verified, **settings,
    )  # fmt: skip
    return TestClient(app).get("/v1/status").json()


@pytest.mark.parametrize("verified", [True, False, None])
def test_status_names_the_model_and_the_queue(verified: bool | None) -> None:
    assert status(verified) == {
        "model": "tiny", "adapter": None, "version": __version__, "sha256": "ab" * 32,
        "adapter_sha256": None, "verified": verified, "slots": 4, "busy": 3, "waiting": 2,
        "feedback": False, "calibrated": False, "guidelines": False,
    }  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_status_is_of_the_default_adapter(known: bool) -> None:
    mine = Calibration(
        model_sha256="ab" * 32, options=None, text=None, threshold=0.5, fit_version="1"
    )
    # One of the two is calibrated: the adapter, or the model that does not answer.
    adapters = {"v2": ServedAdapter("22" * 32, mine if known else None)}
    calibration = None if known else mine
    body = status(True, adapters=adapters, default_adapter="v2", calibration=calibration)
    assert (body["model"], body["adapter"], body["calibrated"]) == ("v2", "v2", known)
    assert (body["sha256"], body["adapter_sha256"]) == ("ab" * 32, "22" * 32)


def test_page_needs_no_key_and_everything_it_asks_does() -> None:
    app = guarded(client_of(Idle()).app, Guards(keys={"w": hash_key("k")}), Metrics())
    client = TestClient(app)
    assert {client.get(path).status_code for path in FILES} == {200}
    assert client.get("/v1/status").status_code == 401
    assert client.get("/v1/status", headers={"Authorization": "Bearer k"}).status_code == 200


def test_page_is_there_while_the_model_loads() -> None:
    gate = threading.Event()
    app = LoadingApp(lambda: ready()() if gate.wait() else FastAPI())
    app.start()
    client = TestClient(app)
    assert {client.get(path).status_code for path in FILES} == {200}
    assert (client.post("/").status_code, client.get("/page/x").status_code) == (405, 503)
    gate.set()
    app._thread.join()


HERE = ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]"]
ELSEWHERE = ["evil.example:8080", "localhost.evil.example", "", "127.0.0.1.evil.example", "[x]:1"]


@pytest.mark.parametrize(("host", "code"), [(h, 200) for h in HERE] + [(h, 421) for h in ELSEWHERE])
def test_a_local_service_answers_to_no_name_that_a_web_site_can_have(host: str, code: int) -> None:
    app = client_of(Idle()).app
    guard = TestClient(guarded(app, Guards(local_only=True), Metrics()))
    assert guard.get("/", headers={"Host": host}).status_code == code
    anyone = TestClient(guarded(app, Guards(), Metrics()))
    assert anyone.get("/", headers={"Host": host}).status_code == 200
