import json
from pathlib import Path
from typing import Any

import pytest

from kormed_edge.config import load_config
from kormed_edge.errors import ConfigError, StageError, TrainError
from kormed_edge.manifest import write_json
from kormed_edge.options import RunOptions
from kormed_edge.runs import open_stage, verify_chain
from train.sweep import Outcome, Point, is_finished, make_points, point_options, ranked, run_sweep
from train.sweep_table import sweep_table, write_sweep

LOSSES = {8: 1.5, 16: 1.2, 32: 1.3}


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    """A run with data, to be swept."""
    run = tmp_path / "ablation"
    with open_stage(run, "data", {}) as draft:
        assert draft is not None
        (draft.folder / "train.jsonl").touch()
    return RunOptions(run, load_config(None), force=False)


class Trainer:
    """Makes an adapter whose losses depend on the rank, or fails for some."""

    def __init__(self, *fail: int) -> None:
        self.fail = fail
        self.trained: list[str] = []

    def __call__(self, options: RunOptions) -> None:
        config = options.config.values
        self.trained.append(options.run.name)
        if config.train.rank in self.fail:
            raise TrainError("CUDA out of memory")
        settings = {"base": config.base, "train": config.train.model_dump(mode="json")}
        with open_stage(
            options.run, "adapter", settings, inputs=["data"], force=options.force
        ) as draft:
            assert draft is not None
            last = LOSSES[config.train.rank]
            log = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": last - 0.1}]
            log += [{"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": last}]
            (draft.folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
            write_json(draft.folder / "memory.json", {"tokens_per_second": 1234.5})
            draft.facts["plan"] = {"trainable_parameters": 1000 * config.train.rank}


def points(*ranks: int) -> list[Point]:
    return make_points(ranks, [32], [2e-4], ["model"])


def sweep(options: RunOptions, trainer: Any, *ranks: int) -> list[Outcome]:
    return run_sweep(options, points(*ranks), trainer, lambda _: None)


def states(outcomes: list[Outcome]) -> dict[int, str]:
    return {outcome.point.rank: outcome.state for outcome in outcomes}


def test_every_combination_is_a_point_with_a_name() -> None:
    grid = make_points([8, 16, 8], [16], [1e-4, 2.5e-5], ["a/Qwen2.5-7B"])
    assert [point.name for point in grid] == [
        "r8-a16-lr1e-4", "r8-a16-lr2.5e-5", "r16-a16-lr1e-4", "r16-a16-lr2.5e-5",
    ]  # fmt: skip


def test_bases_are_in_the_names_when_they_are_asked_for() -> None:
    bases = ["Qwen/Qwen2.5-7B-Instruct", "/models/small 한국.gguf"]
    grid = make_points([8], [16], [1e-4], bases, name_bases=True)
    assert [point.name for point in grid] == [
        "r8-a16-lr1e-4-Qwen2.5-7B-Instruct", "r8-a16-lr1e-4-small-한국",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="two of them end in the same name"):
        make_points([8], [16], [1e-4], ["a/m", "b/m"], name_bases=True)


def test_a_point_has_its_own_run_and_settings(options: RunOptions) -> None:
    [point] = make_points([8], [16], [1e-4], ["model"])
    chosen = point_options(options, point)
    assert chosen.run == options.run.with_name("ablation-r8-a16-lr1e-4")
    config = chosen.config.values
    assert (config.train.rank, config.train.alpha, config.train.learning_rate, config.base) == (
        8, 16, 1e-4, "model",
    )  # fmt: skip


def test_points_share_the_data_and_their_chains_hold(options: RunOptions) -> None:
    assert states(sweep(options, Trainer(), 8, 16)) == {8: "finished", 16: "finished"}
    for rank in (8, 16):
        assert verify_chain(options.run.with_name(f"ablation-r{rank}-a32-lr2e-4")) == []


def test_finished_points_are_passed_over(options: RunOptions) -> None:
    sweep(options, Trainer(), 8)
    again = Trainer()
    assert states(sweep(options, again, 8, 16)) == {8: "finished", 16: "finished"}
    assert again.trained == ["ablation-r16-a32-lr2e-4"]


def test_a_failing_point_is_recorded_and_tried_again_next_time(options: RunOptions) -> None:
    outcomes = sweep(options, Trainer(16), 8, 16, 32)
    assert states(outcomes) == {8: "finished", 16: "failed", 32: "finished"}
    assert outcomes[1].reason == "CUDA out of memory"
    again = Trainer()
    assert states(sweep(options, again, 8, 16, 32))[16] == "finished"
    assert again.trained == ["ablation-r16-a32-lr2e-4"]


def test_other_settings_or_other_data_are_not_taken_for_finished(options: RunOptions) -> None:
    sweep(options, Trainer(), 8)
    chosen = point_options(options, points(8)[0])
    assert is_finished(chosen, options.run)
    assert not is_finished(chosen.override("train.epochs", 1), options.run)
    with open_stage(options.run, "data", {"seed": 1}, force=True):
        pass
    assert not is_finished(chosen, options.run)
    [outcome] = sweep(options, Trainer(), 8)
    assert "is not a copy of" in outcome.reason


def test_a_sweep_needs_data(tmp_path: Path) -> None:
    options = RunOptions(tmp_path / "none", load_config(None), force=False)
    with pytest.raises(StageError, match="data is missing"):
        sweep(options, Trainer(), 8)


def test_a_finished_point_is_measured(options: RunOptions) -> None:
    found = sweep(options, Trainer(), 8)[0].found
    assert {key: found[key] for key in list(found)[:5]} == {
        "trainable_parameters": 8000, "train_loss": 1.0, "best_valid_loss": 1.4,
        "last_valid_loss": 1.5, "tokens_per_second": 1234.5,
    }  # fmt: skip


def test_the_best_adapter_is_first_and_failures_are_last(options: RunOptions) -> None:
    outcomes = sweep(options, Trainer(64), 64, 8, 16, 32)
    assert [outcome.point.rank for outcome in ranked(outcomes)] == [16, 32, 8, 64]


def test_the_comparison_is_written_after_every_point(options: RunOptions, tmp_path: Path) -> None:
    counts = []

    def write(outcomes: list[Outcome]) -> None:
        write_sweep(tmp_path, "ablation", "hash", outcomes)
        written = json.loads((tmp_path / "sweep.json").read_text())
        counts.append(sorted(point["state"] for point in written["points"]))

    run_sweep(options, points(8, 16), Trainer(16), write)
    assert counts == [["finished", "waiting"], ["failed", "finished"]]


def test_the_table_is_sorted_and_names_what_failed(options: RunOptions, tmp_path: Path) -> None:
    outcomes = sweep(options, Trainer(64), 64, 8, 16)
    write_sweep(tmp_path, "ablation", "hash", outcomes)
    text = (tmp_path / "sweep.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith(
        "| 16 | 32 | 2e-4 | model | 16,000 | 1.0000 | 1.1000 | 1.2000 | 1,234 | "
    )
    assert rows[2].endswith(" | failed: CUDA out of memory |")
    assert sweep_table(outcomes).row_count == 3
    assert (tmp_path / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_is_drawn_of_failures_alone(options: RunOptions, tmp_path: Path) -> None:
    write_sweep(tmp_path, "ablation", "hash", sweep(options, Trainer(8), 8))
    assert not (tmp_path / "sweep.png").exists()
