import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from kormed_edge import doctor
from kormed_edge.cli import main

Usage = namedtuple("Usage", "total used free")


def found(folder: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(folder)}


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without torch."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name == "torch" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_every_check_has_a_finding(tmp_path: Path) -> None:
    names = list(found(tmp_path))
    assert names[:5] == ["CPU", "memory", "GPU", "disk of runs", "disk of $KORMED_HOME"]
    assert [n for n in names if n.startswith("packages")] == [
        "packages for serve, ask", "packages for eval", "packages for train, export",
    ]  # fmt: skip
    assert "torch " in found(tmp_path)["versions"].found


@pytest.mark.usefixtures("lacking")
def test_a_missing_package_comes_with_the_command_that_brings_it(tmp_path: Path) -> None:
    finding = found(tmp_path)["packages for train, export"]
    assert finding.found == "missing: torch"
    assert finding.remedy == "pip install -c constraints.txt -e '.[train]'"
    result = CliRunner().invoke(main, ["doctor", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "missing: torch" in result.stderr


def test_a_full_disk_is_found_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(9, 8, 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    finding = found(tmp_path / "not" / "there" / "yet")["disk of runs"]
    assert asked[0] == tmp_path
    assert finding.found.startswith("0.0 GB free")
    assert "3 GB" in finding.remedy


def test_a_machine_that_has_everything_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    monkeypatch.setitem(doctor.PACKAGES, "train, export", ("torch",))
    result = CliRunner().invoke(main, ["doctor", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
