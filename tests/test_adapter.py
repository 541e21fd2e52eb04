import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf_file import keys, tensors
from safetensors.torch import load_file
from tiny_models import CORPUS, edit_json, edit_tensors, make_adapter, make_base

from export.adapter import write_adapter_gguf
from export.convert import Provenance, write_gguf
from export.readback import check_file
from kormed_edge.errors import BaseModelError, DiskSpaceError, ExportError

GIVEN = Provenance(
    name="Tiny Korean",
    run="demo",
    version="1.2.3",
    prompt="당신은 의학 어시스턴트입니다.",
    base_model="someone/Tiny-Base",
    base_revision="abc123",
)
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-q-and-k": ("llama", {"target_modules": ["q_proj", "k_proj"]}),
    "qwen2": ("qwen2", {}),
    "qwen2-rslora": ("qwen2", {"use_rslora": True}),
    "qwen3": ("qwen3", {}),
}
# What names the run, and what llama.cpp's converter reads from folder names and PEFT's README.
UNLIKE = ("kormed.", "general.name", "general.base_model.", "general.tags", "GGUF.kv_count")


def in_type(adapter: Path, dtype: torch.dtype) -> None:
    weights = adapter / "adapter_model.safetensors"
    edit_tensors(weights, **{name: t.to(dtype) for name, t in load_file(weights).items()})


def add_head(adapter: Path) -> None:
    """PEFT would save the head itself as well, which no adapter of the kit carries."""
    head = {"A": torch.randn(4, 64), "B": torch.randn(448, 4) * 0.1}
    added = {f"base_model.model.lm_head.lora_{side}.weight": t for side, t in head.items()}
    edit_tensors(adapter / "adapter_model.safetensors", **added)


def log_probabilities(model: Path, adapter: Path | None = None) -> npt.NDArray[np.float64]:
    """llama.cpp's next-token log-probabilities at every position of a sentence."""
    lora = str(adapter) if adapter else None
    llama = llama_cpp.Llama(str(model), lora_path=lora, n_ctx=128, logits_all=True, verbose=False)
    tokens = llama.tokenize(CORPUS[0].encode(), add_bos=False)
    llama.eval(tokens)
    rows: npt.NDArray[np.float64] = llama.scores[: len(tokens)].astype(np.float64)
    llama.close()
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_with_the_adapter_says_what_the_merged_model_says(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family, settings = ADAPTERS[name]
    base = make_base(tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    in_type(adapter, dtype)
    check_applied(base, adapter, tmp_path)


def test_lora_on_an_untied_head_is_applied(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    add_head(adapter)
    check_applied(base, adapter, tmp_path)


def check_applied(base: Path, adapter: Path, tmp_path: Path) -> None:
    alone = write_gguf(base, None, tmp_path / "base.gguf", GIVEN).path
    merged = write_gguf(base, adapter, tmp_path / "merged.gguf", GIVEN).path
    lora = write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN).path
    wanted = log_probabilities(merged)
    assert divergence(wanted, log_probabilities(alone, lora)) < 0.001
    assert divergence(wanted, log_probabilities(alone)) > 0.05


@pytest.mark.parametrize(
    ("saved", "stored"),
    [(torch.float32, "F32"), (torch.float16, "F32"), (torch.bfloat16, "BF16")],
)
def test_no_value_is_rounded(
    saved: torch.dtype, stored: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    in_type(adapter, saved)
    written = write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN)
    given = load_file(adapter / "adapter_model.safetensors")
    wanted = given["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].float()
    found = {t.name: t for t in gguf.GGUFReader(written.path).tensors}["blk.1.ffn_up.weight.lora_b"]
    values = gguf.quants.dequantize(found.data, found.tensor_type)
    assert found.tensor_type.name == stored
    np.testing.assert_array_equal(values, wanted.numpy())


def test_file_is_whole_and_of_the_given_shapes(base: Path, adapter: Path, tmp_path: Path) -> None:
    written = write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN)
    assert check_file(written.path, written.shapes).passed
    assert len(written.shapes) == 28
    assert written.shapes["blk.0.attn_k.weight.lora_a"] == (4, 64)
    assert written.shapes["blk.0.attn_k.weight.lora_b"] == (32, 4)
    assert written.bytes == written.path.stat().st_size


def test_run_and_base_are_in_the_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    written = write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN)
    found = {name: content for name, (_, content) in keys(written.path).items()}
    assert found["general.type"] == "adapter"
    assert found["general.architecture"] == "qwen2"
    assert found["adapter.type"] == "lora"
    assert found["adapter.lora.alpha"] == 8
    assert found["general.name"] == "Tiny Korean"
    assert found["general.base_model.0.organization"] == "someone"
    assert found["general.base_model.0.name"] == "Tiny-Base"
    assert found["general.base_model.0.version"] == "abc123"
    assert found["kormed.run"] == "demo"
    assert found["kormed.version"] == "1.2.3"
    assert found["kormed.prompt"] == "당신은 의학 어시스턴트입니다."
    assert "kormed.onto" not in found


def test_every_tensor_is_reported_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    written = write_adapter_gguf(
        base,
        adapter,
        tmp_path / "new" / "lora.gguf",
        GIVEN,
        on_tensor=lambda done, total, name: heard.append((done, total, name)),
    )
    assert heard == [(i, 28, name) for i, name in enumerate(written.shapes, 1)]
    assert list((tmp_path / "new").iterdir()) == [written.path]


def test_stopped_run_leaves_no_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "out" / "lora.gguf"
    with pytest.raises(KeyboardInterrupt):
        write_adapter_gguf(base, adapter, target, GIVEN, on_tensor=stop)
    assert list(target.parent.iterdir()) == []


def test_full_disk_is_noticed_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(DiskSpaceError, match=r"for lora\.gguf"):
        write_adapter_gguf(base, adapter, tmp_path / "out" / "lora.gguf", GIVEN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("rank_pattern", {"q_proj": 8}), ("lora_alpha", 0)]
)
def test_adapter_that_would_come_out_wrong_is_refused(
    key: str, value: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(ExportError, match=key):
        write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN)
    assert not list(tmp_path.glob("lora*"))


def test_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", intermediate_size=128)
    with pytest.raises(ExportError, match=r"is \[64, 128\] in the base, \[64, 96\] in the adapter"):
        write_adapter_gguf(wide, adapter, tmp_path / "lora.gguf", GIVEN)


def test_lora_on_a_tied_head_is_refused(adapter: Path, tmp_path: Path) -> None:
    tied = make_base(tmp_path / "tied", tie_word_embeddings=True)
    add_head(adapter)
    with pytest.raises(ExportError, match="lm_head with tied embeddings"):
        write_adapter_gguf(tied, adapter, tmp_path / "lora.gguf", GIVEN)


def test_base_of_another_family_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(base / "config.json", architectures=["GemmaForCausalLM"])
    with pytest.raises(BaseModelError, match="GemmaForCausalLM"):
        write_adapter_gguf(base, adapter, tmp_path / "lora.gguf", GIVEN)


@pytest.mark.skipif(
    "KORMED_LLAMA_CPP" not in os.environ,
    reason="KORMED_LLAMA_CPP names no llama.cpp source folder",
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_file_is_that_of_llama_cpp_s_own_converter(family: str, dtype: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "adapter")
    in_type(adapter, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    nobody = Provenance("Tiny", "r", "v", "p")
    ours = write_adapter_gguf(base, adapter, tmp_path / "ours.gguf", nobody).path
    theirs = tmp_path / "theirs.gguf"
    script = Path(os.environ["KORMED_LLAMA_CPP"]) / "convert_lora_to_gguf.py"
    options = ["--base", str(base), "--outfile", str(theirs), "--outtype", dtype]
    command = [sys.executable, str(script), *options, str(adapter)]
    subprocess.run(command, check=True, capture_output=True)
    assert tensors(ours) == tensors(theirs)
    assert comparable(ours) == comparable(theirs)


def comparable(path: Path) -> dict[str, Any]:
    return {name: value for name, value in keys(path).items() if not name.startswith(UNLIKE)}
