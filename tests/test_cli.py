import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kormed_edge import __version__, cli
from kormed_edge.cli import COMMANDS, main
from kormed_edge.config import EvalConfig
from kormed_edge.errors import StageError
from kormed_edge.records import Record, write_records
from kormed_edge.runs import open_stage

QUESTION = "답은?\n1) 가\n2) 나\n3) 다"


def kormed(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(n: int, wrong: Iterable[int] = ()) -> str:
    """Predictions on `n` multiple-choice items, right but for some."""
    row = {
        "domain": "obgyn", "q_type": "multiple_choice", "question": QUESTION, "answer": "2) 나",
        "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1,
    }  # fmt: skip
    outputs = ["1) 가" if i in wrong else "2) 나" for i in range(n)]
    rows = [row | {"qa_id": f"q{i}", "output": output} for i, output in enumerate(outputs)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def evaluated(runs: Path, reference: str, candidate: str) -> None:
    """A run whose eval stage holds the predictions of two arms on its test split."""
    fields = ("qa_id", "domain", "q_type", "question", "answer")
    rows = [json.loads(line) for line in reference.splitlines()]
    with open_stage(runs / "demo", "data", {}) as draft:
        assert draft is not None
        records = [Record(**{field: row[field] for field in fields}) for row in rows]
        write_records(draft.folder / "test.jsonl", records)
    settings = {"eval": EvalConfig().model_dump(mode="json")}
    with open_stage(runs / "demo", "eval", settings) as draft:
        assert draft is not None
        (draft.folder / "adapter.jsonl").write_text(reference, encoding="utf-8")
        (draft.folder / "gguf-Q4_K_M.jsonl").write_text(candidate, encoding="utf-8")


def test_version() -> None:
    assert kormed("--version").output == f"kormed, version {__version__}\n"


def test_help_names_every_command_and_exit_code() -> None:
    result = kormed("--help")
    assert result.exit_code == 0
    assert "0 done · 1 failed · 2 wrong use · 3 gate FAIL · 4 gate INCONCLUSIVE" in result.output
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_would_take(name: str) -> None:
    result = kormed(name, "--help")
    assert result.exit_code == 0
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert f"Example: kormed {name}" in " ".join(result.output.split())
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_a_stage_that_is_not_installed_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_is_installed", lambda module: not module.startswith("train"))
    result = kormed("--help")
    assert [name for name in COMMANDS if f"\n  {name} " not in result.output] == [
        "data", "train", "eval", "judge", "benchmark", "demo",
    ]  # fmt: skip
    assert kormed("train").exit_code == 2


def test_wrong_use_exits_2() -> None:
    assert kormed("serve", "--port", "80000").exit_code == 2
    for adapter in ("v2", "=v2.gguf", "v2="):
        assert kormed("serve", "--model", "m.gguf", "--adapter", adapter).exit_code == 2
    assert kormed("nonsense").exit_code == 2
    result = kormed("data", "--run", "no-such-run")
    assert result.exit_code == 2
    assert "configs/no-such-run.yaml does not exist" in result.stderr


def test_a_mistake_in_the_settings_exits_2(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("train: {ranks: 1}")
    result = kormed("data", "--run", "x", "--config", config, "--runs-dir", tmp_path)
    assert result.exit_code == 2
    assert "train.ranks: unknown key" in result.stderr


def test_a_failure_exits_1_with_found_expected_and_remedy(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.touch()
    result = kormed("train", "--run", "x", "--config", config, "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"Error: {tmp_path}/x/data is missing: it has no manifest.json" in result.stderr
    assert "\nExpected: the output of `kormed data`\n" in result.stderr
    assert result.stderr.endswith("\nRemedy:   make data RUN=x\n")


def test_kormed_runs_is_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORMED_RUNS", str(tmp_path / "elsewhere"))
    assert f"{tmp_path}/elsewhere/x does not exist" in kormed("verify", "--run", "x").stderr


def test_allocator_is_chosen_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from kormed_edge.cli import main\n"
        "main(['train', '--run', 'none'], standalone_mode=False)\n"
        "print('torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTORCH_ALLOC_CONF"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "False expandable_segments:True\n", done.stderr


def test_debug_brings_the_traceback_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kormed_edge.cli", "verify", "--run", "x"]
    environment = os.environ | {"KORMED_RUNS": str(tmp_path)}
    plain = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    debug = environment | {"KORMED_DEBUG": "1"}
    loud = subprocess.run(command, env=debug, capture_output=True, text=True)
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr
    assert StageError.__name__ in loud.stderr


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = kormed("serve", "--model", tmp_path / "m.gguf")
    assert result.exit_code == 1
    assert "Error: the package uvicorn is not installed" in result.stderr
    assert "kormed doctor" in result.stderr


def test_a_missing_module_of_the_kit_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kormed_edge.server", None)
    result = kormed("serve", "--model", "m.gguf")
    assert isinstance(result.exception, ModuleNotFoundError)


def test_verify_exits_0_on_pass(tmp_path: Path) -> None:
    evaluated(tmp_path, lines(2000, range(500)), lines(2000, range(500)))
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert "gate adapter → gguf:Q4_K_M: PASS" in result.stderr


def test_verify_exits_3_on_a_proven_loss(tmp_path: Path) -> None:
    evaluated(tmp_path, lines(500), lines(500, range(100)))
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 3, result.output
    assert "FAIL" in result.stderr
    assert "loss proven" in result.stderr


def test_verify_exits_3_without_predictions(tmp_path: Path) -> None:
    evaluated(tmp_path, lines(5), "")
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 3, result.output
    assert "no predictions" in result.stderr


def test_verify_exits_4_when_there_are_too_few_items(tmp_path: Path) -> None:
    evaluated(tmp_path, lines(24), lines(24))
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 4, result.output
    assert "INCONCLUSIVE" in result.stderr


def test_verify_exits_1_on_a_changed_byte(tmp_path: Path) -> None:
    evaluated(tmp_path, lines(24), lines(24))
    path = tmp_path / "demo" / "eval" / "adapter.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2", 1))
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert "adapter.jsonl: contents differ from the manifest" in result.stderr


def test_verify_exits_1_on_a_run_that_was_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    result = kormed("verify", "--run", "demo", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert "make eval RUN=demo" in result.stderr


def test_serve_stays_on_the_loopback_unless_told(tmp_path: Path) -> None:
    result = kormed("serve", "--model", tmp_path / "m.gguf", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "--host 0.0.0.0 can be reached from other machines" in result.stderr
    assert "--insecure" in result.stderr
    insecure = kormed("serve", "--model", tmp_path / "m.gguf", "--host", "0.0.0.0", "--insecure")
    assert "m.gguf does not exist" in insecure.stderr


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 1e8))
    root = Path(__file__).parents[1]
    source = ("--set", f"data.source={root / 'samples'}")
    config = ("--config", root / "configs" / "demo.yaml")
    result = kormed("data", "--runs-dir", tmp_path, "--run", "full", *config, *source)
    assert result.exit_code == 1
    assert "0.10 GB free on this disk" in result.output
    assert "at least 0.20 GB for the splits" in result.output
    assert list(tmp_path.iterdir()) == []
