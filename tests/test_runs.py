import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kormed_edge.errors import StageError
from kormed_edge.manifest import MANIFEST, read_manifest
from kormed_edge.runs import open_stage, require_stage, verify_chain

SETTINGS = {"data": {"seed": 42}}
OTHER = {"data": {"seed": 43}}


def finish(run: Path, stage: str = "data", text: str = "whole", **options: Any) -> bool:
    """Write a stage of one file; False if it was there already."""
    with open_stage(run, stage, options.pop("settings", SETTINGS), **options) as draft:
        if draft is not None:
            (draft.folder / "file").write_text(text)
        return draft is not None


def fail(run: Path, text: str = "half", **options: Any) -> bool:
    """Stop a stage after its first file; True if it had been resumed."""
    resumed: list[bool] = []

    def stop() -> None:
        with open_stage(run, "data", options.pop("settings", SETTINGS), **options) as draft:
            assert draft is not None
            resumed.append(draft.resumed)
            with (draft.folder / "file").open("a") as file:
                file.write(text)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    return resumed[0]


def kill(run: Path, *, resumable: bool) -> None:
    """A process that writes half a file and dies without a chance to tidy up."""
    code = f"""
import os
from pathlib import Path
from kormed_edge.runs import open_stage
with open_stage(Path({str(run)!r}), "data", {SETTINGS}, resumable={resumable}) as draft:
    (draft.folder / "file").write_text("half")
    (draft.folder / "leftover.tmp").touch()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    with open_stage(tmp_path, "data", SETTINGS) as draft:
        assert draft is not None
        assert names(tmp_path) == ["data.partial"]
        assert not (draft.folder / MANIFEST).exists()
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == [MANIFEST]


def test_the_manifest_knows_what_the_stage_was_made_from(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    finish(run)
    with open_stage(run, "adapter", {"train": 1}, inputs=["data"]) as draft:
        assert draft is not None
        draft.seed = 7
        draft.facts["plan"] = {"steps": 2}
    manifest = read_manifest(run / "adapter")
    assert (manifest.stage, manifest.run, manifest.seed) == ("adapter", "demo", 7)
    assert manifest.settings == {"train": 1, "plan": {"steps": 2}}
    assert list(manifest.inputs) == ["data"]
    assert manifest.files == {}
    assert verify_chain(run) == []


def test_a_finished_stage_is_used_again(tmp_path: Path) -> None:
    assert finish(tmp_path)
    before = (tmp_path / "data" / MANIFEST).read_bytes()
    assert not finish(tmp_path, text="never written")
    assert (tmp_path / "data" / MANIFEST).read_bytes() == before


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    finish(run)
    with pytest.raises(StageError) as caught:
        finish(run, settings=OTHER)
    assert "made with other settings: data" in caught.value.found
    assert "kormed data --run demo --force" in str(caught.value.remedy)


def test_another_input_counts_as_another_setting(tmp_path: Path) -> None:
    finish(tmp_path)
    finish(tmp_path, "adapter", inputs=["data"])
    finish(tmp_path, text="new", force=True)
    with pytest.raises(StageError, match="other settings: data/"):
        finish(tmp_path, "adapter", inputs=["data"])


def test_force_makes_it_anew(tmp_path: Path) -> None:
    finish(tmp_path)
    assert finish(tmp_path, settings=OTHER, text="new", force=True)
    assert (tmp_path / "data" / "file").read_text() == "new"
    assert names(tmp_path) == ["data"]


def test_a_failed_remake_keeps_the_finished_stage(tmp_path: Path) -> None:
    finish(tmp_path)
    fail(tmp_path, settings=OTHER, force=True)
    assert (tmp_path / "data" / "file").read_text() == "whole"
    assert verify_chain(tmp_path) == []


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path)
    assert not tmp_path.exists()


def test_a_failed_resumable_stage_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert not fail(tmp_path, "one ", resumable=True)
    assert names(tmp_path) == ["data.partial"]
    assert fail(tmp_path, "two", resumable=True)
    with open_stage(tmp_path, "data", SETTINGS, resumable=True) as draft:
        assert draft is not None
        assert draft.resumed
    assert (tmp_path / "data" / "file").read_text() == "one two"
    assert names(tmp_path / "data") == ["file", MANIFEST]


def test_other_settings_start_from_nothing(tmp_path: Path) -> None:
    fail(tmp_path, resumable=True)
    with open_stage(tmp_path, "data", OTHER, resumable=True) as draft:
        assert draft is not None
        assert not draft.resumed
        assert not (draft.folder / "file").exists()


def test_a_killed_process_leaves_a_resumable_stage_that_resumes(tmp_path: Path) -> None:
    kill(tmp_path, resumable=True)
    with open_stage(tmp_path, "data", SETTINGS, resumable=True) as draft:
        assert draft is not None
        assert draft.resumed
        assert (draft.folder / "file").read_text() == "half"


def test_what_a_killed_process_left_never_enters_another_stage(tmp_path: Path) -> None:
    kill(tmp_path, resumable=False)
    finish(tmp_path)
    assert names(tmp_path / "data") == ["file", MANIFEST]


def test_the_time_of_all_attempts_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 10.0, 100.0, 102.5])
    monkeypatch.setattr("kormed_edge.runs.time.monotonic", lambda: next(ticks))
    fail(tmp_path, resumable=True)
    finish(tmp_path, resumable=True)
    assert read_manifest(tmp_path / "data").seconds == 12.5


def test_a_stage_that_cannot_be_described_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kormed_edge.runs.new_manifest", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finish(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("made", ["data", "data.partial", None])
def test_an_unfinished_stage_is_named_with_its_command(made: str | None, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    if made:
        (run / made).mkdir(parents=True)
    with pytest.raises(StageError) as caught:
        require_stage(run, "data")
    state = "is unfinished" if made else "is missing"
    assert caught.value.found == f"{run / 'data'} {state}: it has no {MANIFEST}"
    assert caught.value.remedy == "make data RUN=demo"


def test_a_stage_without_its_input_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="make data"):
        finish(tmp_path, "adapter", inputs=["data"])
    assert names(tmp_path) == []


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from kormed_edge.runs import open_stage
with open_stage(Path({str(tmp_path)!r}), "adapter", {{}}):
    print("in", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(StageError, match="is being written by another process"):
            finish(tmp_path)
        assert names(tmp_path) == ["adapter.partial"]
        first.communicate("\n")
    assert finish(tmp_path)


def test_an_error_of_the_stage_is_not_taken_for_the_lock_s(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), open_stage(tmp_path, "data", SETTINGS):
        raise BlockingIOError


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    run = tmp_path / "demo"
    finish(run)
    finish(run, "adapter", inputs=["data"])
    finish(run, "gguf", inputs=["adapter", "data"])
    assert verify_chain(run) == []
    return run


def change_byte(run: Path) -> None:
    (run / "adapter" / "file").write_text("whale")


def lose_file(run: Path) -> None:
    (run / "adapter" / "file").unlink()


def add_file(run: Path) -> None:
    (run / "adapter" / "more").touch()


def other_input(run: Path) -> None:
    finish(run, text="other", force=True)


def no_input(run: Path) -> None:
    (run / "data").rename(run.parent / "elsewhere")


def no_manifest(run: Path) -> None:
    (run / "gguf" / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (change_byte, ["adapter/file: contents differ from the manifest"]),
        (lose_file, ["adapter/file: missing"]),
        (add_file, ["adapter/more: not in the manifest"]),
        (
            other_input,
            [
                "adapter: made from another data/ than the one that is here",
                "gguf: made from another data/ than the one that is here",
            ],
        ),
        (no_input, ["adapter: its input data/ is missing", "gguf: its input data/ is missing"]),
        (no_manifest, ["gguf: unfinished, it has no manifest.json"]),
    ],
)
def test_the_chain_tells_every_damage(damage: Any, expected: list[str], chain: Path) -> None:
    damage(chain)
    assert verify_chain(chain) == [f"{chain}/{problem}" for problem in expected]


def test_a_run_that_does_not_exist_is_not_intact(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist"):
        verify_chain(tmp_path / "nowhere")
