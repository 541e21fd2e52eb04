"""`kormed data` and `kormed train` with its subcommands, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tiny_models import make_base

from kormed_edge.cli import main
from kormed_edge.errors import TrainError
from kormed_edge.manifest import read_manifest
from kormed_edge.records import read_records
from kormed_edge.runs import verify_chain
from train import own_process, qlora
from train.balance import domain_weights
from train.commands import make_adapter

SAMPLES = Path(__file__).parents[1] / "samples"
SETTINGS: dict[str, Any] = {
    "data": {"source": str(SAMPLES)},
    "train": {
        "rank": 4, "alpha": 8, "max_steps": 2, "batch_size": 2, "gradient_accumulation": 1,
        "optimizer": "adamw_torch", "log_steps": 1, "eval_steps": 2, "max_length": 448,
        "gradient_checkpointing": False, "loss": "sequence",
    },
    "dpo": {
        "max_steps": 2, "batch_size": 2, "gradient_accumulation": 1, "optimizer": "adamw_torch",
        "log_steps": 1, "eval_steps": 2, "max_length": 512, "gradient_checkpointing": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, a base, and the run `r` that has data and an adapter."""
    folder = tmp_path_factory.mktemp("train")
    base = make_base(folder / "base", intermediate_size=128, max_position_embeddings=512)
    (folder / "r.yaml").write_text(yaml.safe_dump(SETTINGS | {"base": str(base)}))
    for command in ("data", "train"):
        result = kormed(folder, command)
        assert result.exit_code == 0, result.output
    return folder


def kormed(place: Path, *arguments: str, run: str = "r") -> Result:
    options = ["--run", run, "--config", str(place / "r.yaml"), "--runs-dir", str(place / "runs")]
    return CliRunner().invoke(main, [*arguments, *options])


def write_pairs(path: Path, *questions: str) -> list[str]:
    rows = [{"prompt": q, "chosen": "맞는 답", "rejected": "틀린 답"} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--pairs", str(path)]


def test_train_without_a_subcommand_fine_tunes(place: Path) -> None:
    assert verify_chain(place / "runs" / "r") == []
    assert "finished already" in kormed(place, "train").output
    assert "finished already" in kormed(place, "train", "sft").output


def test_the_adapter_s_folder_tells_lengths_in_tokens(place: Path) -> None:
    about = json.loads((place / "runs" / "r" / "adapter" / "lengths.json").read_text())
    train = about["splits"]["train"]["all"]
    assert train["samples"] == len(read_records(place / "runs" / "r" / "data" / "train.jsonl"))
    assert 0 < train["over"] < train["samples"]


def test_a_dry_run_tells_them_and_writes_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    result = kormed(place, "train", "--dry-run")
    assert "exceed 448" in result.output
    assert "2 optimizer steps" in result.output
    assert sorted(place.rglob("*")) == before


def test_oversampling_leaves_validation_and_test_alone(place: Path) -> None:
    options = ("data", "--set", "data.balance=oversample")
    assert kormed(place, *options, run="balanced").exit_code == 0
    natural, balanced = (place / "runs" / name / "data" for name in ("r", "balanced"))
    for name in ("valid.jsonl", "test.jsonl"):
        assert (natural / name).read_bytes() == (balanced / name).read_bytes()
    about, plain = (
        json.loads((folder / "stats.json").read_text()) for folder in (balanced, natural)
    )
    assert about["splits"] == plain["splits"]
    assert len(set(about["balance"]["after"].values())) == 1
    assert sum(about["balance"]["after"].values()) == len(read_records(balanced / "train.jsonl"))
    assert plain["balance"]["after"] == about["balance"]["before"]


def test_weights_of_the_data_stage_reach_the_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def train_adapter(*_: Any, **named: Any) -> None:
        given.update(named)
        raise TrainError("enough")

    monkeypatch.setattr(qlora, "train_adapter", train_adapter)
    assert kormed(place, "data", "--set", "data.balance=weighted_loss", run="w").exit_code == 0
    assert "enough" in kormed(place, "train", run="w").output
    train = read_records(place / "runs" / "w" / "data" / "train.jsonl")
    assert given["domain_weights"] == domain_weights(train)


def test_dpo_makes_a_run_that_later_stages_can_take(place: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "p.jsonl", "첫 질문?", "둘째 질문?", "셋째 질문?")
    result = kormed(place, "train", "dpo", *pairs)
    assert result.exit_code == 0, result.output
    run = place / "runs" / "r-dpo"
    assert verify_chain(run) == []
    adapter, sft = read_manifest(run / "adapter"), read_manifest(place / "runs" / "r" / "adapter")
    assert set(adapter.inputs) == {"data", "sft"}
    assert (adapter.base, adapter.settings["base"]) == (sft.base, sft.settings["base"])
    assert adapter.settings["pairs"]["number"] == 3
    assert adapter.settings["dpo_plan"]["pairs"] == 2
    for key in ("train", "plan"):  # which the report shows
        assert adapter.settings[key] == sft.settings[key]
    assert "finished already" in kormed(place, "train", "dpo", *pairs).output
    write_pairs(tmp_path / "p.jsonl", "첫 질문?", "둘째 질문?")
    other = kormed(place, "train", "dpo", *pairs)
    assert "was made with other settings: pairs" in other.output


def test_dpo_refuses_questions_of_the_test_split(place: Path, tmp_path: Path) -> None:
    seen = read_records(place / "runs" / "r" / "data" / "test.jsonl")[0].question
    pairs = write_pairs(tmp_path / "p.jsonl", "첫 질문?", seen)
    result = kormed(place, "train", "dpo", "--to", "leaked", *pairs)
    assert result.exit_code == 1
    assert "line 2: its question is" in result.output
    assert not (place / "runs" / "leaked").exists()


def test_dpo_dry_run_writes_nothing(place: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "p.jsonl", "첫 질문?", "둘째 질문?")
    result = kormed(place, "train", "dpo", "--to", "dry", "--dry-run", *pairs)
    assert "1 pairs to train on, 1 held out" in result.output
    assert not (place / "runs" / "dry").exists()


def test_dpo_does_not_overwrite_the_run_it_starts_from(place: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "p.jsonl", "첫 질문?", "둘째 질문?")
    assert "is the run itself" in kormed(place, "train", "dpo", "--to", "r", *pairs).output


def test_a_sweep_compares_what_it_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        own_process, "train_in_own_process", lambda options, _: make_adapter(options)
    )
    result = kormed(place, "train", "sweep", "--rank", "2,4")
    assert result.exit_code == 0, result.output
    folder = place / "runs" / "r-sweep"
    found = json.loads((folder / "sweep.json").read_text())["points"]
    assert sorted(point["point"]["rank"] for point in found) == [2, 4]
    by_rank = {point["point"]["rank"]: point["found"] for point in found}
    assert by_rank[4]["trainable_parameters"] == 2 * by_rank[2]["trainable_parameters"]
    assert by_rank[2]["last_valid_loss"] > 0
    assert {path.name for path in folder.iterdir()} >= {"sweep.json", "sweep.md", "sweep.png"}


def test_a_sweep_s_dry_run_lists_the_points(place: Path) -> None:
    result = kormed(place, "train", "sweep", "--alpha", "8,16", "--rank", "99", "--dry-run")
    assert "r-r99-a8-lr2e-4: to be trained" in result.output
    assert "2 points" in result.output
    assert not (place / "runs" / "r-r99-a8-lr2e-4").exists()


def test_a_sweep_in_which_all_fails_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise TrainError("CUDA out of memory")

    monkeypatch.setattr(own_process, "train_in_own_process", train)
    result = kormed(place, "train", "sweep", "--rank", "64,128")
    assert result.exit_code == 1
    assert "every point failed, the first with: CUDA out of memory" in result.output


@pytest.mark.parametrize("values", ["8,", "0", "8,many"])
def test_values_that_are_no_ranks_are_wrong_use(place: Path, values: str) -> None:
    assert kormed(place, "train", "sweep", "--rank", values).exit_code == 2
