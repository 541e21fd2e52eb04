"""A training in a process of its own: its memory is free when it ends, however it ends."""

import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from kormed_edge.errors import TrainError
from kormed_edge.options import RunOptions
from kormed_edge.progress import console

_KEPT = 40
"""Lines of a process's last words that are searched for its error."""


def train_in_own_process(options: RunOptions, config: Path) -> None:
    """`kormed train sft` for a run, its settings written to `config`; `TrainError` if it fails."""
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(options.config.to_yaml(), encoding="utf-8")
    command = [
        sys.executable, "-m", "kormed_edge.cli", "train", "sft", "--run", options.run.name,
        "--config", str(config), "--runs-dir", str(options.run.parent),
        *(["--force"] if options.force else []),
    ]  # fmt: skip
    run_process(command, options.run.name)


def run_process(command: list[str], name: str) -> None:
    """Run a command, its stderr shown as it comes; `TrainError` with its last words if it fails."""
    last: deque[str] = deque(maxlen=_KEPT)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                console.print(line, end="", markup=False, highlight=False, soft_wrap=True)
                last.append(line.rstrip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise TrainError(_reason(process.returncode, last), "a training that ends", f"see {name}")


def _reason(code: int, last: Iterable[str]) -> str:
    """What a process said before it failed: its error, or the last line of its traceback."""
    if code < 0:
        advice = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"ended by signal {-code}{advice}"
    lines = [line for line in last if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    if errors:
        return errors[-1].removeprefix("Error: ")
    return lines[-1].strip() if lines else f"exit code {code}"
