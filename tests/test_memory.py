from types import SimpleNamespace

import pytest

from kormed_edge.config import TrainConfig
from train.memory import _remedy, expected_peak

QWEN_7B = SimpleNamespace(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064,
)  # fmt: skip
WEIGHTS, TRAINABLE = 5_630_000_000, 40_370_176
RTX16 = {"batch_size": 16, "gradient_accumulation": 1, "optimizer": "adamw_8bit"}


def peak(**changes: object) -> float:
    config = TrainConfig.model_validate(RTX16 | {"gradient_checkpointing": 0} | changes)
    return expected_peak(QWEN_7B, config, WEIGHTS, TRAINABLE) / 1e9


def test_the_estimate_is_what_was_measured() -> None:
    assert peak(tokens_per_batch=2048) == pytest.approx(12.47, rel=0.05)


def test_recomputed_layers_and_shorter_packs_need_less() -> None:
    assert peak(tokens_per_batch=2560) - peak(tokens_per_batch=2048) == pytest.approx(1.6, rel=0.1)
    assert peak(tokens_per_batch=2560, gradient_checkpointing=True) < 7.5


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"gradient_checkpointing": 0}, "train.gradient_checkpointing=7"),
        ({"tokens_per_batch": 4096}, "train.tokens_per_batch=1024"),
        ({}, "train.batch_size=1 --set train.gradient_accumulation=16"),
        ({"batch_size": 1}, "train.max_length=512"),
    ],
)
def test_the_advice_is_what_costs_least(changes: dict[str, object], advice: str) -> None:
    assert advice in _remedy(TrainConfig.model_validate(changes), 28)
