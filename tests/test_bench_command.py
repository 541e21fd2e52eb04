from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kormed_edge import bench_command, speed
from kormed_edge.cli import main

TINY = ("--context", "1024", "--threads", "1", "--allow-unverified", "--gpu-layers", "0")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture(autouse=True)
def small_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "ARRAY", 2**20)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was measured, beside what is printed of it."""
    seen: list[Any] = []
    serve = speed.serve
    monkeypatch.setattr(speed, "serve", lambda *given: seen.append(serve(*given)) or seen[-1])
    return seen


def test_every_number_of_clients_has_a_row(
    scripted_gguf: Path, shown: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    result = bench("--model", scripted_gguf, *TINY, "--clients", "1,3", "--tokens", 4)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in lines(result, capfd)]
    assert [row[:3] for row in rows if row and row[0].isdecimal()] == [
        ["1", "2", "4"], ["3", "6", "4"],
    ]  # fmt: skip
    assert [[one.completion for one in served.asked] for served in shown] == [[4] * 2, [4] * 6]


def test_the_machine_the_plan_and_the_limit_are_told(
    scripted_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = bench("--model", scripted_gguf, *TINY, "--clients", 2, "--questions", 1, "--tokens", 2)
    text = "\n".join(lines(result, capfd))
    for part in (
        str(scripted_gguf)[-20:], "1 threads used", "0 layers on it",
        "2 slots of 1,024 tokens", "llama-cpp-python 0.", "prefill", "Limit of decode", "GB/s",
    ):  # fmt: skip
        assert part in text


def test_slots_follow_clients_up_to_a_bound(
    scripted_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ("--model", scripted_gguf, *TINY, "--questions", 1, "--tokens", 1, "--clients", 20)
    assert "16 slots of" in "\n".join(lines(bench(*few), capfd))
    assert "3 slots of" in "\n".join(lines(bench(*few, "--slots", 3), capfd))


@pytest.mark.parametrize("clients", ["", "0", "1,,2", "1,x", "-1"])
def test_clients_that_are_no_numbers_exit_2(clients: str) -> None:
    result = bench("--model", "m.gguf", f"--clients={clients}")
    assert result.exit_code == 2
    assert f"--clients {clients}" in result.stderr


def test_an_unverified_file_is_not_loaded(scripted_gguf: Path) -> None:
    result = bench("--model", scripted_gguf)
    assert result.exit_code == 1
    assert "--allow-unverified" in result.stderr


def test_only_its_own_option_sets_the_length() -> None:
    assert "No such option" in bench("--max-new-tokens", 4).stderr


def lines(result: Result, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What went to the terminal, through the kit's console or click's."""
    return (result.output + capfd.readouterr().err).splitlines()
