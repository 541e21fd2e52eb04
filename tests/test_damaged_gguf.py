"""Files that are no whole GGUF, or not the one that the manifest means."""

import random
from pathlib import Path

import pytest
from random_model import make_random_gguf

from kormed_edge.engine import Engine
from kormed_edge.errors import EngineError
from kormed_edge.manifest import MANIFEST, new_manifest, write_json
from kormed_edge.verification import verify_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_random_gguf(tmp_path_factory.mktemp("whole")).read_bytes()


def test_any_flipped_bit_is_refused_before_anything_is_loaded(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole)
    manifest = new_manifest(
        tmp_path, stage="gguf", run="r", seconds=0, settings={}, inputs={}, base=None, seed=None
    )
    write_json(tmp_path / MANIFEST, manifest.model_dump())
    chance = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match="SHA-256"):
            verify_model(path)
    path.write_bytes(whole)
    verify_model(path)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.02, 0.3, 0.7, 0.999999])
def test_truncated_file_that_nothing_vouches_for_is_an_error(
    share: float, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EngineError, match=r"cut\.gguf"):
        Engine(path, context=64)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04" * 999, b"\0" * 9999, "의무기록\n".encode() * 999, b"GGUF" + b"\xff" * 9999],
    ids=["zip", "zeros", "text", "magic"],
)
def test_foreign_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"foreign\.gguf"):
        Engine(path, context=64)
