from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_models import edit_tensors, load, make_adapter, make_base

from export.logits import Answer, LoadedGguf, hf_rows, load_hf
from export.merge import is_nf4, through_nf4

NO_FILE = Path("none")
ANSWER = Answer(prompt=[5, 9, 100, 7], tokens=[3, 40, 8], file=NO_FILE)


def whole_in_fp32(base: Path, adapter: Path, onto: str) -> np.ndarray:
    model = load(base)
    for name, parameter in model.named_parameters():
        if onto == "nf4" and is_nf4(name):
            parameter.data = through_nf4(parameter.data).float()
    return hf_rows(PeftModel.from_pretrained(model, str(adapter)).eval(), ANSWER)


@pytest.mark.parametrize("onto", ["original", "nf4"])
@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_a_layer_at_a_time_computes_what_the_whole_model_in_fp32_does(
    family: str, onto: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "adapter")
    model = load_hf(base, adapter, onto)
    assert np.array_equal(hf_rows(model, ANSWER), whole_in_fp32(base, adapter, onto))
    assert np.array_equal(hf_rows(model, ANSWER), hf_rows(model, ANSWER))


def test_weights_rest_in_bf16_and_the_adapter_in_fp32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = load_hf(base, make_adapter(base, tmp_path / "adapter"), "original")
    hf_rows(model, ANSWER)
    kept = {name: p.dtype for name, p in model.named_parameters()}
    assert {t for name, t in kept.items() if "lora" in name} == {torch.float32}
    assert {t for name, t in kept.items() if "lora" not in name} == {torch.bfloat16}


def test_weights_that_bf16_cannot_hold_stay_in_fp32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    exact = torch.full((64,), 1.0001)
    edit_tensors(base / "model.safetensors", **{"model.norm.weight": exact})
    assert torch.equal(load_hf(base, None, "original").model.norm.weight.data, exact)


def test_gguf_that_adds_nothing_gives_the_same_tokens_either_way(scripted_gguf: Path) -> None:
    with LoadedGguf(scripted_gguf, vocab_only=True) as model:
        assert model.tokenize("심전도") == model.tokenize("심전도", add_special=True) != []
