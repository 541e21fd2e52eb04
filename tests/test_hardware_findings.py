import subprocess
from pathlib import Path
from typing import Any

import pytest

from kormed_edge import hardware_findings as machine


def smi(monkeypatch: pytest.MonkeyPatch, code: int, output: str) -> None:
    """An nvidia-smi that answers this."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, output, "")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_card_comes_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, 0, "RTX 4080, 16376 MiB, 580.1\n")
    finding = machine.gpu()
    assert finding.found.startswith("RTX 4080, 16376 MiB, 580.1")
    assert finding.found.endswith("llama.cpp's build uses none")
    assert finding.remedy == ""


def test_a_driver_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, 18, "Failed to initialize NVML: Driver/library version mismatch\n")
    finding = machine.gpu()
    assert "version mismatch" in finding.found
    assert finding.remedy.startswith("restart")


@pytest.mark.parametrize(("vendor", "there"), [("0x10de\n", True), ("0x8086\n", False)])
def test_a_card_without_a_driver_is_a_problem(
    vendor: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    device = tmp_path / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor)
    (device / "class").write_text("0x030000\n")
    assert bool(machine.gpu(tmp_path / "pci").remedy) == there


def test_a_model_that_does_not_fit_says_what_would(
    scripted_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kormed_edge.memory_plan.free_ram", lambda: 1000)
    finding = machine.model_memory(scripted_gguf, context=4096, slots=4)
    assert finding.found.startswith("the model needs")
    assert "fewer slots" in finding.remedy


def test_a_model_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    finding = machine.model_memory(tmp_path / "none.gguf", context=64, slots=1)
    assert finding.remedy


def test_a_clock_before_the_software_was_installed_is_wrong() -> None:
    finding = machine.clock(None, now=0)
    assert finding.found.startswith("1970-01-01T00:00:00Z, before this software was installed")
    assert finding.remedy.startswith("set the clock")


def test_a_clock_after_both_is_right() -> None:
    assert machine.clock("2026-01-02T03:04:05Z", now=4e9).remedy == ""
