"""Training speed and memory at the shape of Qwen2.5-7B, random weights, one GPU.

    python bench/train.py build FOLDER                         a random base (15 GB)
    python bench/train.py run FOLDER [VARIANT ...] [--steps 10] [--full] [--set KEY=VALUE ...]

Variants: `trl` is TRL's SFTTrainer at the paper's settings; `paper` and `rtx16` are the kit with
configs/NAME.yaml. Each runs in a process of its own on the same samples, 16 a step, of about 270
tokens (`--full`: 1,024 each), and prints one JSON line. The first steps, in which kernels are
compiled, are not counted; tokens a second are the median over the others.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VARIANTS = ("trl", "paper", "rtx16")
WARM = 4
SAMPLES_PER_STEP = 16
# As `kormed` does; TRL has it too.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def lengths(n: int, *, full: bool) -> list[int]:
    """Token counts like the paper's: mean about 270, cut at 1,024."""
    draw = random.Random(42)
    if full:
        return [1024] * n
    return [max(90, min(1024, int(draw.lognormvariate(5.5, 0.42)))) for _ in range(n)]


def samples(n: int, *, full: bool) -> list[dict[str, list[int]]]:
    draw = random.Random(1)
    return [
        {
            "input_ids": [draw.randrange(3, 150000) for _ in range(size)],
            "completion_mask": [1] * size,
        }
        for size in lengths(n, full=full)
    ]


def run(folder: Path, variant: str, steps: int, full: bool, overrides: list[str]) -> None:
    import torch

    started = time.monotonic()
    rows = samples((WARM + steps) * SAMPLES_PER_STEP, full=full)
    with tempfile.TemporaryDirectory() as output:
        make = _trl if variant == "trl" else _kit
        trainer = make(folder / "base", variant, rows, WARM + steps, Path(output), overrides)
        loaded = time.monotonic() - started
        weights = torch.cuda.memory_allocated()
        counts, ends = _watch(trainer)
        trainer.train()
    torch.cuda.synchronize()
    seconds = [a.elapsed_time(b) / 1000 for a, b in pairwise(ends)]
    speeds = [int(n) / s for n, s in zip(counts, seconds, strict=True)][WARM:]
    found = {
        "variant": variant,
        "set": overrides,
        "full": full,
        "tokens_per_s": round(statistics.median(speeds), 1),
        "range": [round(min(speeds)), round(max(speeds))],
        "tokens_per_step": round(sum(map(int, counts)) / len(counts)),
        "first_steps_s": [round(s, 2) for s in seconds[:WARM]],
        "load_s": round(loaded, 1),
        "weights_gb": round(weights / 1e9, 2),
        "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    print("RESULT " + json.dumps(found), flush=True)


def _watch(trainer: Any) -> tuple[list[Any], list[Any]]:
    """Each step's tokens, padding left out, and CUDA events at the start and after each step."""
    import torch
    from transformers import TrainerCallback

    counts: list[Any] = []
    ends: list[Any] = []
    step = trainer.training_step

    def counting(model: Any, inputs: dict[str, Any], *given: Any) -> Any:
        if trainer.state.global_step == len(counts):
            counts.append(0)
        mask = inputs.get("attention_mask")  # TRL pads
        counts[-1] += inputs["tokens"] if mask is None else mask.sum()
        return step(model, inputs, *given)

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._mark()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self._mark()

        def _mark(self) -> None:
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record()

    trainer.training_step = counting
    trainer.add_callback(Clock())
    return counts, ends


def _trl(
    base: Path, _: str, rows: list[Any], steps: int, folder: Path, overrides: list[str]
) -> Any:
    from plain_trl import plain_trl

    from kormed_edge.config import TrainConfig
    from kormed_edge.nf4 import load_tokenizer

    config = TrainConfig(max_steps=steps)
    given = dict(override.split("=") for override in overrides)
    return plain_trl(base, rows, config, folder, load_tokenizer(base), **given)


def _kit(
    base: Path, variant: str, rows: list[Any], steps: int, folder: Path, overrides: list[str]
) -> Any:
    from kormed_edge.config import load_config
    from kormed_edge.nf4 import load_tokenizer
    from train.qlora import make_trainer

    given = [f"train.{each}" for each in (f"max_steps={steps}", "eval_steps=9999", *overrides)]
    config = load_config(ROOT / "configs" / f"{variant}.yaml", given).values.train
    return make_trainer(base, rows, rows[:1], config, folder, load_tokenizer(base))


def run_all(given: argparse.Namespace) -> None:
    for variant in given.variants or VARIANTS:
        command = [sys.executable, __file__, "one", str(given.folder), variant]
        command += ["--steps", str(given.steps), *(["--full"] if given.full else [])]
        command += [part for override in given.set for part in ("--set", override)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not results:
            sys.exit(f"{variant} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
        print(results[0].removeprefix("RESULT "), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["build", "run", "one"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
    if given.job == "build":
        from export_7b import build

        build(given.folder, 28)
    elif given.job == "run":
        run_all(given)
    else:
        run(given.folder, given.variants[0], given.steps, given.full, given.set)


if __name__ == "__main__":
    main()
