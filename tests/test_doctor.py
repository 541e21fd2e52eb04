import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from kormed_edge import doctor, site_findings
from kormed_edge.cli import main
from kormed_edge.findings import Finding

Usage = namedtuple("Usage", "total used free")


def found(folder: Path, asked: doctor.Questions | None = None) -> dict[str, Finding]:
    findings = doctor.examine(folder, asked or doctor.Questions(bundle=folder / "none"))
    return {finding.name: finding for finding in findings}


def hide(*hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name in hidden else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without torch."""
    hide("torch", monkeypatch=monkeypatch)


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the edge image has: no training, and none of its packages."""
    hide("torch", "train", "kiwipiepy", "scipy", monkeypatch=monkeypatch)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing listens, and where no container engine is asked."""
    monkeypatch.setattr(site_findings, "is_taken", lambda _: False)
    monkeypatch.setattr(site_findings, "ENGINES", ())


def test_every_check_has_a_finding(tmp_path: Path) -> None:
    names = list(found(tmp_path))
    assert names[:3] == ["CPU", "CPU features", "memory"]
    assert {"GPU", "disk of runs", "disk of $KORMED_HOME", "clock", "port 8080"} < set(names)
    assert {"container engine", "$KORMED_HOME", "site key"} < set(names)
    assert [n for n in names if n.startswith("packages")] == [
        "packages for serve, ask", "packages for guidelines", "packages for eval",
        "packages for train, export",
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


@pytest.mark.usefixtures("edge", "idle")
def test_the_edge_image_is_asked_for_nothing_of_training(tmp_path: Path) -> None:
    findings = found(tmp_path)
    assert "disk of runs" not in findings
    assert [n for n in findings if n.startswith("packages")] == [
        "packages for serve, ask", "packages for guidelines",
    ]  # fmt: skip
    wanted = findings["packages for guidelines"]
    assert wanted.found.startswith("missing: kiwipiepy; if wanted: pip install")
    assert wanted.remedy == ""
    result = CliRunner().invoke(main, ["doctor", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output


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


@pytest.mark.usefixtures("idle")
def test_a_machine_that_has_everything_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    monkeypatch.setitem(doctor.PACKAGES, "train, export", ("torch",))
    result = CliRunner().invoke(main, ["doctor", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_the_bundle_gives_its_model_and_its_time(tmp_path: Path, scripted_gguf: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(scripted_gguf, tmp_path / "model")
    text = "kormed-bundle 1\nname d\nversion 1\nverified yes\nsigned 2999-01-01T00:00:00Z\n"
    (tmp_path / "SIGNED").write_text(text + f"sums {'0' * 64}\n")
    findings = found(tmp_path, doctor.Questions(bundle=tmp_path))
    assert findings["memory for the model"].found.startswith("tiny.gguf needs 0.0")
    assert findings["clock"].found.endswith("before the bundle was signed, 2999-01-01T00:00:00Z")
    assert findings["clock"].remedy.startswith("set the clock")
