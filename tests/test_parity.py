import json
import math
import unicodedata
from pathlib import Path

import gguf
import pytest
from tiny_models import edit_json, make_base

from export.convert import Provenance, WrittenGguf, write_gguf
from export.parity import (
    LIMITS,
    Check,
    Limits,
    LogitComparison,
    check_file,
    check_logits,
    check_tokens,
    compare_logits,
    limits_of,
    parity_report,
)
from export.quantize import quantize
from kormed_edge.errors import ExportError

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")
PROMPTS = ["심전도에서 ", "The patient"]
GOOD = Check("good", True, {}, {})
BAD = Check("bad", False, {}, {})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def written(base: Path, tmp_path: Path) -> WrittenGguf:
    return write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY)


def problems(check: Check) -> list[str]:
    assert not check.passed
    found: list[str] = check.measured["problems"]
    return found


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
def test_cut_file_fails(written: WrittenGguf, cut: int) -> None:
    whole = written.path.read_bytes()
    written.path.write_bytes(whole[: len(whole) - cut])
    assert problems(check_file(written.path, written.shapes))


def test_trailing_bytes_fail(written: WrittenGguf) -> None:
    written.path.write_bytes(written.path.read_bytes() + bytes(64))
    assert "tensors end at" in problems(check_file(written.path, written.shapes))[0]


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight"])
def test_value_that_is_no_number_fails(written: WrittenGguf, name: str) -> None:
    content = bytearray(written.path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(written.path).tensors if t.name == name)
    end = int(tensor.data_offset + tensor.n_bytes)
    content[end - 2 : end] = b"\xc0\x7f"
    written.path.write_bytes(content)
    assert problems(check_file(written.path, written.shapes)) == [f"{name} is not finite"]


def test_tokens_of_the_folder_and_of_the_file_are_equal(base: Path, written: WrittenGguf) -> None:
    check = check_tokens(base, written.path, ["통증이  있다.\n", "감기(感氣) 🤧"])
    assert check.passed
    assert check.measured == {"end": 2, "pad": 0, "differing": 0, "first": []}
    assert check.expected["prompts"] == 10


def test_other_tokens_are_noticed(base: Path, written: WrittenGguf) -> None:
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    edit_json(base / "tokenizer.json", model=model | {"merges": []})
    check = check_tokens(base, written.path, ["심전도", "%"])
    assert not check.passed
    assert check.measured["differing"] < check.expected["prompts"] == 10
    assert check.measured["first"]


def test_text_that_is_not_in_nfc_is_noticed(base: Path, written: WrittenGguf) -> None:
    check = check_tokens(base, written.path, [unicodedata.normalize("NFD", "통증")])
    assert not check.passed
    assert check.measured["differing"] == 1


def test_end_token_that_does_not_end_a_turn_fails(base: Path, tmp_path: Path) -> None:
    edit_json(base / "tokenizer_config.json", eos_token="<|endoftext|>")
    path = write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path
    check = check_tokens(base, path, [])
    assert not check.passed
    assert (check.measured["end"], check.expected["end"]) == (0, 2)


def test_model_does_not_differ_from_itself(written: WrittenGguf) -> None:
    assert compare_logits(written.path, written.path, PROMPTS, 6) == LogitComparison(
        prompts=2, positions=12, mean_kld=0.0, p99_kld=0.0, same_top=1.0
    )


def test_another_model_differs(written: WrittenGguf, tmp_path: Path) -> None:
    other = write_gguf(make_base(tmp_path / "b", seed=7), None, tmp_path / "o.gguf", NOBODY)
    comparison = compare_logits(written.path, other.path, PROMPTS, 6)
    assert comparison.mean_kld > 0.5
    assert comparison.p99_kld >= comparison.mean_kld
    assert comparison.same_top < 0.5


def test_other_vocabulary_is_refused(written: WrittenGguf, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "b", vocab_size=512)
    other = write_gguf(wide, None, tmp_path / "o.gguf", NOBODY)
    with pytest.raises(ExportError, match="vocabularies of 448 and 512"):
        compare_logits(written.path, other.path, PROMPTS, 2)


def test_nothing_to_compare_is_an_error(written: WrittenGguf) -> None:
    with pytest.raises(ExportError, match="nothing to compare"):
        compare_logits(written.path, written.path, [])


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"cannot load .*no\.gguf"):
        compare_logits(tmp_path / "no.gguf", tmp_path / "no.gguf", PROMPTS)


@pytest.mark.parametrize(
    ("mean_kld", "same_top", "positions", "passed"),
    [
        (0.001, 0.995, 10_000, True),
        (0.0011, 1.0, 10_000, False),
        (0.0, 0.99, 10_000, False),
        (0.0, 0.99, 200, True),
        (0.0, 0.96, 200, False),
        (math.nan, 1.0, 9, False),
        (0.0, 1.0, 0, False),
    ],
)
def test_limits_decide(mean_kld: float, same_top: float, positions: int, passed: bool) -> None:
    comparison = LogitComparison(1, positions, mean_kld, mean_kld, same_top)
    assert check_logits("BF16", comparison, Limits(0.001, 0.995)).passed is passed


def test_type_without_a_limit_is_refused() -> None:
    assert limits_of("Q4_K_M") == LIMITS["Q4_K_M"]
    with pytest.raises(ExportError, match="no drift limit for IQ4_XS"):
        limits_of("IQ4_XS")


def test_report_passes_only_when_every_check_did() -> None:
    assert parity_report([GOOD])["passed"]
    assert not parity_report([GOOD, BAD])["passed"]
    assert not parity_report([])["passed"]


def test_report_is_json(written: WrittenGguf) -> None:
    comparison = compare_logits(written.path, written.path, PROMPTS, 2)
    checks = [
        check_file(written.path, written.shapes),
        check_logits("BF16", comparison, limits_of("BF16")),
    ]
    assert json.loads(json.dumps(parity_report(checks))) == parity_report(checks)
