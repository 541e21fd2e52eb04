import hmac
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from kormed_edge.api_keys import (
    SCOPE_KEY,
    RequireKey,
    add_key,
    hash_key,
    name_of,
    read_keys,
    remove_key,
)
from kormed_edge.cli import main
from kormed_edge.errors import ConfigError


def kormed(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/{path:path}")
    def who(path: str, request: Request) -> dict[str, Any]:
        return {"path": path, "key": request.scope.get(SCOPE_KEY)}

    return TestClient(RequireKey(app, {"ward": hash_key("열쇠"), "lab": hash_key("other")}))


def test_a_key_is_kept_as_a_hash_that_only_the_owner_reads(file: Path) -> None:
    key = add_key(file, "ward-3")
    assert file.read_text() == f"ward-3:{hash_key(key)}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(key) == len("kormed_") + 43  # 256 bits


def test_no_two_keys_are_alike(file: Path) -> None:
    first, second = add_key(file, "a"), add_key(file, "b")
    assert first != second
    keys = read_keys(file)
    assert (name_of(first, keys), name_of(second, keys), name_of("", keys)) == ("a", "b", None)


def test_every_entry_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, compare = [], hmac.compare_digest

    def note(a: str, b: str) -> bool:
        compared.append(a)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", note)
    keys = {name: hash_key(name) for name in ("a", "b", "c")}
    assert name_of("a", keys) == "a"
    assert compared == list(keys.values())


def test_a_removed_key_is_none(file: Path) -> None:
    key = add_key(file, "a")
    remove_key(file, "a")
    assert name_of(key, read_keys(file)) is None
    with pytest.raises(ConfigError, match="has no key a"):
        remove_key(file, "a")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "가", "x" * 65])
def test_a_name_that_would_break_the_file_is_refused(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a key"):
        add_key(file, name)
    assert not file.exists()


def test_a_name_in_use_is_refused(file: Path) -> None:
    key = add_key(file, "a")
    with pytest.raises(ConfigError, match="has a key named a"):
        add_key(file, "a")
    assert name_of(key, read_keys(file)) == "a"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_reach_is_refused(file: Path, mode: int) -> None:
    add_key(file, "a")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}"):
        read_keys(file)


def test_a_broken_line_and_a_missing_file_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(file)
    add_key(file, "a")
    with file.open("a") as stream:
        stream.write("b:plaintext\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_keys(file)


@pytest.mark.parametrize("given", [None, "Bearer nobody", "Bearer ", "Basic other", "other"])
def test_without_a_key_nothing_is_answered(client: TestClient, given: str | None) -> None:
    headers = {"Authorization": given} if given else {}
    for path in ("/v1/models", "/metrics", "/healthz/..", "/"):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_open(client: TestClient, path: str) -> None:
    assert client.get(path).json() == {"path": path[1:], "key": None}


def test_a_key_opens_and_is_known_by_its_name(client: TestClient) -> None:
    for header in ("Bearer other", "bearer other"):
        assert client.get("/v1/models", headers={"Authorization": header}).json()["key"] == "lab"


def test_a_key_of_any_bytes_is_compared_and_refused(client: TestClient) -> None:
    headers = {"Authorization": b"Bearer \xff\xfe\xed"}
    assert client.get("/v1/models", headers=headers).status_code == 401


def test_the_command_shows_a_key_once(file: Path) -> None:
    added = kormed("add", "ward-3", "--file", file)
    assert name_of(added.stdout.strip(), read_keys(file)) == "ward-3"
    assert kormed("list", "--file", file).stdout == "ward-3\n"
    assert "restart" in kormed("remove", "ward-3", "--file", file).stderr
    assert kormed("list", "--file", file).stdout == ""


def test_the_command_fails_with_a_remedy(file: Path) -> None:
    result = kormed("list", "--file", file)
    assert result.exit_code == 2
    assert f"kormed keys add NAME --file {file}" in result.stderr
