"""Several processes for one command, started the way a user starts them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_models import make_base

from eval.answering import share
from kormed_edge.cli import main
from kormed_edge.config import TrainConfig
from kormed_edge.errors import KormedError, TrainError
from kormed_edge.ranks import Rank, take_gpu, this_rank
from kormed_edge.records import Record
from train.qlora import samples_per_rank

ROOT = Path(__file__).parents[1]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--main_process_port", "0",
]  # fmt: skip
RECORDS = [Record(f"q{n}", "obgyn", "short_answer", "가" * n, "나") for n in (3, 9, 1, 7, 5)]


def ids(records: list[Record]) -> list[str]:
    return [record.qa_id for record in records]


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start two ranks in the repository's root, without any GPU."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run([*LAUNCH, *command], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("count", "shares"),
    [
        (1, [["q3", "q9", "q1", "q7", "q5"]]),
        (2, [["q9", "q1", "q5"], ["q3", "q7"]]),
        (3, [["q3", "q9"], ["q1", "q7"], ["q5"]]),
    ],
)
def test_long_questions_are_dealt_out_in_turn(count: int, shares: list[list[str]]) -> None:
    assert [ids(share(RECORDS, index, count)) for index in range(count)] == shares


def test_more_ranks_than_items_leave_some_without() -> None:
    assert [ids(share(RECORDS[:1], index, 3)) for index in range(3)] == [["q3"], [], []]


def test_rank_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_rank() == Rank(index=0, count=1, local=0, local_count=1)
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert this_rank() == Rank(index=5, count=8, local=1, local_count=4)


def test_single_process_loads_nothing_for_ranks() -> None:
    code = "import sys; from kormed_edge.ranks import everywhere, led\n"
    code += "led(everywhere)(print, 'done')\nprint('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "done\nFalse\n"


def test_each_rank_sees_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab12")
    take_gpu(Rank(index=5, count=6, local=1, local_count=2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-ab12"


def test_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("kormed_edge.ranks.gpu_names", lambda: ["a card", "another"])
    with pytest.raises(KormedError, match=r"3 ranks on a machine with 2 GPU\(s\)"):
        take_gpu(Rank(index=2, count=3, local=2, local_count=3))


LED = """
import os, sys
from contextlib import suppress
from pathlib import Path
from kormed_edge.config import TrainConfig
from kormed_edge.errors import KormedError, TrainError
from kormed_edge.ranks import everywhere, led, this_rank

def note(folder, text):
    cores = sorted(os.sched_getaffinity(0))
    (folder / f"{text}{this_rank().index}").write_text(str(cores))

def fail_at_rank_1(folder):
    if this_rank().index == 1:
        raise KormedError("no room")
    note(folder, "still")

@led
def command(folder):
    note(folder, "leads")
    everywhere(note, folder, "works")
    try:
        everywhere(fail_at_rank_1, folder)
    except KormedError as error:
        (folder / "error").write_text(str(error))
    everywhere(note, folder, "again")
    raise KormedError("the command failed")

if __name__ == "__main__":
    with suppress(KormedError):
        command(Path(sys.argv[1]))
    note(Path(sys.argv[1]), "left")
"""


@pytest.fixture(scope="module")
def led(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks of one command, which failed in the end, left behind."""
    folder = tmp_path_factory.mktemp("led")
    (folder / "script.py").write_text(LED)
    done = launch(str(folder / "script.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_rank_0_leads_and_every_rank_works_and_leaves(led: Path) -> None:
    assert sorted(path.name for path in led.glob("*[01]")) == [
        "again0", "again1", "leads0", "left0", "left1", "still0", "works0", "works1",
    ]  # fmt: skip


def test_error_of_a_rank_is_raised_where_the_command_runs(led: Path) -> None:
    assert (led / "error").read_text().startswith("rank 1: no room")


def test_ranks_of_one_machine_share_its_cores(led: Path) -> None:
    whole, *parts = (json.loads((led / n).read_text()) for n in ("leads0", "works0", "works1"))
    if len(whole) < 2:
        pytest.skip("one core")
    assert not set(parts[0]) & set(parts[1])
    assert json.loads((led / "left0").read_text()) == whole


SETTINGS = {
    "data.source": ROOT / "samples",
    "data.ratios": "[0.9, 0.05, 0.05]",
    "train.max_steps": 1,
    "train.eval_steps": 1,
    "train.max_length": 256,
    "export.types": "[Q8_0]",
    "export.parity_prompts": 2,
    "eval.arms": "[adapter, gguf:Q8_0]",
    "eval.batch_size": 1,
    "eval.max_new_tokens": 4,
    "eval.gate.candidate": "gguf:Q8_0",
}
FILES = ("adapter.jsonl", "gguf-Q8_0.jsonl")

# The command line, of which rank 1 ends as in a power cut when it has written so many answers.
KILLED = """
import os, signal, sys
from eval import answering
from kormed_edge.cli import main
answers, append = int(sys.argv.pop(1)), answering.append_predictions
def append_or_die(path, predictions):
    for count in append(path, predictions):
        yield count
        if count == answers and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
answering.append_predictions = append_or_die
main()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one run, `one`, that a single process evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    make_base(folder / "base", intermediate_size=128, max_position_embeddings=4096)
    for command in ("data", "train", "export", "eval"):
        done = CliRunner().invoke(main, arguments(folder, "one", command), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return folder


def arguments(runs: Path, run: str, command: str) -> list[str]:
    settings = {"base": runs / "base", **SETTINGS}
    options = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    config = str(ROOT / "configs" / "demo.yaml")
    return [command, "--runs-dir", str(runs), "--run", run, "--config", config, *options]


@pytest.fixture
def run(runs: Path, request: pytest.FixtureRequest) -> Path:
    """The same run under the test's name, before its evaluation."""
    name: str = request.node.name
    copy = runs / name
    for stage in ("data", "adapter", "gguf"):
        shutil.copytree(runs / "one" / stage, copy / stage)
    return copy


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(run: Path) -> list[list[dict[str, Any]]]:
    """Predictions of both arms, but for the time that they took, and the mean log-probability:
    its last digits depend on which items were answered at once."""
    rows = [lines(run / "eval" / name) for name in FILES]
    return [[{**row, "seconds": 0, "mean_logprob": None} for row in arm] for arm in rows]


def judged(run: Path, name: str) -> Any:
    """Scores or verdict, but for what is fitted to mean log-probabilities."""
    found = json.loads((run / "eval" / name).read_text(encoding="utf-8"))
    for arm in found.get("arms", found).values() if name == "scores.json" else ():
        if isinstance(arm, dict):
            arm.pop("calibration", None)
    return found


@pytest.mark.slow
def test_two_ranks_leave_what_one_process_leaves(runs: Path, run: Path) -> None:
    done = launch("-m", "kormed_edge.cli", *arguments(runs, run.name, "eval"))
    assert done.returncode == 0, done.stderr
    assert answers(run) == answers(runs / "one")
    assert len(answers(run)[0]) == 17
    for name in ("scores.json", "verdict.json"):
        assert judged(run, name) == judged(runs / "one", name)
    files = {path.name for path in (run / "eval").iterdir()}
    calibrated = {"calibration-Q8_0.json", "valid-gguf-Q8_0.jsonl"}
    assert files == {*FILES, *calibrated, "scores.json", "verdict.json", "manifest.json"}
    assert (run / "report" / "index.html").is_file()


@pytest.mark.slow
def test_killed_ranks_lose_nothing_and_one_process_goes_on(
    runs: Path, run: Path, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = launch(str(script), "3", *arguments(runs, run.name, "eval"))
    assert killed.returncode != 0
    written = [lines(path) for path in sorted((run / "eval.partial").glob("adapter.rank*.jsonl"))]
    assert len(written[-1]) == 3
    done = CliRunner().invoke(main, arguments(runs, run.name, "eval"), catch_exceptions=False)
    assert done.exit_code == 0
    assert answers(run) == answers(runs / "one")
    kept = {row["qa_id"]: row for row in lines(run / "eval" / "adapter.jsonl")}
    assert all(kept[row["qa_id"]] == row for part in written for row in part)


def log_of(run: Path) -> list[float]:
    lines = (run / "adapter" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [e.get("loss", e.get("eval_loss")) for e in entries if {"loss", "eval_loss"} & {*e}]


@pytest.mark.slow
def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", intermediate_size=128, max_position_embeddings=4096)
    settings = {
        "base": base, "data.source": ROOT / "samples", "data.ratios": "[0.1, 0.02, 0.88]",
        "train.max_steps": 3, "train.gradient_accumulation": 4, "train.eval_steps": 3,
        "train.dropout": 0, "train.learning_rate": 0.01,
    }  # fmt: skip
    options = ["--runs-dir", str(tmp_path), "--config", str(ROOT / "configs" / "demo.yaml")]
    options += [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    for run in ("one", "two"):
        assert CliRunner().invoke(main, ["data", "--run", run, *options]).exit_code == 0
    assert CliRunner().invoke(main, ["train", "--run", "one", *options]).exit_code == 0
    launched = launch("-m", "kormed_edge.cli", "train", "--run", "two", *options)
    assert launched.returncode == 0, launched.stderr
    assert log_of(tmp_path / "two") == pytest.approx(log_of(tmp_path / "one"), rel=0.002)


def test_samples_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainError, match="16 samples a step for 3 ranks"):
        samples_per_rank(TrainConfig())
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert samples_per_rank(TrainConfig()) == 4
