import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import edit_tensors, make_adapter, make_base

from kormed_edge.config import DpoConfig
from kormed_edge.errors import TrainError
from kormed_edge.progress import ignore
from train import preference
from train.pairs import Pair
from train.preference import plan_preferences, train_preferences

PAIRS = [Pair(i, f"용어 {i}은?", f"모의병 {i}", f"틀린 답 {i}") for i in range(1, 11)]
SETTINGS: dict[str, Any] = {
    "max_steps": 6, "batch_size": 2, "gradient_accumulation": 1, "learning_rate": 1e-3,
    "optimizer": "adamw_torch", "log_steps": 1, "eval_steps": 2, "save_steps": 2,
    "max_length": 256, "valid_share": 0.2, "gradient_checkpointing": False,
}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter that was fine-tuned on it, in bf16 as `kormed train` leaves it."""
    folder = tmp_path_factory.mktemp("dpo")
    base = make_base(folder / "base", intermediate_size=128, max_position_embeddings=512)
    sft = make_adapter(base, folder / "sft")
    weights = load_file(sft / WEIGHTS)
    edit_tensors(sft / WEIGHTS, **{name: value.bfloat16() for name, value in weights.items()})
    return base, sft


def train(start: tuple[Path, Path], folder: Path, on_step: Any = ignore, **changes: Any) -> Any:
    """Train into `folder`; returns the entries of its log."""
    folder.mkdir(exist_ok=True)
    config = DpoConfig(**SETTINGS | changes)
    train_preferences(*start, PAIRS, config, folder, on_plan=lambda _: None, on_step=on_step)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def values(log: list[dict[str, Any]], key: str) -> list[float]:
    return [entry[key] for entry in log if key in entry]


@pytest.fixture(scope="module")
def whole(start: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An uninterrupted training and its log."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    return folder, train(start, folder)


def test_the_reference_is_the_adapter_that_it_starts_from(whole: tuple[Path, Any]) -> None:
    assert values(whole[1], "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert values(whole[1], "rewards/margins")[0] == 0


def test_chosen_answers_come_apart_from_rejected_ones(whole: tuple[Path, Any]) -> None:
    log = whole[1]
    assert values(log, "loss")[-1] < 0.5 * values(log, "loss")[0]
    assert values(log, "rewards/margins")[-1] > 1
    assert values(log, "eval_rewards/accuracies")[-1] == 1
    assert len(values(log, "eval_loss")) == 3


def test_the_folder_is_an_adapter_like_any_other(whole: tuple[Path, Any]) -> None:
    assert sorted(path.name for path in whole[0].iterdir()) == [
        "adapter_config.json", WEIGHTS, "chat_template.jinja", "log.jsonl", "loss.png",
        "memory.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_start_is_left_as_it_was(start: tuple[Path, Path], whole: tuple[Path, Any]) -> None:
    before, after = (load_file(folder / WEIGHTS) for folder in (start[1], whole[0]))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name].float(), after[name]) for name in before)


def test_a_small_learning_rate_still_moves_the_adapter(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    train(start, tmp_path, learning_rate=1e-6, max_steps=2)
    before, after = (load_file(folder / WEIGHTS) for folder in (start[1], tmp_path))
    moved = sum((before[name].float() != after[name]).sum().item() for name in before)
    assert moved > 0.9 * sum(weight.numel() for weight in before.values())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    step: int, start: tuple[Path, Path], whole: tuple[Path, Any], tmp_path: Path
) -> None:
    def kill(done: int, *_: object) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        train(start, tmp_path, kill)
    steps: list[int] = []
    log = train(start, tmp_path, lambda done, *_: steps.append(done))
    assert steps[0] == step - step % 2 + 1
    for key in ("loss", "rewards/margins"):
        assert values(log, key) == values(whole[1], key)
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (tmp_path, whole[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
def test_layers_can_be_recomputed(
    start: tuple[Path, Path], whole: tuple[Path, Any], tmp_path: Path
) -> None:
    log = train(start, tmp_path, gradient_checkpointing=True, max_steps=2)
    assert values(log, "loss") == pytest.approx(values(whole[1], "loss")[:2], abs=1e-4)


def test_a_last_validation_is_made_where_none_was_due(
    start: tuple[Path, Path], tmp_path: Path
) -> None:
    log = train(start, tmp_path, max_steps=1)
    assert len(values(log, "eval_loss")) == 1


def test_a_loss_that_is_no_number_stops(start: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="loss is nan at step"):
        train(start, tmp_path, learning_rate=1e30)


def test_a_plan_takes_no_step(start: tuple[Path, Path]) -> None:
    plan = plan_preferences(*start, PAIRS, DpoConfig(**SETTINGS | {"max_steps": None}))
    weights = sum(weight.numel() for weight in load_file(start[1] / WEIGHTS).values())
    assert plan == preference.PairPlan(weights, 8, 2, 0, 0, 4)


def test_pairs_without_room_for_an_answer_are_refused(start: tuple[Path, Path]) -> None:
    with pytest.raises(TrainError, match="0 training and 0 validation pairs"):
        plan_preferences(*start, PAIRS, DpoConfig(**SETTINGS | {"max_length": 8}))
