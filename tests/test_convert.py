import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from drift import compare_with_hf
from gguf_file import keys, tensors
from tiny_models import edit_json, edit_tensors, make_adapter, make_base

from export.convert import Provenance, write_gguf
from kormed_edge.errors import BaseModelError, ExportError

GIVEN = Provenance(
    name="Tiny Korean",
    run="demo",
    version="1.2.3",
    prompt="당신은 의학 어시스턴트입니다.",
    license="apache-2.0",
    finetune="essential-medicine",
    base_model="someone/Tiny-Base",
    base_revision="abc123",
    datasets=("AI Hub 71875",),
)
PROMPTS = ["심전도에서 ", "혈압 90/60 mmHg, ", "The patient"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {}),
    "llama-untied-biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "qwen2-untied": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3-tied": ("qwen3", {}),
}
# What llama.cpp's converter leaves to the loader or guesses from folder names: docs/export.md.
OURS = {"kormed.run", "kormed.version", "kormed.prompt", "GGUF.kv_count"} | {
    *("general.name", "general.basename", "general.finetune"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"),
}
REFERENCE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
from conversion.base import TextModel
def no_sentencepiece(self): raise FileNotFoundError
TextModel._create_vocab_sentencepiece = no_sentencepiece
for folder, target, pre in json.loads(sys.argv[2]):
    if pre:  # a vocabulary that it does not know
        TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv = ["convert", folder, "--outtype", "bf16", "--outfile", target]
    convert_hf_to_gguf.main()
"""


@pytest.mark.parametrize("name", MODELS)
def test_gguf_gives_torch_s_probabilities(name: str, tmp_path: Path) -> None:
    family, settings = MODELS[name]
    base = make_base(tmp_path / "base", family, **settings)
    adapter = make_adapter(base, tmp_path / "adapter")
    written = write_gguf(base, adapter, tmp_path / "tiny.gguf", GIVEN)
    assert written.merged == 14
    assert compare_with_hf(base, adapter, written.path, PROMPTS, 8).mean_kld < 0.002
    assert compare_with_hf(base, None, written.path, PROMPTS, 8).mean_kld > 0.05


def test_merge_onto_nf4_gives_what_the_4_bit_base_with_its_adapter_says(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    written = write_gguf(base, adapter, tmp_path / "tiny.gguf", GIVEN, onto="nf4")
    assert compare_with_hf(base, adapter, written.path, PROMPTS, 8, onto="nf4").mean_kld < 0.002
    assert compare_with_hf(base, adapter, written.path, PROMPTS, 8).mean_kld > 0.05
    assert keys(written.path)["kormed.onto"][1] == "nf4"


def test_shards_give_the_same_bytes_as_one_file(tmp_path: Path) -> None:
    one = make_base(tmp_path / "one")
    many = make_base(tmp_path / "many", shards=True)
    assert len(list(many.glob("*.safetensors"))) > 2
    files = [write_gguf(b, None, b / "m.gguf", GIVEN).path for b in (one, many)]
    assert tensors(files[0]) == tensors(files[1])


def test_provenance_is_in_the_file(tmp_path: Path) -> None:
    written = write_gguf(make_base(tmp_path / "base"), None, tmp_path / "tiny.gguf", GIVEN)
    found = {name: content for name, (_, content) in keys(written.path).items()}
    assert found["general.name"] == "Tiny Korean"
    assert found["general.license"] == "apache-2.0"
    assert found["general.finetune"] == "essential-medicine"
    assert found["general.base_model.0.organization"] == "someone"
    assert found["general.base_model.0.name"] == "Tiny-Base"
    assert found["general.base_model.0.version"] == "abc123"
    assert found["general.dataset.0.name"] == "AI Hub 71875"
    assert found["kormed.run"] == "demo"
    assert found["kormed.version"] == "1.2.3"
    assert found["kormed.prompt"] == "당신은 의학 어시스턴트입니다."
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "kormed.onto" not in found


def test_every_tensor_is_reported_once(tmp_path: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    written = write_gguf(
        make_base(tmp_path / "base"),
        None,
        tmp_path / "new" / "tiny.gguf",
        GIVEN,
        on_tensor=lambda done, total, name: heard.append((done, total, name)),
    )
    total = len(written.shapes)
    assert heard == [(i, total, name) for i, name in enumerate(written.shapes, 1)]
    assert list((tmp_path / "new").iterdir()) == [written.path]


def test_copy_of_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    edit_tensors(base / "model.safetensors", **{"lm_head.weight": torch.zeros(448, 64)})
    assert "output.weight" not in write_gguf(base, None, tmp_path / "t.gguf", GIVEN).shapes


def test_stopped_run_leaves_no_file(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "out" / "tiny.gguf"
    with pytest.raises(KeyboardInterrupt):
        write_gguf(make_base(tmp_path / "base"), None, target, GIVEN, on_tensor=stop)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": LLAMA3}, "rope_type llama3"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"missing \['model\.layers\.2"),
        ({"num_hidden_layers": 1, "layer_types": None}, r"unknown \['model\.layers\.1"),
        ({"vocab_size": 500}, "448 embedding rows, vocab_size 500"),
    ],
)
def test_base_that_would_come_out_wrong_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    edit_json(base / "config.json", **changes)
    with pytest.raises(BaseModelError, match=message):
        write_gguf(base, None, tmp_path / "tiny.gguf", GIVEN)


def test_missing_file_of_a_base_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shards=True)
    shard = sorted(base.glob("*.safetensors"))[1]
    for name in (shard.name, "model.safetensors.index.json", "config.json"):
        (base / name).unlink()
        with pytest.raises(BaseModelError, match=f"has n.* {name}"):
            write_gguf(base, None, tmp_path / "tiny.gguf", GIVEN)


def test_tensor_that_a_shard_lacks_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shards=True)
    shard = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    edit_tensors(base / shard["model.norm.weight"], **{"model.norm.weight": None})
    with pytest.raises(BaseModelError, match=r"no tensor model\.norm\.weight"):
        write_gguf(base, None, tmp_path / "tiny.gguf", GIVEN)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(BaseModelError, match=r"model\.safetensors"):
        write_gguf(base, None, tmp_path / "tiny.gguf", GIVEN)


def test_unknown_base_for_the_merge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="original or nf4"):
        write_gguf(tmp_path, None, tmp_path / "tiny.gguf", GIVEN, onto="int8")


needs_llama_cpp = pytest.mark.skipif(
    "KORMED_LLAMA_CPP" not in os.environ,
    reason="KORMED_LLAMA_CPP names no llama.cpp source folder",
)


def assert_same_as_llama_cpp_s(bases: dict[Path, str | None], folder: Path) -> None:
    """Both converters write every base; `bases` gives llama.cpp's pre-tokenizer where it must be
    told."""
    jobs, pairs = [], []
    for i, (base, pre) in enumerate(bases.items()):
        ours, theirs = folder / f"{i}.ours.gguf", folder / f"{i}.theirs.gguf"
        write_gguf(base, None, ours, Provenance("Tiny", "r", "v", "p"))
        jobs.append([str(base), str(theirs), pre])
        pairs.append((ours, theirs))
    command = [sys.executable, "-c", REFERENCE, os.environ["KORMED_LLAMA_CPP"], json.dumps(jobs)]
    subprocess.run(command, check=True, capture_output=True)
    for ours, theirs in pairs:
        assert tensors(ours) == tensors(theirs)
        kept = {k: v for k, v in keys(ours).items() if k not in OURS}
        assert kept == {k: v for k, v in keys(theirs).items() if k not in OURS}


@needs_llama_cpp
def test_file_is_that_of_llama_cpp_s_own_converter(tmp_path: Path) -> None:
    bases: dict[Path, str | None] = {}
    for name, (family, settings) in MODELS.items():
        base = make_base(tmp_path / name, family, **settings)
        bases[base] = "smollm" if family == "llama" else "qwen2"
    assert_same_as_llama_cpp_s(bases, tmp_path)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.skipif("KORMED_BASES" not in os.environ, reason="KORMED_BASES names no base folders")
def test_file_of_a_real_model_is_that_of_llama_cpp_s_own_converter(tmp_path: Path) -> None:
    """`KORMED_BASES`: folders with a colon between, as `kormed` keeps them in its home."""
    folders = os.environ["KORMED_BASES"].split(":")
    assert_same_as_llama_cpp_s({Path(folder): None for folder in folders}, tmp_path)
