import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import edit_json, edit_tensors, load, make_adapter

from export.checkpoint import Checkpoint
from export.merge import LoraDelta, is_nf4, through_nf4
from kormed_edge.errors import ExportError

Q_PROJ = "model.layers.0.self_attn.q_proj"
LORA_A = f"base_model.model.{Q_PROJ}.lora_A.weight"
LORA_B = f"base_model.model.{Q_PROJ}.lora_B.weight"


def opened(adapter: Path, base: Path) -> LoraDelta:
    delta = LoraDelta.open(adapter, tied=False)
    delta.check(Checkpoint(base).shapes)
    return delta


def test_merged_weight_is_peft_s_in_fp32_rounded_once(base: Path, adapter: Path) -> None:
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload()
    delta, checkpoint = opened(adapter, base), Checkpoint(base)
    for name, expected in merged.named_parameters():
        if delta.takes(name):
            found = delta.merged(name, checkpoint.tensor(name))
            torch.testing.assert_close(found, expected.data.bfloat16(), rtol=2**-7, atol=0)
    assert delta.finish() == 14


def test_rslora_divides_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "rs", use_rslora=True)
    assert opened(adapter, base).scale == 8 / math.sqrt(4)


def test_unused_adapter_weight_is_an_error(base: Path, adapter: Path) -> None:
    delta = opened(adapter, base)
    for module in delta.modules[1:]:
        delta.merged(f"{module}.weight", Checkpoint(base).tensor(f"{module}.weight"))
    with pytest.raises(ExportError, match="1 modules never merged"):
        delta.finish()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(adapter: Path, key: str, value: Any) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(ExportError, match=key):
        LoraDelta.open(adapter, tied=False)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("base_model.model.lm_head.lora_A.weight", "lm_head has lora_A only"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "lora_embedding_A"),
        ("base_model.model.model.norm.weight", "norm.weight"),
    ],
)
def test_stray_adapter_tensor_is_refused(adapter: Path, tensor: str, message: str) -> None:
    edit_tensors(adapter / "adapter_model.safetensors", **{tensor: torch.zeros(4, 64)})
    with pytest.raises(ExportError, match=message):
        LoraDelta.open(adapter, tied=False)


def test_lora_on_a_tied_head_is_refused(adapter: Path) -> None:
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(448, 4),
    }
    edit_tensors(adapter / "adapter_model.safetensors", **head)
    with pytest.raises(ExportError, match="lm_head with tied embeddings"):
        LoraDelta.open(adapter, tied=True)
    assert "lm_head" in LoraDelta.open(adapter, tied=False).modules


def test_missing_half_of_an_adapter_is_refused(adapter: Path) -> None:
    edit_tensors(adapter / "adapter_model.safetensors", **{LORA_B: None})
    with pytest.raises(ExportError, match="has lora_A only"):
        LoraDelta.open(adapter, tied=False)


def test_adapter_of_another_shape_is_refused(base: Path, adapter: Path) -> None:
    wide = torch.cat([load_file(adapter / "adapter_model.safetensors")[LORA_B]] * 2)
    edit_tensors(adapter / "adapter_model.safetensors", **{LORA_B: wide})
    with pytest.raises(ExportError, match=r"is \[64, 64\] in the base, \[128, 64\] in the adapter"):
        opened(adapter, base)


def test_adapter_for_a_module_that_the_base_lacks_is_refused(base: Path, adapter: Path) -> None:
    stray = {
        "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.model.layers.9.mlp.up_proj.lora_B.weight": torch.zeros(96, 4),
    }
    edit_tensors(adapter / "adapter_model.safetensors", **stray)
    with pytest.raises(ExportError, match=r"the base has no model\.layers\.9\.mlp\.up_proj"):
        opened(adapter, base)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_adapter_file_is_named(adapter: Path, file: str) -> None:
    (adapter / file).unlink()
    with pytest.raises(ExportError, match=f"no {file}"):
        LoraDelta.open(adapter, tied=False)


def test_nf4_is_coarse_only_in_the_block_of_an_outlier() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64, dtype=torch.bfloat16)
    weight[0, 0] = 100.0
    seen = through_nf4(weight)
    lost = (seen - weight).float().norm(dim=1) / weight.float().norm(dim=1)
    assert seen.dtype == torch.bfloat16
    assert torch.all(seen[0, 1:] == 0)
    assert 0.05 < lost[1:].min() < lost[1:].max() < 0.15


def test_a_4_bit_base_holds_projections_only() -> None:
    assert is_nf4("model.layers.3.mlp.down_proj.weight")
    assert not is_nf4("lm_head.weight")
    assert not is_nf4("model.layers.3.self_attn.q_proj.bias")
    assert not is_nf4("model.layers.3.input_layernorm.weight")
