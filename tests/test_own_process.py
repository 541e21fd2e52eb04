import sys
from pathlib import Path

import pytest
import yaml

from kormed_edge.config import load_config
from kormed_edge.errors import TrainError
from kormed_edge.options import RunOptions
from train.own_process import run_process, train_in_own_process


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys\n{code}"]


def failure(code: str) -> str:
    with pytest.raises(TrainError) as error:
        run_process(python(code), "run")
    return error.value.found


def test_what_it_says_is_shown_as_it_comes(capfd: pytest.CaptureFixture[str]) -> None:
    run_process(python("print('3 [bold] of 7', file=sys.stderr)"), "run")
    assert "3 [bold] of 7\n" in capfd.readouterr().err


def test_an_error_of_the_kit_is_told_without_its_remedy() -> None:
    code = (
        "sys.stderr.write('Error: the loss is nan at step 3\\nExpected: a number\\n'); sys.exit(1)"
    )
    assert failure(code) == "the loss is nan at step 3"


def test_a_traceback_is_told_by_its_last_line() -> None:
    assert failure("raise MemoryError('CUDA out of memory')") == "MemoryError: CUDA out of memory"


def test_a_killed_process_is_told_by_its_signal() -> None:
    assert failure("os.kill(os.getpid(), 9)").startswith("ended by signal 9, as the system does")
    assert failure("os.kill(os.getpid(), 15)") == "ended by signal 15"
    assert failure("sys.exit(3)") == "exit code 3"


def test_a_run_is_trained_with_the_settings_it_was_given(tmp_path: Path) -> None:
    config = tmp_path / "sweep" / "r.yaml"
    options = RunOptions(tmp_path / "r", load_config(None, ["train.rank=8"]), force=False)
    with pytest.raises(TrainError) as error:
        train_in_own_process(options, config)
    assert error.value.found == f"{tmp_path}/r/data is missing: it has no manifest.json"
    assert yaml.safe_load(config.read_text())["train"]["rank"] == 8
