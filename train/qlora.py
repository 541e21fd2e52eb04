"""NF4 QLoRA with TRL's SFTTrainer: base model and records in, PEFT adapter out.

Sources: Dettmers et al. 2023 (NF4, double quantization); Song & Erdenebayar 2026, Tables 1 and 2.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kormed_edge.config import TrainConfig
from kormed_edge.errors import TrainError
from kormed_edge.nf4 import load_nf4, load_tokenizer
from kormed_edge.progress import Update, ignore
from kormed_edge.ranks import this_rank
from kormed_edge.records import Record
from train.adapter_folder import write_adapter
from train.arguments import CHECKPOINTS, trainer_arguments
from train.dataset import encode_records
from train.memory import expected_peak, out_of_memory
from train.resuming import last_checkpoint, progress_callback, require_finite
from train.tensorboard import tensorboard_callback

if TYPE_CHECKING:
    from train.trainer import PackTrainer


@dataclass(frozen=True)
class Plan:
    """What a training run is about to do; printed before the first step and recorded."""

    trainable_parameters: int
    total_parameters: int
    printed_total: int
    weights_bytes: int
    expected_peak_bytes: int
    samples: int
    cut_samples: int
    tokens_per_epoch: int
    steps: int

    @property
    def trainable_share(self) -> float:
        return self.trainable_parameters / self.total_parameters


def train_adapter(
    base: Path,
    train: list[Record],
    valid: list[Record],
    config: TrainConfig,
    folder: Path,
    *,
    on_plan: Callable[[Plan], None],
    on_step: Update,
    domain_weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Train an adapter into `folder`, going on from its last checkpoint if it has one.

    `domain_weights` multiply the loss of a domain's training samples.

    Returns facts for the manifest. Raises `TrainError` for empty splits, losses that are not
    numbers, and a GPU without enough memory.
    """
    import torch

    if not train or not valid:
        raise TrainError(
            f"{len(train)} training and {len(valid)} validation records",
            "at least one of each",
            "read more records, or change data.ratios",
        )
    weights = domain_weights or {}
    trainer, plan = _make_trainer(base, train, valid, config, folder, on_step, weights)
    on_plan(plan)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder / CHECKPOINTS))
    except torch.OutOfMemoryError as error:
        layers = trainer.model.config.num_hidden_layers
        raise out_of_memory(error, config, layers) from error
    if trainer.is_world_process_zero():
        _write_results(trainer, base, folder, plan, time.monotonic() - started)
    return asdict(plan)


def plan_training(
    base: Path, train: list[Record], valid: list[Record], config: TrainConfig
) -> Plan:
    """Load everything that training needs and say what it would do, without a step."""
    with tempfile.TemporaryDirectory() as folder:
        return _make_trainer(base, train, valid, config, Path(folder), ignore, {})[1]


def count_parameters(model: Any) -> tuple[int, int, int]:
    """Trainable parameters, all parameters, and the count of stored elements.

    NF4 packs two weights into one stored element. The paper's total of 4,393,342,464 counts
    stored elements; its true trainable share is 0.53 %, not 0.92 %.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stored = sum(p.numel() for p in model.parameters())
    packed = sum(p.numel() for p in model.parameters() if type(p).__name__ == "Params4bit")
    return trainable, stored + packed, stored


def _make_trainer(
    base: Path,
    train: list[Record],
    valid: list[Record],
    config: TrainConfig,
    folder: Path,
    on_step: Update,
    weights: Mapping[str, float],
) -> tuple[Any, Plan]:
    tokenizer = load_tokenizer(base)
    rows, cut = encode_records(train, tokenizer, config.max_length)
    for row, record in zip(rows, train, strict=True):
        row["weight"] = weights.get(record.domain, 1.0)
    valid_rows, _ = encode_records(valid, tokenizer, config.max_length)
    trainer = make_trainer(base, rows, valid_rows, config, folder, tokenizer)
    kept: Any = trainer.train_dataset  # without those whose answer was cut off altogether
    samples = len(kept)
    steps = _steps(config, samples)
    trainer.add_callback(_progress(trainer, on_step, steps, folder))
    if config.tensorboard and trainer.is_world_process_zero():
        trainer.add_callback(tensorboard_callback(folder / "tensorboard"))
    model: Any = trainer.model
    trainable, total, stored = count_parameters(model)
    plan = Plan(
        trainable_parameters=trainable,
        total_parameters=total,
        printed_total=stored,
        weights_bytes=model.get_memory_footprint(),
        expected_peak_bytes=expected_peak(
            model.config, config, model.get_memory_footprint(), trainable
        ),
        samples=samples,
        cut_samples=cut,
        tokens_per_epoch=sum(len(row["input_ids"]) for row in rows),
        steps=steps,
    )
    return trainer, plan


def make_trainer(
    base: Path,
    rows: list[dict[str, Any]],
    valid_rows: list[dict[str, Any]],
    config: TrainConfig,
    folder: Path,
    tokenizer: Any,
) -> "PackTrainer":
    """The base in NF4 with a fresh adapter, ready to train on `rows` of `encode_records`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback

    from train.attention import NAME
    from train.layers import PACK_MULTIPLE, compile_layers, recompute_layers
    from train.packing import PackCollator
    from train.trainer import PackTrainer

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    compiled = config.compile and torch.cuda.is_available()
    trainer = PackTrainer(
        collator=PackCollator(
            config.batch_size,
            config.tokens_per_batch,
            config.max_length,
            PACK_MULTIPLE if compiled else 1,
        ),
        seed=config.seed,
        model=load_nf4(base, training=True, attention=NAME),
        args=_sft_config(config, folder),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(valid_rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    peft_model: Any = trainer.model
    model = peft_model.get_base_model()
    if compiled:
        compile_layers(model)
        if trainer.accelerator.num_processes == 1:
            trainer.replay_passes()
    recompute_layers(model, config.recomputed(model.config.num_hidden_layers))
    return trainer


def samples_per_rank(config: TrainConfig) -> int:
    """Of an optimizer step's samples, those of one rank. Raises `TrainError` for a broken share."""
    ranks = this_rank().count
    share, rest = divmod(config.samples_per_step, ranks)
    if rest:
        raise TrainError(
            f"{config.samples_per_step} samples a step for {ranks} ranks",
            "a number of ranks by which the samples can be divided",
            f"--num_processes {math.gcd(config.samples_per_step, ranks)}",
        )
    return share


def _steps(config: TrainConfig, samples: int) -> int:
    per_epoch = math.ceil(samples / config.samples_per_step)
    return config.max_steps or math.ceil(per_epoch * config.epochs)


def _sft_config(config: TrainConfig, folder: Path) -> Any:
    from trl import SFTConfig  # type: ignore[attr-defined]

    return SFTConfig(
        **trainer_arguments(config, folder),
        per_device_train_batch_size=samples_per_rank(config),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # the ranks' dropout masks differ
        gradient_checkpointing=False,  # `recompute_layers` decides for each layer
        completion_only_loss=config.loss == "answer",
        remove_unused_columns=False,  # a step's samples are named by their ids
    )


REMEDY = "lower train.learning_rate, and look at the records of that step"


def _progress(trainer: "PackTrainer", on_step: Update, steps: int, folder: Path) -> Any:
    """Shows speed and memory as well, and names the samples of a step whose loss is no number."""
    import torch

    def pace() -> Iterator[str]:
        yield f"{trainer.tokens_per_second():,.0f} tokens/s"
        if torch.cuda.is_available():
            yield f"peak {torch.cuda.max_memory_reserved() / 1e9:.1f} GB"

    def check() -> None:
        for number, loss, ids in trainer.recent_steps():
            require_finite("loss", loss, number, REMEDY, ids)

    return progress_callback(on_step, steps, folder, REMEDY, pace=pace, check=check)


def _write_results(trainer: Any, base: Path, folder: Path, plan: Plan, seconds: float) -> None:
    from train.loss_figure import draw_loss

    draw_loss(trainer.state.log_history, folder / "loss.png")
    memory = {
        "weights_bytes": plan.weights_bytes,
        "expected_peak_bytes": plan.expected_peak_bytes,
        "tokens_per_second": round(trainer.tokens_per_second(), 1),
        "train_seconds": round(seconds, 1),
    }
    write_adapter(trainer, base, folder, memory)
