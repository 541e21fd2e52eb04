import hashlib
import json
from pathlib import Path

import pytest

from kormed_edge.errors import StageError
from kormed_edge.manifest import (
    MANIFEST,
    BaseModelId,
    Manifest,
    check_files,
    git_commit,
    library_versions,
    manifest_hash,
    new_manifest,
    read_manifest,
    sha256_file,
    write_json,
)


def make_stage(folder: Path) -> Manifest:
    """A finished stage of two files, one of them in a folder of its own."""
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"abc")
    (folder / "deep" / MANIFEST).write_bytes(b"{}")
    manifest = new_manifest(
        folder, stage="data", run="demo", seconds=1.26, settings={"k": [1]}, inputs={"data": "f00"},
        base=BaseModelId(id="some/model", revision="r1", path="/models/some"), seed=42,
    )  # fmt: skip
    write_json(folder / MANIFEST, manifest.model_dump())
    return manifest


def test_hash_is_sha256_and_every_block_is_heard(tmp_path: Path) -> None:
    data = bytes(5 << 20)
    (tmp_path / "f").write_bytes(data)
    heard: list[int] = []
    assert sha256_file(tmp_path / "f", heard.append) == hashlib.sha256(data).hexdigest()
    assert heard == [4 << 20, 1 << 20]


def test_a_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = make_stage(tmp_path / "data")
    assert read_manifest(tmp_path / "data") == manifest
    assert manifest.seconds == 1.3
    assert manifest.created_utc.endswith("+00:00")
    assert manifest.hardware["cores"] >= 1
    assert manifest.libraries["torch"].startswith("2.")


def test_every_file_is_named_with_size_and_hash(tmp_path: Path) -> None:
    files = make_stage(tmp_path).files
    assert list(files) == ["a.txt", f"deep/{MANIFEST}"]
    assert files["a.txt"].size == 3
    assert files["a.txt"].sha256 == hashlib.sha256(b"abc").hexdigest()


def test_the_manifest_s_own_hash_is_that_of_its_file(tmp_path: Path) -> None:
    make_stage(tmp_path)
    written = (tmp_path / MANIFEST).read_bytes()
    assert manifest_hash(tmp_path) == hashlib.sha256(written).hexdigest()


def test_an_untouched_folder_has_no_differences(tmp_path: Path) -> None:
    assert check_files(tmp_path, make_stage(tmp_path)) == []


def test_differences_are_told_by_file(tmp_path: Path) -> None:
    manifest = make_stage(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"abd")
    (tmp_path / "deep" / MANIFEST).unlink()
    (tmp_path / "deep" / "new").touch()
    assert check_files(tmp_path, manifest) == [
        f"{tmp_path}/a.txt: contents differ from the manifest",
        f"{tmp_path}/deep/{MANIFEST}: missing",
        f"{tmp_path}/deep/new: not in the manifest",
    ]
    (tmp_path / "a.txt").write_bytes(b"ab")
    assert check_files(tmp_path, manifest)[0] == f"{tmp_path}/a.txt: 2 bytes, expected 3"


def test_no_manifest_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        read_manifest(tmp_path / "demo" / "adapter")
    assert "has no manifest.json" in caught.value.found
    assert caught.value.remedy == "make train RUN=demo"


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"surprise": 1}, {"stage": None}, {"files": {"a": {}}}]
)
def test_a_manifest_of_another_kind_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    make_stage(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    write_json(tmp_path / MANIFEST, content | change)
    with pytest.raises(StageError, match="is not a manifest of this kit"):
        read_manifest(tmp_path)


def test_a_cut_manifest_is_refused(tmp_path: Path) -> None:
    make_stage(tmp_path)
    whole = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(whole[:-20])
    with pytest.raises(StageError, match="is not a manifest of this kit"):
        read_manifest(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"가": 1})
    with pytest.raises(TypeError):
        write_json(path, {"가": object()})
    assert path.read_text(encoding="utf-8") == '{\n  "가": 1\n}\n'


def test_an_image_s_commit_comes_from_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORMED_COMMIT", "abc123")
    assert git_commit() == "abc123"


def test_versions_are_those_of_what_is_installed() -> None:
    assert set(library_versions()) >= {"torch", "llama-cpp-python", "numpy"}
