"""What TRL's trainers for fine-tuning and for preferences are told alike."""

from pathlib import Path
from typing import Any

from kormed_edge.config import DpoConfig, TrainConfig

CHECKPOINTS = "checkpoints"
"""The folder of a stage in which a stopped training finds where it was."""


def trainer_arguments(config: TrainConfig | DpoConfig, folder: Path) -> dict[str, Any]:
    """Optimizer, schedule, logs and checkpoints; nothing is reported to anyone."""
    import torch

    return {
        "output_dir": str(folder / CHECKPOINTS),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,  # a share of all steps when below 1
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_length,
        "optim": config.optimizer,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would hide what `progress_callback` looks for
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
