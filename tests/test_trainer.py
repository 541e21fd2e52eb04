"""The kit's trainer is held against TRL's own, at the paper's settings, on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny_models import make_base
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from kormed_edge.config import TrainConfig
from kormed_edge.nf4 import load_nf4, load_tokenizer
from train.qlora import make_trainer

NOISE = 0.002
"""Relative: two orders of the same bf16 sums."""
LENGTHS = (40, 21, 90, 30, 13, 60, 25, 33)
ROWS = [
    {
        "input_ids": [3 + (7 * i + 5 * j) % 90 for j in range(size)],
        "completion_mask": [0] * (size // 3) + [1] * (size - size // 3),
    }
    for i, size in enumerate(LENGTHS * 2)
]
CONFIG: dict[str, Any] = {
    "rank": 4, "alpha": 8, "dropout": 0.0, "max_steps": 4, "batch_size": 2,
    "gradient_accumulation": 4, "learning_rate": 1e-2, "optimizer": "adamw_torch", "log_steps": 1,
    "eval_steps": 100, "save_steps": 100, "max_length": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "base"
    return make_base(folder, intermediate_size=128, max_position_embeddings=512)


def logged(trainer: Any, key: str) -> list[float]:
    trainer.train()
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's losses and gradient norms, padded batches of two, gradients accumulated."""
    config = TrainConfig(**CONFIG)
    arguments = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("plain")),
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_length=config.max_length,
        optim=config.optimizer,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        completion_only_loss=False,
    )
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=load_nf4(base, training=True),
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=load_tokenizer(base),
        peft_config=lora,
    )
    losses = logged(trainer, "loss")
    norms = [e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e]
    return losses, norms


def train(base: Path, folder: Path, **changes: Any) -> tuple[list[float], list[float]]:
    config = TrainConfig(**CONFIG | changes)
    trainer = make_trainer(base, ROWS, ROWS[:2], config, folder, load_tokenizer(base))
    losses = logged(trainer, "loss")
    return losses, [e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": 1, "batch_size": 8, "gradient_accumulation": 1},
        {"batch_size": 8, "gradient_accumulation": 1, "tokens_per_batch": 128},
    ],
    ids=["as configured", "recomputed", "one pack", "packs of 128 tokens"],
)
def test_losses_and_gradients_are_trl_s(
    changes: dict[str, Any], base: Path, plain: Any, tmp_path: Path
) -> None:
    losses, norms = train(base, tmp_path, **changes)
    assert losses == pytest.approx(plain[0], rel=NOISE)
    assert norms == pytest.approx(plain[1], rel=0.05)
    assert losses[-1] < 0.95 * losses[0]


def test_dropout_is_at_work(base: Path, plain: Any, tmp_path: Path) -> None:
    losses, _ = train(base, tmp_path, dropout=0.3)
    assert losses[0] == pytest.approx(plain[0][0], rel=NOISE)  # B is zero before the first step
    assert losses[-1] != pytest.approx(plain[0][-1], rel=NOISE)


def test_every_pass_has_masks_of_its_own(base: Path, tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG)
    trainer = make_trainer(base, ROWS, ROWS[:2], config, tmp_path, load_tokenizer(base))
    seeds: list[int] = []
    learn = trainer._forward_backward

    def noting(pack: Any) -> Any:
        seeds.append(int(trainer.dropout_seed._value))
        return learn(pack)

    trainer._forward_backward = noting  # type: ignore[method-assign]
    trainer.train()
    assert len(set(seeds)) == len(seeds) == 4 * 4


def test_as_many_layers_are_recomputed_as_told(base: Path, tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG | {"gradient_checkpointing": 1, "max_steps": 1})
    trainer: Any = make_trainer(base, ROWS, ROWS[:2], config, tmp_path, load_tokenizer(base))
    passes = [0, 0]
    for index, layer in enumerate(trainer.model.get_base_model().model.layers):

        def count(*_: Any, index: int = index) -> None:
            passes[index] += 1

        layer.input_layernorm.register_forward_hook(count)
    trainer.train()
    assert passes == [2 * 4 + 1, 4 + 1]  # and once for the validation


def test_validation_is_the_mean_over_tokens(base: Path, tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG | {"gradient_accumulation": 8, "max_steps": 1})
    trainer: Any = make_trainer(base, ROWS, ROWS, config, tmp_path, load_tokenizer(base))
    before = trainer.evaluate()["eval_loss"]
    assert logged(trainer, "loss")[0] == pytest.approx(before, rel=NOISE)


def test_validation_does_not_hang_on_the_packing(base: Path, tmp_path: Path) -> None:
    found = []
    for tokens in (None, 128):
        config = TrainConfig(**CONFIG | {"tokens_per_batch": tokens})
        folder = tmp_path / str(tokens)
        trainer: Any = make_trainer(base, ROWS, ROWS[:5], config, folder, load_tokenizer(base))
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=NOISE)
