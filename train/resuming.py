"""What lets a stopped training go on, and shows where it is: its checkpoints and its log."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.errors import TrainError
from kormed_edge.progress import Update


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; one that a kill cut short is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
    return None


def progress_callback(
    on_step: Update,
    steps: int,
    folder: Path,
    remedy: str,
    *,
    pace: Callable[[], Iterable[str]] = list,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """A trainer callback that shows the loss, keeps log.jsonl, and stops at a NaN.

    `remedy` is what the error for such a loss advises, `pace` what else is shown at every step;
    `check` is called before a loss is logged, and may raise an error of its own.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        loss = ""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            on_step(state.global_step, steps, " · ".join(filter(None, (self.loss, *pace()))))

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
            logs = given["logs"]
            check()
            for key in ("loss", "eval_loss"):
                require_finite(key, logs.get(key, 0.0), state.global_step, remedy)
            if "loss" in logs:
                self.loss = f"loss {logs['loss']:.3f}"
            if state.is_world_process_zero:
                write_log(folder / "log.jsonl", state.log_history)

    return Progress()


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    lines = (json.dumps(entry) + "\n" for entry in history)
    path.write_text("".join(lines), encoding="utf-8")


def require_finite(name: str, loss: float, step: int, remedy: str, ids: Sequence[str] = ()) -> None:
    """Raises `TrainError` that names the step, and the samples whose `ids` are given."""
    if not math.isfinite(loss):
        samples = f", samples {', '.join(ids)}" if any(ids) else ""
        raise TrainError(f"the {name} is {loss} at step {step}{samples}", "a finite number", remedy)
