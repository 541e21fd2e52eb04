import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kormed_edge import port_owner, site_findings


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number: int = listener.getsockname()[1]
        yield number


def tool(folder: Path, name: str, code: int) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nprint('28.1')\nraise SystemExit({code})\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of programs, outside any container."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(site_findings, "_INSIDE", ())
    return tmp_path


def test_a_port_in_use_names_the_process(port: int) -> None:
    finding = site_findings.port(port)
    assert f"(process {os.getpid()})" in finding.found
    assert f"sport = :{port}" in finding.remedy


def test_the_service_itself_may_have_its_port(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_findings, "owner", lambda _: "kormed serve --run demo (process 7)")
    assert site_findings.port(port).remedy == ""


def test_a_process_of_another_user_is_still_a_problem(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_findings, "owner", lambda _: None)
    assert "may not see" in site_findings.port(port).found


def test_a_port_that_only_a_connection_uses_is_free(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert site_findings.port(client.getsockname()[1]).found == "free"
    assert port_owner.is_taken(port)


def test_an_engine_that_answers_is_no_problem(path: Path) -> None:
    tool(path, "podman", 0)
    finding = site_findings.engine()
    assert (finding.found, finding.remedy) == ("podman 28.1", "")


def test_an_engine_that_does_not_answer_is_one(path: Path) -> None:
    tool(path, "docker", 1)
    finding = site_findings.engine()
    assert finding.found == "docker does not answer"
    assert finding.remedy.startswith("systemctl start docker")


@pytest.mark.usefixtures("path")
def test_no_engine_is_no_problem() -> None:
    assert site_findings.engine().remedy == ""


def test_files_open_to_others_are_named(tmp_path: Path) -> None:
    home, audit, keys = tmp_path / "home", tmp_path / "audit.db", tmp_path / "keys"
    home.mkdir()
    for file, mode in ((home / "site.key", 0o640), (audit, 0o604), (keys, 0o600)):
        file.touch()
        file.chmod(mode)
    remedies = [f.remedy for f in site_findings.permissions(home, audit, keys)]
    assert remedies == ["", f"chmod 600 {home / 'site.key'}", f"chmod 600 {audit}", ""]


def test_a_home_that_everyone_can_write_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (home, *_) = site_findings.permissions(tmp_path, None, None)
    assert home.remedy == f"chmod o-w {tmp_path}"
