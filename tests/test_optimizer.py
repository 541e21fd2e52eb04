from typing import Any

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW
from transformers import TrainingArguments

from train.optimizer import QueuedAdamW
from train.trainer import PackTrainer


def trained(optimizer: type[AdamW]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(64, 128, generator=draw)) for _ in range(3)]
    unused = torch.nn.Parameter(torch.ones(64, 128))
    learner = optimizer([*parameters, unused], lr=1e-2, optim_bits=8)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        learner.step()
    return [*parameters, unused]


def test_queued_updates_are_those_of_bitsandbytes() -> None:
    for ours, theirs in zip(trained(QueuedAdamW), trained(AdamW), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw_8bit", QueuedAdamW), ("paged_adamw_8bit", AdamW)]
)
def test_only_updates_of_states_on_the_gpu_are_queued(
    name: str, expected: Any, tmp_path: Any
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    assert PackTrainer.get_optimizer_cls_and_kwargs(arguments)[0] is expected
