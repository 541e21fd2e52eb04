"""What every test stands on: a home of its own, no network, and a tiny model that answers."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

# Read when the libraries are imported, so before any test is. One thread, because the tiny models
# are slower with more, above all where other work keeps the cores busy.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$KORMED_HOME` in a temporary folder, and none of the user's other settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("KORMED_HOME", str(home))
    for name in ("KORMED_RUNS", "KORMED_DEBUG", "KORMED_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test asked the network for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny random qwen2, as a Hugging Face folder."""
    from tiny_models import make_base

    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that changes what `base` answers."""
    from tiny_models import make_adapter

    return make_adapter(base, tmp_path / "adapter")


@pytest.fixture(scope="session")
def scripted_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder whose model answers `ANSWER` to everything."""
    from scripted_model import make_scripted

    return make_scripted(tmp_path_factory.mktemp("scripted") / "base")


@pytest.fixture(scope="session")
def scripted_gguf(scripted_base: Path) -> Path:
    """The same model as a bf16 GGUF, without a manifest."""
    from export.convert import Provenance, write_gguf

    folder = scripted_base.parent / "gguf"
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    return write_gguf(scripted_base, None, folder / "tiny.gguf", nobody).path


@pytest.fixture(scope="session")
def scripted_lora(scripted_base: Path) -> Path:
    """An adapter over it, as llama.cpp reads it, that makes it say other things."""
    from tiny_models import make_adapter

    from export.adapter import write_adapter_gguf
    from export.convert import Provenance

    folder = scripted_base.parent
    adapter = make_adapter(scripted_base, folder / "adapter", lora_alpha=64)
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    return write_adapter_gguf(scripted_base, adapter, folder / "lora.gguf", nobody).path
