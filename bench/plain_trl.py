"""TRL's SFTTrainer as it comes, at a configuration's settings: what the kit is held against."""

from pathlib import Path
from typing import Any


def plain_trl(
    base: Path, rows: list[Any], config: Any, folder: Path, tokenizer: Any, **arguments: Any
) -> Any:
    """Padded batches, gradients accumulated; `arguments` go to SFTConfig before all others."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from kormed_edge.nf4 import load_nf4

    settings = {
        "output_dir": str(folder),
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_length": config.max_length,
        "optim": config.optimizer,
        "bf16": True,
        "seed": config.seed,
        "logging_steps": config.log_steps,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    return SFTTrainer(
        model=load_nf4(base, training=True),
        args=SFTConfig(**settings | arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
