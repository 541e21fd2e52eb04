from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_base

from kormed_edge.config import TrainConfig
from kormed_edge.nf4 import load_tokenizer
from train.qlora import make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU"),
]
LENGTHS = (40, 210, 90, 300, 130, 60, 250, 30)
ROWS = [
    {"input_ids": [3 + (7 * i + 5 * j) % 90 for j in range(size)], "completion_mask": [1] * size}
    for i, size in enumerate(LENGTHS * 4)
]


def losses(base: Path, folder: Path, **changes: Any) -> list[float]:
    config = TrainConfig(
        rank=4, max_steps=6, batch_size=8, gradient_accumulation=1, tokens_per_batch=1024,
        learning_rate=5e-3, optimizer="adamw_torch", log_steps=1, eval_steps=3, save_steps=100,
        **{"gradient_checkpointing": 0, **changes},
    )  # fmt: skip
    trainer = make_trainer(base, ROWS, ROWS[:8], config, folder, load_tokenizer(base))
    trainer.train()
    return [e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history[:-1]]


@pytest.mark.parametrize("recomputed", [0, 1, True])
def test_replayed_passes_learn_as_plain_ones_do(recomputed: bool | int, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", max_position_embeddings=1024)
    plain = losses(base, tmp_path / "plain", compile=False)
    replayed = losses(base, tmp_path / "replayed", gradient_checkpointing=recomputed)
    assert replayed == pytest.approx(plain, rel=0.01)
    assert plain[-1] < 0.97 * plain[0]
