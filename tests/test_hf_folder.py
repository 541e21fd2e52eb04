from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import load, make_adapter, make_base
from transformers import AutoModelForCausalLM

from export.checkpoint import Checkpoint
from export.convert import Provenance, write_gguf
from export.merge import LoraDelta

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(load(base), str(adapter))
    state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_folder_loads_as_the_merged_model(family: str, shards: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family, shards=shards)
    adapter = make_adapter(base, tmp_path / "adapter")
    write_gguf(base, adapter, tmp_path / "m.gguf", NOBODY, keep_hf=tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
    expected = merged_by_peft(base, adapter)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name].bfloat16(), rtol=2**-7, atol=0)


def test_shards_and_other_files_are_those_of_the_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shards=True)
    (base / "pytorch_model.bin").write_bytes(b"the same weights once more")
    write_gguf(base, None, tmp_path / "m.gguf", NOBODY, keep_hf=tmp_path / "hf")
    names = {path.name for path in base.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in (tmp_path / "hf").iterdir()} == names
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (base / name).read_bytes()
    assert Checkpoint(tmp_path / "hf").shapes == Checkpoint(base).shapes


def test_copy_of_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    weights = base / "model.safetensors"
    stored = load_file(weights)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, weights)
    write_gguf(base, None, tmp_path / "m.gguf", NOBODY, keep_hf=tmp_path / "hf")
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")


def test_stopped_merge_leaves_neither_file_nor_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")

    def stop(*_: object) -> torch.Tensor:
        raise OSError("the power went out")

    monkeypatch.setattr(LoraDelta, "merged", stop)
    with pytest.raises(OSError, match="power"):
        write_gguf(base, adapter, tmp_path / "m.gguf", NOBODY, keep_hf=tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
