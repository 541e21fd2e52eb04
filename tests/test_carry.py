from pathlib import Path

import pytest

from kormed_edge.errors import StageError
from kormed_edge.runs import open_stage, verify_chain
from train.carry import carry_stage


def finish(run: Path, stage: str, text: str = "whole", inputs: tuple[str, ...] = ()) -> None:
    with open_stage(run, stage, {"text": text}, inputs=inputs, force=True) as draft:
        assert draft is not None
        (draft.folder / "file").write_text(text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    finish(tmp_path / "source", "data")
    return tmp_path / "source"


def test_what_is_made_from_a_carried_stage_is_part_of_the_chain(source: Path) -> None:
    run = source.with_name("run")
    carry_stage(source, "data", run, "data")
    finish(run, "adapter", inputs=("data",))
    assert verify_chain(run) == []
    (run / "data" / "file").write_text("other")
    assert verify_chain(run) == [f"{run}/data/file: contents differ from the manifest"]


def test_a_stage_that_is_there_is_left_alone(source: Path) -> None:
    target = carry_stage(source, "data", source.with_name("run"), "data")
    (target / "witness").touch()
    assert carry_stage(source, "data", source.with_name("run"), "data") == target
    assert (target / "witness").exists()


def test_another_stage_is_replaced_only_by_force(source: Path) -> None:
    run = source.with_name("run")
    finish(run, "data", "other")
    with pytest.raises(StageError, match="is not a copy of"):
        carry_stage(source, "data", run, "data")
    assert (run / "data" / "file").read_text() == "other"
    carry_stage(source, "data", run, "data", force=True)
    assert (run / "data" / "file").read_text() == "whole"


def test_a_damaged_stage_is_not_carried(source: Path) -> None:
    (source / "data" / "file").write_text("half!")
    with pytest.raises(StageError, match="contents differ from the manifest"):
        carry_stage(source, "data", source.with_name("run"), "data")
    assert not source.with_name("run").exists()


def test_an_unfinished_stage_is_not_carried(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="is missing"):
        carry_stage(tmp_path / "source", "data", tmp_path / "run", "data")


def test_a_copy_that_a_kill_cut_short_is_made_again(source: Path) -> None:
    partial = source.with_name("run") / "data.carried"
    partial.mkdir(parents=True)
    (partial / "leftover").touch()
    target = carry_stage(source, "data", source.with_name("run"), "data")
    assert sorted(path.name for path in target.iterdir()) == ["file", "manifest.json"]
    assert not partial.exists()
