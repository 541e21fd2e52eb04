from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from test_convert import MODELS
from tiny_models import edit_json, edit_tensors, make_adapter, make_base

from export.convert import Provenance, WrittenGguf, write_gguf
from export.quantize import quantize
from export.readback import Check, check_file, check_weights

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


@pytest.fixture
def written(base: Path, tmp_path: Path) -> WrittenGguf:
    return write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY)


def problems(check: Check) -> list[str]:
    assert not check.passed
    found: list[str] = check.measured["problems"]
    return found


def end_of(path: Path, name: str) -> int:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return int(tensor.data_offset + tensor.n_bytes)


def test_whole_file_passes(written: WrittenGguf) -> None:
    check = check_file(written.path, written.shapes)
    assert check.passed
    assert check.measured == {"tensors": 27, "problems": []}


def test_quantized_file_has_the_same_shapes(written: WrittenGguf, tmp_path: Path) -> None:
    smaller = quantize(written.path, tmp_path / "q8.gguf", "Q8_0")
    assert check_file(smaller.path, written.shapes).passed


def test_wrong_names_and_shapes_are_listed(written: WrittenGguf) -> None:
    expected = written.shapes | {"blk.0.attn_q.weight": (64, 128), "blk.2.attn_q.weight": (1,)}
    del expected["output.weight"]
    assert problems(check_file(written.path, expected)) == [
        "missing blk.2.attn_q.weight",
        "unexpected output.weight",
        "blk.0.attn_q.weight is [64, 64], not [64, 128]",
    ]


@pytest.mark.parametrize("cut", [40, 3000, 200_000])
def test_cut_file_fails(written: WrittenGguf, base: Path, cut: int) -> None:
    whole = written.path.read_bytes()
    written.path.write_bytes(whole[: len(whole) - cut])
    assert problems(check_file(written.path, written.shapes))
    assert problems(check_weights(base, None, "original", written.path))[0].startswith("unreadable")


def test_trailing_bytes_fail(written: WrittenGguf) -> None:
    written.path.write_bytes(written.path.read_bytes() + bytes(64))
    assert "tensors end at" in problems(check_file(written.path, written.shapes))[0]


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight"])
def test_value_that_is_no_number_fails(written: WrittenGguf, base: Path, name: str) -> None:
    content, end = bytearray(written.path.read_bytes()), end_of(written.path, name)
    content[end - 2 : end] = b"\xc0\x7f"
    written.path.write_bytes(content)
    assert problems(check_file(written.path, written.shapes)) == [f"{name} is not finite"]
    assert problems(check_weights(base, None, "original", written.path))[0].startswith(f"{name}: 1")


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_weights_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    family, settings = MODELS[name]
    base = make_base(tmp_path / "base", family, shards=True, **settings)
    adapter = make_adapter(base, tmp_path / "adapter")
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY).path
    check = check_weights(base, adapter, "original", path)
    assert check.passed
    assert check.measured["merged"] == 14
    assert 2**-10 < check.measured["worst_error"] < check.expected["worst_error"] == 2**-8


def test_copy_of_a_tied_embedding_is_not_looked_for(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    edit_tensors(base / "model.safetensors", **{"lm_head.weight": torch.zeros(448, 64)})
    path = write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path
    assert check_weights(base, None, "original", path).passed


def test_weights_without_an_adapter_are_equal_to_the_last_bit(base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path
    check = check_weights(base, None, "original", path)
    assert check.passed
    assert (check.measured["worst"], check.measured["worst_error"]) == (None, 0.0)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "token_embd.weight"])
def test_one_bit_of_one_value_is_noticed(
    base: Path, adapter: Path, tmp_path: Path, name: str
) -> None:
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY).path
    content, end = bytearray(path.read_bytes()), end_of(path, name)
    content[end - 2] ^= 1
    path.write_bytes(content)
    found = problems(check_weights(base, adapter, "original", path))
    assert [line.split(" values")[0] for line in found] == [
        f"{name}: 1 of {64 * 64 if name.startswith('blk') else 448 * 64}"
    ]


def test_merge_onto_nf4_is_not_one_onto_the_original(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY, onto="nf4").path
    assert check_weights(base, adapter, "nf4", path).passed
    check = check_weights(base, adapter, "original", path)
    assert len(problems(check)) == 8
    assert (check.measured["onto"], check.expected["onto"]) == ("nf4", "original")


def test_rslora_divides_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "rs", use_rslora=True)
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY).path
    assert check_weights(base, adapter, "original", path).passed
    edit_json(adapter / "adapter_config.json", use_rslora=False)
    assert problems(check_weights(base, adapter, "original", path))


def test_weights_that_cancel_need_no_relative_exactness(base: Path, tmp_path: Path) -> None:
    """W + BA is nearly zero everywhere, so only its own rounding in fp32 is left of it."""
    adapter = make_adapter(base, tmp_path / "adapter", r=64, lora_alpha=21)
    module = "model.layers.0.self_attn.q_proj"
    weight = load_file(base / "model.safetensors")[f"{module}.weight"].float()
    random = torch.linalg.qr(torch.randn(64, 64))[0]
    sides = {"A": random.contiguous(), "B": -64 / 21 * weight @ random.T}
    changed = {f"base_model.model.{module}.lora_{s}.weight": v for s, v in sides.items()}
    edit_tensors(adapter / "adapter_model.safetensors", **changed)
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY).path
    assert check_weights(base, adapter, "original", path).passed


def test_tensor_too_many_too_few_or_of_another_shape_is_named(
    written: WrittenGguf, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", tie_word_embeddings=True, intermediate_size=128)
    found = problems(check_weights(other, None, "original", written.path))
    assert found[0] == "unexpected output.weight"
    assert "blk.0.ffn_up.weight: [96, 64], not [128, 64]" in found
    deeper = make_base(tmp_path / "deeper", num_hidden_layers=3)
    found = problems(check_weights(deeper, None, "original", written.path))
    assert found[0] == "missing blk.2.attn_norm.weight"


def test_adapter_tensor_that_reached_no_weight_fails(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = write_gguf(base, adapter, tmp_path / "tiny.gguf", NOBODY).path
    stray = {
        f"base_model.model.model.layers.9.mlp.up_proj.lora_{side}.weight": torch.zeros(4, 4)
        for side in "AB"
    }
    edit_tensors(adapter / "adapter_model.safetensors", **stray)
    check = check_weights(base, adapter, "original", path)
    assert not check.passed
    assert (check.measured["merged"], check.expected["merged"]) == (14, 15)


def test_quantized_weights_are_not_compared(
    written: WrittenGguf, base: Path, tmp_path: Path
) -> None:
    smaller = quantize(written.path, tmp_path / "q8.gguf", "Q8_0")
    found = problems(check_weights(base, None, "original", smaller.path))
    assert "blk.0.attn_k.weight: stored as Q8_0" in found


def test_every_tensor_is_reported_once(written: WrittenGguf, base: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    check_weights(base, None, "original", written.path, lambda *given: heard.append(given))
    assert [done for done, _, _ in heard] == list(range(1, 28))
    assert {name for _, _, name in heard} == set(written.shapes)
