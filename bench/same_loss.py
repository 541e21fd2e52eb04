"""Does the kit's trainer learn what TRL's SFTTrainer learns? A real model, real text, a CPU.

    python bench/same_loss.py [--base smollm2-135m] [--steps 12]

Four runs over the same samples in the same order: TRL at the paper's settings twice, with two seeds
for the adapter's first weights and its dropout, which is the noise; the kit with the first seed, in
micro-batches as configured, and packed. One JSON line each: training losses, and the validation
loss after the last step.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from plain_trl import plain_trl

ROOT = Path(__file__).parent.parent
RUNS = {
    "TRL": {"seed": 42},
    "TRL, another seed": {"seed": 43},
    "kit": {"seed": 42},
    "kit, packed": {
        "seed": 42,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "tokens_per_batch": 512,
    },
}


def records(n: int) -> tuple[list[Any], list[Any]]:
    """Short ones, because a CPU is slow: training and validation samples."""
    from train.source import read_source

    read = read_source("samples", "error").records
    short = [r for r in read if r.q_type != "multiple_choice"][::-1]
    return short[:n], short[n : n + 24]


def losses(name: str, base: Path, steps: int, folder: Path) -> dict[str, Any]:
    from kormed_edge.config import TrainConfig
    from kormed_edge.nf4 import load_tokenizer
    from train.dataset import encode_records
    from train.qlora import make_trainer

    config = TrainConfig.model_validate(
        {
            "batch_size": 2, "gradient_accumulation": 2, "max_steps": steps, "log_steps": 1,
            "learning_rate": 1e-3, "optimizer": "adamw_torch", "max_length": 512,
            "eval_steps": steps, "save_steps": 10_000,
        }
        | RUNS[name]
    )  # fmt: skip
    tokenizer = load_tokenizer(base)
    rows, valid = (
        encode_records(each, tokenizer, config.max_length)[0]
        for each in records(steps * config.samples_per_step)
    )
    make = _trl if name.startswith("TRL") else make_trainer
    trainer: Any = make(base, rows, valid, config, folder, tokenizer)
    trainer.train()
    log = trainer.state.log_history
    found = [round(entry["loss"], 4) for entry in log if "loss" in entry]
    return {"run": name, "losses": found, "validation": _validation(trainer, base, valid)}


def _trl(
    base: Path, rows: list[Any], _: list[Any], config: Any, folder: Path, tokenizer: Any
) -> Any:
    return plain_trl(
        base, rows, config, folder, tokenizer,
        use_cpu=True, data_seed=42, completion_only_loss=False, dataloader_pin_memory=False,
    )  # fmt: skip


def _validation(trainer: Any, base: Path, valid: list[Any]) -> float:
    """Mean over the validation tokens, computed in one way for all, without either's packing."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from torch.nn.functional import cross_entropy

    from kormed_edge.nf4 import load_nf4

    model = get_peft_model(load_nf4(base), trainer.model.peft_config["default"])
    set_peft_model_state_dict(model, get_peft_model_state_dict(trainer.model))
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in valid:
            ids = torch.tensor([row["input_ids"]])
            logits = model.eval()(input_ids=ids).logits[0, :-1].float()
            total += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return round(total / count, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from kormed_edge.base import resolve_base

    base = Path(resolve_base(given.base).path)
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(losses(name, base, given.steps, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
