from pathlib import Path

import pytest

from eval.acceptance_folder import open_folder
from kormed_edge.errors import EvalError

ASKED = {"bundle": "a", "slots": 2}


def finish(folder: Path) -> None:
    (folder / "report.json.sig").touch()


def test_a_stopped_verification_is_found_again(own_home: Path) -> None:
    with open_folder(None, ASKED) as first:
        assert first.parent == own_home / "acceptance"
    with open_folder(None, ASKED) as again:
        assert again == first


def test_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", ASKED) as folder:
        finish(folder)
    with pytest.raises(EvalError, match="finished"), open_folder(tmp_path / "out", ASKED):
        pass


def test_another_question_is_not_mixed_in(tmp_path: Path) -> None:
    with open_folder(tmp_path, ASKED):
        pass
    with pytest.raises(EvalError, match="another"), open_folder(tmp_path, {**ASKED, "slots": 4}):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        open_folder(tmp_path, ASKED),
        pytest.raises(EvalError, match="writes here"),
        open_folder(tmp_path, ASKED),
    ):
        pass


def test_a_state_that_a_kill_left_half_written_is_of_another(own_home: Path) -> None:
    state = own_home / "acceptance" / "20260101T000000Z" / "run.json"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    with open_folder(None, ASKED) as folder:
        assert folder != state.parent


def test_a_place_that_can_not_be_written_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvalError, match="--out"), open_folder(tmp_path / "file" / "out", ASKED):
        pass
