from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_models import CORPUS, FAMILIES, load, make_adapter, make_base
from transformers import AutoTokenizer

from export.architectures import Architecture, recognise
from export.checkpoint import Checkpoint
from export.convert import Provenance, write_gguf
from export.imatrix import ImportanceMatrix, collect, read_imatrix, write_imatrix
from kormed_edge.errors import ExportError


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", request.param)


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", "qwen2")


def collected(base: Path, model: Any = None, texts: Any = CORPUS, **settings: Any) -> Any:
    model = load(base) if model is None else model
    return collect(model, tokenizer(base), texts, architecture(base), **settings)


def architecture(base: Path) -> Architecture:
    return recognise(Checkpoint(base))


def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def small() -> ImportanceMatrix:
    sums = {f"blk.0.ffn_{n}.weight": np.arange(4, dtype=np.float32) + i for i, n in enumerate("ab")}
    return ImportanceMatrix(sums, 1025, ("train.jsonl", "더"), 512)


def test_sums_of_the_first_projection_and_the_head_are_those_done_by_hand(base: Path) -> None:
    model, first, head = load(base), 0.0, 0.0
    for text in CORPUS:
        ids = torch.tensor([tokenizer(base)(text)["input_ids"]])
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
            inputs = model.model.layers[0].input_layernorm(states[0])
        first, head = first + inputs[0].square().sum(0), head + states[-1][0].square().sum(0)
    sums = collected(base).sums
    name = "token_embd.weight" if architecture(base).tied else "output.weight"
    np.testing.assert_allclose(sums["blk.0.attn_q.weight"], first, rtol=1e-5)
    np.testing.assert_array_equal(sums["blk.0.attn_v.weight"], sums["blk.0.attn_q.weight"])
    np.testing.assert_allclose(sums[name], head, rtol=1e-5)


def test_there_is_an_entry_for_every_matrix_of_the_gguf(base: Path, tmp_path: Path) -> None:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    shapes = write_gguf(base, None, tmp_path / "tiny.gguf", nobody).shapes
    matrices = {name: shape[1] for name, shape in shapes.items() if len(shape) == 2}
    if not architecture(base).tied:
        del matrices["token_embd.weight"]  # words are looked up, nothing is multiplied
    assert {name: len(sums) for name, sums in collected(base).sums.items()} == matrices


def test_inputs_under_an_adapter_are_those_of_the_merged_model(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = str(make_adapter(base, tmp_path / "adapter", lora_dropout=0.5))
    wrapped: Any = PeftModel.from_pretrained(load(base), adapter).train()
    merged = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    under, after = collected(base, wrapped).sums, collected(base, merged).sums
    assert under.keys() == after.keys()
    for name, sums in under.items():
        np.testing.assert_allclose(sums, after[name], rtol=1e-3)
    down = "blk.1.ffn_down.weight"
    assert not np.allclose(under[down], collected(base).sums[down], rtol=0.01)
    assert wrapped.training


def test_tokens_are_counted_up_to_the_longest_allowed(qwen2: Path) -> None:
    heard: list[tuple[int, int]] = []
    matrix = collected(
        qwen2,
        max_length=8,
        datasets=("d",),
        on_text=lambda done, total: heard.append((done, total)),
    )
    assert (matrix.tokens, matrix.chunks, matrix.chunk_size, matrix.datasets) == (32, 4, 8, ("d",))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_model_is_left_without_hooks(qwen2: Path) -> None:
    model = load(qwen2)
    collected(qwen2, model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("texts", "message"), [([], "no texts"), (["가", ""], "text 2 .* is empty")]
)
def test_nothing_to_read_is_refused(qwen2: Path, texts: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        collected(qwen2, texts=texts)


def test_matrix_whose_inputs_overflow_is_named(qwen2: Path) -> None:
    model = load(qwen2)
    model.model.layers[1].mlp.up_proj.weight.data.fill_(torch.inf)
    with pytest.raises(ExportError, match=r"2 matrices.*: blk\.1\.ffn_down\.weight, output"):
        collected(qwen2, model)


def test_model_with_fewer_blocks_is_refused(qwen2: Path, tmp_path: Path) -> None:
    other = load(make_base(tmp_path / "other", num_hidden_layers=1))
    with pytest.raises(ExportError, match=r"no model\.layers\.1\.mlp\.down_proj"):
        collected(qwen2, other)


def test_means_are_sums_by_tokens() -> None:
    means = small().means()["blk.0.ffn_b.weight"]
    np.testing.assert_array_equal(means, np.array([1, 2, 3, 4], np.float32) / np.float32(1025))


def test_file_comes_back_as_it_was(tmp_path: Path) -> None:
    write_imatrix(small(), tmp_path / "m.gguf")
    found = read_imatrix(tmp_path / "m.gguf")
    assert (found.tokens, found.datasets, found.chunk_size) == (1025, ("train.jsonl", "더"), 512)
    assert found.sums.keys() == small().sums.keys()
    for name, sums in small().sums.items():
        np.testing.assert_array_equal(found.sums[name], sums)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]


def test_file_holds_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    write_imatrix(small(), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["train.jsonl", "더"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    assert {reader.fields[f"imatrix.chunk_{k}"].types[0].name for k in ("count", "size")} == {
        "UINT32"
    }
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        ("blk.0.ffn_a.weight.in_sum2", "F32", [4]),
        ("blk.0.ffn_a.weight.counts", "F32", [1]),
        ("blk.0.ffn_b.weight.in_sum2", "F32", [4]),
        ("blk.0.ffn_b.weight.counts", "F32", [1]),
    ]
    assert {float(t.data[0]) for t in reader.tensors if t.name.endswith("counts")} == {1025.0}


def test_matrix_without_a_data_set_still_has_llama_cpp_s_key(tmp_path: Path) -> None:
    write_imatrix(ImportanceMatrix(small().sums, 8, (), 4), tmp_path / "m.gguf")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["imatrix.datasets"].contents() == [""]
    assert read_imatrix(tmp_path / "m.gguf").datasets == ()


@pytest.mark.parametrize("content", [b"", b"GGUF and nothing else", b"JSON" * 10])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ExportError, match=r"m\.gguf is no importance matrix"):
        read_imatrix(tmp_path / "m.gguf")


def test_missing_file_and_model_are_refused(qwen2: Path, tmp_path: Path) -> None:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    model = write_gguf(qwen2, None, tmp_path / "tiny.gguf", nobody).path
    with pytest.raises(ExportError, match=r"general\.type is model"):
        read_imatrix(model)
    with pytest.raises(ExportError, match=r"nothing\.gguf is no importance matrix"):
        read_imatrix(tmp_path / "nothing.gguf")


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    with pytest.raises(IsADirectoryError):
        write_imatrix(small(), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]


@pytest.mark.parametrize(
    "parts",
    [
        {"a.in_sum2": [1]},
        {"a.counts": [1]},
        {"a.in_sum2": [1], "a.counts": [1], "b.in_sum2": [1], "b.counts": [2]},
    ],
    ids=["no counts", "no sums", "unequal counts"],
)
def test_incomplete_sums_are_refused(tmp_path: Path, parts: dict[str, list[int]]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["d"])
    writer.add_uint32("imatrix.chunk_size", 8)
    for name, values in parts.items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match="is no importance matrix"):
        read_imatrix(tmp_path / "m.gguf")
