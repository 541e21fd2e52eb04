import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import edit_tensors, make_base
from transformers import Qwen2Config, Qwen2ForCausalLM

from kormed_edge.config import TrainConfig
from kormed_edge.errors import TrainError
from kormed_edge.nf4 import load_nf4
from kormed_edge.progress import ignore
from kormed_edge.records import Record
from train import qlora
from train.packing import IGNORED
from train.qlora import Plan, count_parameters, plan_training, train_adapter

RECORDS = [
    Record(f"q{i}", "obgyn", "short_answer", f"용어 {i}은?", f"모의병 {i}") for i in range(12)
]
TRAIN, VALID = RECORDS[:8], RECORDS[8:]
SETTINGS: dict[str, Any] = {
    "rank": 4, "alpha": 8, "max_steps": 6, "batch_size": 2, "gradient_accumulation": 1,
    "learning_rate": 1e-2, "optimizer": "adamw_torch", "log_steps": 1, "eval_steps": 2,
    "save_steps": 2, "max_length": 512, "gradient_checkpointing": False, "loss": "answer",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qlora") / "base"
    return make_base(folder, intermediate_size=128, max_position_embeddings=512)


def train(base: Path, folder: Path, on_step: Any = ignore, **changes: Any) -> list[dict[str, Any]]:
    """Train an adapter into `folder`; returns its log without wall times."""
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**SETTINGS | changes)
    train_adapter(base, TRAIN, VALID, config, folder, on_plan=lambda _: None, on_step=on_step)
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if "_second" not in key}
        | {"train_runtime": 0, "eval_runtime": 0}
        for line in lines
    ]


def losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An uninterrupted training and its log."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    return folder, train(base, folder)


@pytest.fixture
def plan(base: Path) -> Callable[..., Plan]:
    def make(records: list[Record] = TRAIN, **changes: Any) -> Plan:
        return plan_training(base, records, VALID, TrainConfig(**SETTINGS | changes))

    return make


def trainer(base: Path, folder: Path, **changes: Any) -> Any:
    config = TrainConfig(**SETTINGS | changes)
    return qlora._make_trainer(base, TRAIN, VALID, config, folder, ignore, {})[0]


def test_the_loss_falls(whole: tuple[Path, Any]) -> None:
    steps, values = zip(*losses(whole[1]), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values[-1] < 0.8 * values[0]
    validation = [entry["eval_loss"] for entry in whole[1] if "eval_loss" in entry]
    assert len(validation) == 3
    assert validation[-1] < validation[0]


def test_the_base_stays_frozen_and_the_adapter_moves(base: Path, tmp_path: Path) -> None:
    trained = trainer(base, tmp_path)
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    trained.train()
    moved = {n for n, p in trained.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {name for name in before if "lora_" in name}


def test_validation_leaves_the_weights_as_they_were(base: Path, tmp_path: Path) -> None:
    trained = trainer(base, tmp_path)
    trained.evaluate()
    weights = [m.weight for m in trained.model.modules() if isinstance(m, Linear4bit)]
    assert len(weights) == 14
    assert not any(getattr(w.quant_state, "packing_format_for_cpu", False) for w in weights)


def test_the_same_seed_gives_the_same_losses(
    base: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    torch.manual_seed(99)
    assert train(base, tmp_path / "again") == whole[1]
    assert losses(train(base, tmp_path / "other", seed=43)) != losses(whole[1])


class Killed(BaseException):
    pass


def kill_at(step: int) -> Any:
    def on_step(done: int, *_: object) -> None:
        if done == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    step: int, base: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(base, tmp_path, kill_at(step))
    steps: list[int] = []
    log = train(base, tmp_path, lambda done, *_: steps.append(done))
    assert steps[0] == step - step % 2 + 1
    assert losses(log) == losses(whole[1])
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, whole[0])
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("state", [None, b"", b'{"global_step": 4, "log_hi'])
def test_a_half_written_checkpoint_is_passed_over(
    state: bytes | None, base: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(base, tmp_path, kill_at(5))
    half = tmp_path / qlora.CHECKPOINTS / "checkpoint-4" / "trainer_state.json"
    half.unlink()
    if state is not None:
        half.write_bytes(state)
    steps: list[int] = []
    log = train(base, tmp_path, lambda done, *_: steps.append(done))
    assert steps[0] == 3
    assert losses(log) == losses(whole[1])


def test_the_folder_holds_what_the_next_stages_read(whole: tuple[Path, Any]) -> None:
    assert sorted(path.name for path in whole[0].iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "log.jsonl",
        "loss.png", "memory.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_tokenizer_is_the_base_s_byte_for_byte(base: Path, whole: tuple[Path, Any]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (whole[0] / name).read_bytes() == (base / name).read_bytes()


def test_nothing_but_the_tokenizer_is_copied_from_the_base(base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "base"))
    (other / "pytorch_model.bin").write_bytes(b"the same weights again")
    (other / "vocab.json").write_bytes(b"{}")
    train(other, tmp_path / "adapter", max_steps=1)
    assert not (tmp_path / "adapter" / "pytorch_model.bin").exists()
    assert (tmp_path / "adapter" / "vocab.json").read_bytes() == b"{}"


def test_the_last_step_is_always_validated(base: Path, tmp_path: Path) -> None:
    log = train(base, tmp_path, max_steps=3, eval_steps=100, save_steps=100)
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [3]


def test_a_loss_that_is_no_number_names_its_step(base: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    name = "model.norm.weight"
    norm = load_file(broken / "model.safetensors")[name]
    edit_tensors(broken / "model.safetensors", **{name: norm * float("nan")})
    with pytest.raises(TrainError, match=r"the loss is nan at step 1, samples q\d, q\d\n"):
        train(broken, tmp_path / "adapter")


def test_a_domain_s_weight_multiplies_its_loss(base: Path, tmp_path: Path) -> None:
    plain = losses(train(base, tmp_path / "plain", max_steps=1))
    config = TrainConfig(**SETTINGS | {"max_steps": 1})
    folder = tmp_path / "weighted"
    folder.mkdir()
    train_adapter(
        base, TRAIN, VALID, config, folder,
        on_plan=lambda _: None, on_step=ignore, domain_weights={"obgyn": 2.0},
    )  # fmt: skip
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(2 * plain[0][1], rel=0.001)


def test_a_training_that_blows_up_is_stopped(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"loss is (nan|inf) at step [2-6]") as caught:
        train(base, tmp_path, learning_rate=1e30, schedule="constant", warmup_ratio=0)
    assert "train.learning_rate" in str(caught.value.remedy)


@pytest.mark.parametrize(("loss", "counted"), [("answer", False), ("sequence", True)])
def test_the_loss_counts_the_prompt_only_if_told(
    loss: str, counted: bool, base: Path, tmp_path: Path
) -> None:
    built = trainer(base, tmp_path, loss=loss)
    rows = [built.train_dataset[i] for i in range(2)]
    (pack,) = built.data_collator(rows)["packs"]
    targets = pack["targets"][0].tolist()
    first = targets[: len(rows[0]["input_ids"])]
    text = built.processing_class.decode([t for t in first if t != IGNORED])
    assert text.endswith("모의병 0<|im_end|>\n")
    assert text.startswith("system") == counted
    assert first[-1] == IGNORED  # or it would foresee the next sample


def test_a_plan_counts_what_will_be_done(plan: Callable[..., Plan]) -> None:
    found = plan(max_steps=None, epochs=1.5, batch_size=3, gradient_accumulation=2)
    assert found.samples == 8
    assert found.steps == 3  # 8 samples in micro-batches of 3, two a step, one and a half times
    assert found.cut_samples == 0
    assert found.trainable_parameters == 2 * 4 * (
        (64 + 64) + (64 + 32) + (64 + 32) + (64 + 64) + 3 * (64 + 128)
    )
    weights = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128)
    assert found.total_parameters - found.printed_total == weights // 2  # two an element
    assert plan(max_steps=5).steps == 5


def test_the_paper_s_parameters_are_counted_as_the_paper_does() -> None:
    config = TrainConfig()
    shape = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    lora = LoraConfig(r=config.rank, target_modules=list(config.target_modules))
    with torch.device("meta"):
        model: Any = get_peft_model(Qwen2ForCausalLM(shape), lora)
        for name, module in model.named_modules():
            if name.endswith("base_layer"):
                packed = torch.empty(module.weight.numel() // 2, 1, dtype=torch.uint8)
                module.weight = Params4bit(packed, requires_grad=False)
    assert count_parameters(model) == (40_370_176, 7_655_986_688, 4_393_342_464)


def test_cut_samples_are_counted_and_answers_beyond_the_end_left_out(
    plan: Callable[..., Plan],
) -> None:
    long = Record("long", "obgyn", "short_answer", "아주 긴 질문 " * 40, "모의병")
    found = plan([*TRAIN, long], max_length=300)
    assert (found.samples, found.cut_samples) == (8, 1)


def test_empty_splits_are_refused(base: Path, tmp_path: Path) -> None:
    for train_records, valid in (([], VALID), (TRAIN, [])):
        with pytest.raises(TrainError, match="at least one of each"):
            train_adapter(
                base, train_records, valid, TrainConfig(), tmp_path,
                on_plan=lambda _: None, on_step=ignore,
            )  # fmt: skip


def test_nf4_holds_half_a_byte_a_weight(base: Path) -> None:
    model = load_nf4(base)
    projection = model.model.layers[0].mlp.up_proj.weight
    assert (type(projection).__name__, projection.numel()) == ("Params4bit", 64 * 128 // 2)
    assert projection.quant_state.quant_type == "nf4"
    assert projection.quant_state.nested
    assert model.lm_head.weight.dtype == torch.bfloat16
