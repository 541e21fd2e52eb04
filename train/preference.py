"""DPO with TRL's DPOTrainer: a finished adapter and preference pairs in, a better adapter out.

Source: Rafailov et al. 2023, Direct Preference Optimization.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kormed_edge.config import DpoConfig
from kormed_edge.errors import TrainError
from kormed_edge.nf4 import load_nf4, load_tokenizer
from kormed_edge.progress import Update, ignore
from train.adapter_folder import write_adapter
from train.arguments import CHECKPOINTS, trainer_arguments
from train.pairs import Pair, encode_pairs, split_pairs
from train.resuming import last_checkpoint, progress_callback

REMEDY = "lower dpo.learning_rate, and look at the pairs of that step"


@dataclass(frozen=True)
class PairPlan:
    """What a preference training is about to do; printed before the first step and recorded."""

    trainable_parameters: int
    pairs: int
    valid_pairs: int
    left_out: int
    cut_answers: int
    steps: int


def train_preferences(
    base: Path,
    sft: Path,
    pairs: Sequence[Pair],
    config: DpoConfig,
    folder: Path,
    *,
    on_plan: Callable[[PairPlan], None],
    on_step: Update,
) -> dict[str, Any]:
    """Train the adapter in `sft` on pairs into `folder`, going on from its last checkpoint.

    Returns facts for the manifest. Raises `DataError` for too few pairs, and `TrainError` if none
    fits or a loss is not a number.
    """
    trainer, plan = _make_trainer(base, sft, pairs, config, folder, on_step)
    on_plan(plan)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / CHECKPOINTS))
    _write_results(trainer, base, folder, time.monotonic() - started)
    return asdict(plan)


def plan_preferences(base: Path, sft: Path, pairs: Sequence[Pair], config: DpoConfig) -> PairPlan:
    """Load everything and say what training would do, without a step."""
    with tempfile.TemporaryDirectory() as folder:
        return _make_trainer(base, sft, pairs, config, Path(folder), ignore)[1]


def _make_trainer(
    base: Path, sft: Path, pairs: Sequence[Pair], config: DpoConfig, folder: Path, on_step: Update
) -> tuple[Any, PairPlan]:
    from datasets import Dataset
    from transformers import PrinterCallback

    from train.pair_trainer import PairTrainer

    tokenizer = load_tokenizer(base)
    encoded = [
        encode_pairs(part, tokenizer, config.max_length)
        for part in split_pairs(pairs, config.valid_share, config.seed)
    ]
    (rows, cut), (valid_rows, valid_cut) = encoded
    _require_rows(rows, valid_rows, config.max_length)
    trainer = PairTrainer(
        model=_open_adapter(base, sft),
        args=_dpo_config(config, folder),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(valid_rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    per_epoch = math.ceil(len(rows) / (config.batch_size * config.gradient_accumulation))
    steps = config.max_steps or math.ceil(per_epoch * config.epochs)
    trainer.add_callback(progress_callback(on_step, steps, folder, REMEDY))
    model: Any = trainer.model
    plan = PairPlan(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        pairs=len(rows),
        valid_pairs=len(valid_rows),
        left_out=len(pairs) - len(rows) - len(valid_rows),
        cut_answers=cut + valid_cut,
        steps=steps,
    )
    return trainer, plan


def _open_adapter(base: Path, sft: Path) -> Any:
    from peft import PeftModel

    model: Any = PeftModel
    return model.from_pretrained(load_nf4(base, training=True), str(sft), is_trainable=True)


def _require_rows(rows: Sequence[Any], valid_rows: Sequence[Any], max_length: int) -> None:
    if not rows or not valid_rows:
        raise TrainError(
            f"{len(rows)} training and {len(valid_rows)} validation pairs whose prompt leaves room "
            f"for an answer in {max_length} tokens",
            "at least one of each",
            "raise dpo.max_length, or collect more pairs",
        )


def _dpo_config(config: DpoConfig, folder: Path) -> Any:
    from trl import DPOConfig  # type: ignore[attr-defined]

    return DPOConfig(
        **trainer_arguments(config, folder),
        beta=config.beta,
        loss_type=[config.loss],
        label_smoothing=config.label_smoothing,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _write_results(trainer: Any, base: Path, folder: Path, seconds: float) -> None:
    from train.margin_figure import draw_margins

    draw_margins(trainer.state.log_history, folder / "loss.png")
    write_adapter(trainer, base, folder, {"train_seconds": round(seconds, 1)})
