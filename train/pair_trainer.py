"""TRL's DPOTrainer on pairs that are tokenized already, its adapters in full precision."""

from typing import Any

import torch
from trl import DPOTrainer  # type: ignore[attr-defined]


class PairTrainer(DPOTrainer):  # type: ignore[misc, unused-ignore]
    """The reference is a frozen copy of the adapter on the same base (TRL's "ref" adapter)."""

    def __init__(self, **given: Any) -> None:
        """TRL makes a 4-bit base's adapter bf16, whose steps of 0.4 % are larger than what DPO's
        learning rates add to a weight: it would hardly learn."""
        super().__init__(**given)
        model: Any = self.model
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(torch.float32)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """TRL would ask the base's template; ours are the token ids of fine-tuning."""
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint is not published."""
