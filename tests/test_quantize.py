import ctypes
import json
import re
from dataclasses import asdict
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from tiny_models import CORPUS, load, make_base
from transformers import AutoTokenizer

from export.architectures import recognise
from export.checkpoint import Checkpoint
from export.convert import Provenance, write_gguf
from export.imatrix import ImportanceMatrix, collect
from export.quantize import (
    NEED_IMATRIX,
    Fallback,
    check_types,
    known_types,
    llama_log,
    quantize,
)
from kormed_edge.errors import ExportError


def written(base: Path) -> Path:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    return write_gguf(base, None, base.with_suffix(".gguf"), nobody).path


def matrix_of(base: Path, datasets: tuple[str, ...] = ()) -> ImportanceMatrix:
    tokenizer = AutoTokenizer.from_pretrained(base)
    family = recognise(Checkpoint(base))
    return collect(load(base), tokenizer, CORPUS, family, datasets=datasets, max_length=16)


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(make_base(tmp_path / "base"))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A base whose rows are one block of 256."""
    return make_base(tmp_path / "wide", hidden_size=256, intermediate_size=256)


def test_quantized_file_keeps_names_and_shrinks(source: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    made = quantize(
        source, tmp_path / "tiny.gguf", "Q8_0", lambda done, total: heard.append((done, total))
    )
    before, after = tensors(source), tensors(made.path)
    assert after.keys() == before.keys()
    assert made.bytes == made.path.stat().st_size < source.stat().st_size
    assert (made.types, made.fallbacks) == ({"Q8_0": 16, "F32": 11}, {})
    assert heard[-1] == (len(before), len(before))


def test_rows_that_do_not_fit_are_reported_as_stored(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "tiny.gguf", "Q4_K_M")
    assert made.types == {"Q5_0": 13, "Q8_0": 3, "F32": 11}
    assert len(made.fallbacks) == 16
    assert made.fallbacks["blk.0.attn_q.weight"] == Fallback("Q4_K", "Q5_0", 64)
    assert made.fallbacks["blk.1.ffn_down.weight"] == Fallback("Q6_K", "Q8_0", 96)
    stored = tensors(made.path)
    assert {n: f.used for n, f in made.fallbacks.items()} == {
        n: stored[n].tensor_type.name for n in made.fallbacks
    }
    assert json.loads(json.dumps(asdict(made), default=str))["fallbacks"]["output.weight"] == {
        "asked": "Q6_K",
        "used": "Q8_0",
        "columns": 64,
    }


@pytest.mark.parametrize(
    ("type", "asked"), [("Q4_K_M", "Q6_K"), ("Q4_0", "Q6_K"), ("IQ2_M", "Q5_K"), ("IQ3_S", "Q6_K")]
)
def test_tied_head_that_falls_back_without_a_log_line_is_reported(
    tmp_path: Path, type: str, asked: str
) -> None:
    base = make_base(tmp_path / "base", "llama")
    made = quantize(written(base), tmp_path / "q.gguf", type, imatrix=matrix_of(base))
    assert made.fallbacks["token_embd.weight"] == Fallback(asked, "Q8_0", 64)


def test_log_that_can_no_longer_be_read_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.quantize._FALLBACK", re.compile(r"(?!)"))
    with pytest.raises(ExportError, match="log and its file differ on the number of fallbacks"):
        quantize(source, tmp_path / "tiny.gguf", "Q4_K_M")


def test_rows_of_256_are_stored_as_asked(wide: Path, tmp_path: Path) -> None:
    made = quantize(written(wide), tmp_path / "q.gguf", "Q4_K_M")
    assert (made.types, made.fallbacks) == ({"Q4_K": 13, "Q6_K": 3, "F32": 11}, {})


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q4_0"])
def test_importance_matrix_changes_how_matrices_are_rounded(
    wide: Path, tmp_path: Path, type: str
) -> None:
    source = written(wide)
    blind = tensors(quantize(source, tmp_path / "a.gguf", type).path)
    given = tensors(quantize(source, tmp_path / "b.gguf", type, imatrix=matrix_of(wide)).path)
    same = {name for name, tensor in blind.items() if np.array_equal(tensor.data, given[name].data)}
    vectors = {name for name, tensor in blind.items() if tensor.tensor_type.name == "F32"}
    assert same == vectors | {"token_embd.weight"}


def test_importance_matrix_leaves_q8_0_alone(wide: Path, tmp_path: Path) -> None:
    source = written(wide)
    blind = tensors(quantize(source, tmp_path / "a.gguf", "Q8_0").path)
    given = tensors(quantize(source, tmp_path / "b.gguf", "Q8_0", imatrix=matrix_of(wide)).path)
    assert all(np.array_equal(blind[name].data, given[name].data) for name in blind)


def test_importance_matrix_takes_error_away_from_columns_that_matter(
    wide: Path, tmp_path: Path
) -> None:
    matrix, source, name = matrix_of(wide), written(wide), "blk.0.ffn_up.weight"
    matrix.sums[name][:] = 1
    matrix.sums[name][:16] = 1000
    exact = gguf.quants.dequantize(tensors(source)[name].data, tensors(source)[name].tensor_type)
    errors = []
    for label, given in (("blind", None), ("given", matrix)):
        found = tensors(quantize(source, tmp_path / label, "Q4_K_S", imatrix=given).path)[name]
        lost = gguf.quants.dequantize(found.data, found.tensor_type) - exact
        errors.append(float(np.square(lost[:, :16]).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_file_records_its_importance_matrix(wide: Path, tmp_path: Path) -> None:
    matrix = matrix_of(wide, datasets=("train.jsonl", "더" * 60))
    made = quantize(written(wide), tmp_path / "q.gguf", "Q4_K_M", imatrix=matrix)
    fields = gguf.GGUFReader(made.path).fields
    assert {k: f.contents() for k, f in fields.items() if k.startswith("quantize.imatrix")} == {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "train.jsonl, " + "더" * 38,
        "quantize.imatrix.entries_count": 15,
        "quantize.imatrix.chunks_count": 4,
    }


@pytest.mark.parametrize(
    ("tensor", "columns"), [("blk.1.attn_k.weight", None), ("blk.1.attn_k.weight", 64), ("x", 256)]
)
def test_importance_matrix_of_another_model_is_refused(
    wide: Path, tmp_path: Path, tensor: str, columns: int | None
) -> None:
    matrix = matrix_of(wide)
    matrix.sums.pop(tensor, None)
    if columns:
        matrix.sums[tensor] = np.ones(columns, np.float32)
    with pytest.raises(ExportError, match=rf"(nothing|no place) for \['{tensor}'\]"):
        quantize(written(wide), tmp_path / "q.gguf", "Q4_K_M", imatrix=matrix)
    assert not (tmp_path / "q.gguf").exists()


def test_few_bits_without_an_importance_matrix_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)no importance matrix for IQ2_XS.*export\.imatrix"):
        quantize(tmp_path / "never-read.gguf", tmp_path / "q.gguf", "IQ2_XS")


def dry_run(source: Path, type: str) -> str:
    """llama.cpp's log of what it would do, which is quick for every type."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = known_types()[type], True
    lines: list[str] = []
    with llama_log(lines.append):
        llama_cpp.llama_model_quantize(str(source).encode(), b"", ctypes.byref(parameters))
    return "".join(lines)


def test_types_that_need_a_matrix_are_llama_cpp_s(wide: Path) -> None:
    source = written(wide)
    asking = {t for t in known_types() if "will require an imatrix" in dry_run(source, t)}
    assert asking == NEED_IMATRIX


def test_head_of_narrow_rows_is_asked_for_as_what_it_is_in_wide_ones(
    source: Path, wide: Path, tmp_path: Path
) -> None:
    whole, matrix = written(wide), matrix_of(tmp_path / "base")
    types = known_types().keys() - {"Q8_0", "Q1_0"}  # one needs no substitute, one has none
    for type in types:
        head = re.search(r"output\.weight .+\((\w+)\)\n", dry_run(whole, type))
        made = quantize(source, tmp_path / "q.gguf", type, imatrix=matrix)
        assert head
        assert made.fallbacks["output.weight"] == Fallback(head[1].upper(), "Q8_0", 64)


def test_other_file_types_are_not_known() -> None:
    assert not {"F16", "BF16", "ALL_F32", "MXFP4_MOE", "NVFP4"} & known_types().keys()
    assert known_types()["Q4_K_M"] == 15


def test_every_wrong_type_is_named_at_once() -> None:
    check_types(["Q4_K_M", "IQ4_XS", "Q2_K"], has_imatrix=False)
    check_types(list(NEED_IMATRIX), has_imatrix=True)
    with pytest.raises(ExportError, match=r"no GGUF type Q9, F16; no .* for IQ1_S, Q2_K_S"):
        check_types(["Q9", "IQ1_S", "Q8_0", "F16", "Q2_K_S"], has_imatrix=False)


def test_unknown_type_is_refused_with_the_list(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=", ".join(known_types())):
        quantize(source, tmp_path / "tiny.gguf", "Q4_K_X")


def test_damaged_source_leaves_no_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    with pytest.raises(ExportError, match=r"could not quantize .*broken\.gguf"):
        quantize(broken, tmp_path / "tiny.gguf", "Q8_0")
    assert list(tmp_path.iterdir()) == [broken]


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no file .*nothing\.gguf"):
        quantize(tmp_path / "nothing.gguf", tmp_path / "tiny.gguf", "Q8_0")


def log_address() -> int | None:
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return ctypes.cast(callback, ctypes.c_void_p).value


def test_log_goes_back_to_where_it_went() -> None:
    before = log_address()
    with llama_log(lambda _: None):
        during = log_address()
    assert during != before
    assert log_address() == before
