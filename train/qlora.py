"""NF4 QLoRA with TRL's SFTTrainer: base model and records in, PEFT adapter out.

Sources: Dettmers et al. 2023 (NF4, double quantization); Song & Erdenebayar 2026, Tables 1 and 2.
"""

import json
import math
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kormed_edge.config import TrainConfig
from kormed_edge.errors import TrainError
from kormed_edge.manifest import write_json
from kormed_edge.nf4 import load_nf4, load_tokenizer
from kormed_edge.progress import Update, ignore
from kormed_edge.records import Record
from train.dataset import encode_records

CHECKPOINTS = "checkpoints"
TOKENIZER_FILES = (
    "tokenizer*", "chat_template*", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a training run is about to do; printed before the first step and recorded."""

    trainable_parameters: int
    total_parameters: int
    printed_total: int
    weights_bytes: int
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
) -> dict[str, Any]:
    """Train an adapter into `folder`, going on from its last checkpoint if it has one.

    Returns facts for the manifest. Raises `TrainError` for empty splits and losses that are not
    numbers.
    """
    if not train or not valid:
        raise TrainError(
            f"{len(train)} training and {len(valid)} validation records",
            "at least one of each",
            "read more records, or change data.ratios",
        )
    trainer, plan = _make_trainer(base, train, valid, config, folder, on_step)
    on_plan(plan)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS))
    _write_results(trainer, base, folder, plan, time.monotonic() - started)
    return asdict(plan)


def plan_training(
    base: Path, train: list[Record], valid: list[Record], config: TrainConfig
) -> Plan:
    """Load everything that training needs and say what it would do, without a step."""
    with tempfile.TemporaryDirectory() as folder:
        return _make_trainer(base, train, valid, config, Path(folder), ignore)[1]


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
) -> tuple[Any, Plan]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTTrainer  # type: ignore[attr-defined]

    tokenizer = load_tokenizer(base)
    rows, cut = encode_records(train, tokenizer, config.max_length)
    valid_rows, _ = encode_records(valid, tokenizer, config.max_length)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )

    class Trainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
        """PEFT loads a checkpoint's adapter as fp32; a resumed run must go on in its own bf16."""

        def _load_from_checkpoint(self, *arguments: Any, **named: Any) -> None:
            model: Any = self.model
            dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
            super()._load_from_checkpoint(*arguments, **named)
            for name, parameter in model.named_parameters():
                if name in dtypes:
                    parameter.data = parameter.data.to(dtypes[name])

    trainer = Trainer(
        model=load_nf4(base, training=True),
        args=_sft_config(config, folder),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(valid_rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    kept: Any = trainer.train_dataset  # without those whose answer was cut off altogether
    samples = len(kept)
    steps = _steps(config, samples)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress_callback(on_step, steps, folder))
    model: Any = trainer.model
    trainable, total, stored = count_parameters(model)
    plan = Plan(
        trainable_parameters=trainable,
        total_parameters=total,
        printed_total=stored,
        weights_bytes=model.get_memory_footprint(),
        samples=samples,
        cut_samples=cut,
        tokens_per_epoch=sum(len(row["input_ids"]) for row in rows),
        steps=steps,
    )
    return trainer, plan


def _steps(config: TrainConfig, samples: int) -> int:
    per_epoch = math.ceil(samples / config.batch_size / config.gradient_accumulation)
    return config.max_steps or math.ceil(per_epoch * config.epochs)


def _sft_config(config: TrainConfig, folder: Path) -> Any:
    import torch
    from trl import SFTConfig  # type: ignore[attr-defined]

    return SFTConfig(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,  # a share of all steps when below 1
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_length,
        optim=config.optimizer,
        gradient_checkpointing=config.gradient_checkpointing,
        completion_only_loss=config.loss == "answer",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=config.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide what `_progress_callback` looks for
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; one that a kill cut short is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
    return None


def _progress_callback(on_step: Update, steps: int, folder: Path) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Shows the loss, keeps log.jsonl equal to the trainer's history, stops at a NaN."""

        note = ""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            on_step(state.global_step, steps, self.note)

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
            logs = given["logs"]
            for key in ("loss", "eval_loss"):
                _require_finite(key, logs.get(key, 0.0), state.global_step)
            if "loss" in logs:
                self.note = f"loss {logs['loss']:.3f}"
            _write_log(folder / "log.jsonl", state.log_history)

    return Progress()


def _require_finite(name: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainError(
            f"the {name} is {loss} at step {step}",
            "a finite number",
            "lower train.learning_rate, and look at the records of that step",
        )


def _write_log(path: Path, history: list[dict[str, Any]]) -> None:
    lines = (json.dumps(entry) + "\n" for entry in history)
    path.write_text("".join(lines), encoding="utf-8")


def _write_results(trainer: Any, base: Path, folder: Path, plan: Plan, seconds: float) -> None:
    from train.loss_figure import draw_loss

    # "auto" would ask the hub whether the vocabulary was resized (peft#1452); it never is here.
    trainer.model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for path in (path for pattern in TOKENIZER_FILES for path in base.glob(pattern)):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    _write_log(folder / "log.jsonl", trainer.state.log_history)
    draw_loss(trainer.state.log_history, folder / "loss.png")
    write_json(folder / "memory.json", _memory(plan, seconds))
    shutil.rmtree(folder / CHECKPOINTS)


def _memory(plan: Plan, seconds: float) -> dict[str, Any]:
    import torch

    memory: dict[str, Any] = {
        "weights_bytes": plan.weights_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "train_seconds": round(seconds, 1),
    }
    if torch.cuda.is_available():
        memory["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        memory["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return memory
