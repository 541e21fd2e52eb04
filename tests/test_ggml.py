from pathlib import Path

import pytest

from kormed_edge.errors import EngineError
from kormed_edge.ggml import GgufHeader, gpus, last_line


def test_header_gives_values_of_the_type_that_is_asked_for(scripted_gguf: Path) -> None:
    with GgufHeader(scripted_gguf) as header:
        assert header.text("general.architecture") == "qwen2"
        assert header.number("qwen2.block_count") == 2
        assert header.numbers("tokenizer.ggml.token_type")
        assert header.length("tokenizer.ggml.tokens") == 448


def test_key_that_is_missing_or_of_another_type_has_no_value(scripted_gguf: Path) -> None:
    with GgufHeader(scripted_gguf) as header:
        assert header.number("general.architecture") is None
        assert header.text("qwen2.block_count") is None
        assert header.numbers("tokenizer.ggml.tokens") is None
        assert header.length("nothing") is None


def test_header_tells_where_tensors_lie_and_how_large_they_are(scripted_gguf: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(scripted_gguf)
    with GgufHeader(scripted_gguf) as header:
        sizes = {tensor.name: header.tensor_size(tensor.name) for tensor in reader.tensors}
        assert sizes == {tensor.name: tensor.n_bytes for tensor in reader.tensors}
        assert header.data_offset == reader.data_offset
        assert header.tensor_size("nothing") == 0


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"not one")
    with pytest.raises(EngineError, match=r"bad\.gguf: llama\.cpp cannot load it"):
        GgufHeader(path)


def test_gpus_of_this_machine_can_be_listed() -> None:
    assert all(0 <= gpu.free <= gpu.total for gpu in gpus())


def test_reason_is_the_last_line_that_llama_cpp_said() -> None:
    assert last_line(["load: one\n", "load_model: the ", "tensor is short\n"]) == (
        "the tensor is short"
    )
    assert last_line([]) == "no reason given"
