"""`kormed judge` over a finished evaluation, with a real endpoint on the loopback."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_judge import ARMS, Judge, server

from eval.predictions import append_predictions, file_name
from kormed_edge.cli import main
from kormed_edge.manifest import MANIFEST
from kormed_edge.runs import open_stage, verify_chain

__all__ = ["server"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with open_stage(tmp_path / "demo", "eval", {}) as draft:
        assert draft is not None
        draft.facts["arms"] = list(ARMS)
        for arm, rows in ARMS.items():
            list(append_predictions(draft.folder / file_name(arm), rows))
    return tmp_path / "demo"


def kormed_judge(run: Path, endpoint: str, *others: str) -> Result:
    options = [
        "--runs-dir",
        str(run.parent),
        "--run",
        run.name,
        "--model",
        "심사",
        "--repeats",
        "1",
    ]
    return CliRunner().invoke(main, ["judge", *options, "--endpoint", endpoint, *others])


def test_scores_of_every_arm_become_a_stage_of_the_run(run: Path, server: Judge) -> None:
    result = kormed_judge(run, server.url)
    assert result.exit_code == 0, result.output
    assert "4.00 [4.00–4.00]" in result.output
    written = json.loads((run / "judge" / "judge.json").read_text(encoding="utf-8"))
    assert list(written["arms"]) == list(ARMS)
    assert verify_chain(run) == []


def test_second_judgement_asks_nothing(run: Path, server: Judge) -> None:
    kormed_judge(run, server.url)
    asked = len(server.seen)
    assert kormed_judge(run, server.url).exit_code == 0
    assert len(server.seen) == asked


def test_stopped_judgement_goes_on_where_it_was(run: Path, server: Judge) -> None:
    server.status = 500
    assert kormed_judge(run, server.url).exit_code == 1
    assert not (run / "judge" / MANIFEST).exists()
    server.status = 200
    assert kormed_judge(run, server.url).exit_code == 0


def test_judge_elsewhere_is_refused(run: Path) -> None:
    result = kormed_judge(run, "http://203.0.113.5/v1")
    assert result.exit_code == 1
    assert "--allow-remote" in result.output


def test_key_file_is_no_part_of_the_manifest(run: Path, server: Judge, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("geheim")
    assert kormed_judge(run, server.url, "--api-key-file", str(key)).exit_code == 0
    assert server.seen[0]["key"] == "Bearer geheim"
    for path in (run / "judge").iterdir():
        assert "geheim" not in path.read_text(encoding="utf-8")
        assert str(key) not in path.read_text(encoding="utf-8")
