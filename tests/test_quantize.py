import ctypes
from pathlib import Path

import gguf
import llama_cpp
import pytest
from tiny_models import make_base

from export.convert import Provenance, write_gguf
from export.quantize import TYPES, llama_log, quantize
from kormed_edge.errors import ExportError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    base = make_base(tmp_path / "base")
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    return write_gguf(base, None, tmp_path / "tiny-bf16.gguf", nobody).path


def test_quantized_file_keeps_names_and_shrinks(source: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    written = quantize(
        source, tmp_path / "tiny.gguf", "Q8_0", lambda done, total: heard.append((done, total))
    )
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(written.path)
    assert {t.name for t in after.tensors} == {t.name for t in before.tensors}
    assert written.bytes == written.path.stat().st_size < source.stat().st_size
    assert written.fallbacks == {}
    assert heard[-1] == (len(before.tensors), len(before.tensors))


def test_rows_that_do_not_fit_256_are_reported(source: Path, tmp_path: Path) -> None:
    written = quantize(source, tmp_path / "tiny.gguf", "Q4_K_M")
    assert len(written.fallbacks) == 16
    assert written.fallbacks["output.weight"] == "Q8_0"
    assert written.fallbacks["blk.0.attn_q.weight"] == "Q5_0"


def test_rows_of_256_are_stored_as_asked(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", hidden_size=256, intermediate_size=256)
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    source = write_gguf(base, None, tmp_path / "bf16.gguf", nobody).path
    assert quantize(source, tmp_path / "q.gguf", "Q4_K_M").fallbacks == {}


def test_unknown_type_is_refused_with_the_list(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=", ".join(TYPES)):
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
