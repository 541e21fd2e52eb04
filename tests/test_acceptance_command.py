"""`kormed verify --acceptance`, with a model that answers, from the bundle to the signed report."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from acceptance_run import ANSWER, make_update, make_workshop, prediction, read_result, record
from bundle_run import Workshop
from bundle_tampers import flip
from click.testing import CliRunner, Result

from eval import acceptance_command
from kormed_edge.bundle_signing import make_keys
from kormed_edge.cli import main
from kormed_edge.records import write_records

ROWS = [prediction(n) for n in range(5)]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, scripted_gguf: Path) -> dict[str, Workshop]:
    folder = tmp_path_factory.mktemp("workshops")
    return {
        source: make_workshop(folder / source, scripted_gguf, ROWS, source)
        for source in ("samples", "aihub")
    }


@pytest.fixture
def workshop(templates: dict[str, Workshop], tmp_path: Path) -> Workshop:
    return templates["samples"].copy(tmp_path / "workshop")


@pytest.fixture
def closed(templates: dict[str, Workshop], tmp_path: Path) -> Workshop:
    """Of data that may not be passed on, so that only hashes travel."""
    return templates["aihub"].copy(tmp_path / "workshop")


def verify(workshop: Workshop, folder: Path, *options: Any) -> Result:
    arguments = ["--bundle", folder, "--key", workshop.public, "--out", workshop.folder / "site"]
    command = ["verify", "--acceptance", *map(str, (*arguments, *options))]
    return CliRunner().invoke(main, command)


def test_a_sound_bundle_gives_a_signed_report(workshop: Workshop) -> None:
    result = verify(workshop, workshop.bundle())
    assert result.exit_code == 4, result.output
    site = workshop.folder / "site"
    report = read_result(site)
    assert (report["outcome"], report["only_small"]) == ("INCONCLUSIVE", True)
    assert report["items"] == {
        "total": 5, "compared": 5, "missing": 0, "identical": 5, "changed": 0
    }  # fmt: skip
    for name in ("report.html", "report.json"):
        command = f"openssl pkeyutl -verify -pubin -inkey site.pub -rawin -in {name}"
        signed = subprocess.run(
            [*command.split(), "-sigfile", f"{name}.sig"], cwd=site, capture_output=True
        )
        assert signed.returncode == 0, signed.stdout


def test_a_machine_that_answers_otherwise_gets_3(scripted_gguf: Path, tmp_path: Path) -> None:
    rows = [prediction(n, "1) 휴식", right=1) for n in range(5)]
    workshop = make_workshop(tmp_path / "w", scripted_gguf, rows, "samples")
    result = verify(workshop, workshop.bundle())
    assert result.exit_code == 3, result.output
    changed = read_result(workshop.folder / "site")["changed"]
    assert [(c["kind"], c["sealed_option"], c["option"]) for c in changed] == [("lost", 1, 3)] * 5


def test_an_installed_update_answers_with_its_adapter(
    workshop: Workshop, scripted_gguf: Path, scripted_lora: Path
) -> None:
    update = make_update(workshop, scripted_gguf, scripted_lora)
    sealed = (update / "acceptance/test.jsonl").read_text(encoding="utf-8")
    assert f'"output": "{ANSWER}"' not in sealed  # which is what the model says on its own
    result = verify(workshop, update)
    assert result.exit_code in (3, 4), result.output
    report = read_result(workshop.folder / "site")
    assert (report["items"]["identical"], report["items"]["total"]) == (5, 5)
    assert report["bundle"]["adapter"]["file"] == "adapter/adapter.gguf"
    page = (workshop.folder / "site" / "report.html").read_text("utf-8")
    assert "adapter/adapter.gguf" in page


@pytest.mark.parametrize(
    "name",
    [
        "model/demo-Q4_K_M.gguf", "model/manifest.json", "manifests/eval.json",
        "acceptance/test.jsonl", "image/kormed-edge.tar", "bundle.json",
    ],
)  # fmt: skip
def test_a_changed_file_is_refused_and_named(
    name: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workshop.bundle()
    flip(folder / name)
    monkeypatch.setattr(acceptance_command, "_answer", lambda *_: pytest.fail("answered"))
    result = verify(workshop, folder)
    assert result.exit_code == 1
    assert f"{name}: damaged" in result.stderr
    assert not (workshop.folder / "site").exists()


def test_hashed_items_are_counted_and_said_plainly(closed: Workshop) -> None:
    result = verify(closed, closed.bundle())
    assert result.exit_code == 4
    assert "5 of 5 items travel as hashes only" in " ".join(result.stderr.split())
    page = (closed.folder / "site" / "report.html").read_text("utf-8")
    assert "5문항 중 5문항은 해시만 있어" in page


def test_the_sites_own_records_open_hashed_items(closed: Workshop) -> None:
    records = closed.folder / "own.jsonl"
    write_records(records, [record(n) for n in (1, 3, 99)])
    result = verify(closed, closed.bundle(), "--records", records)
    assert result.exit_code == 4
    items = read_result(closed.folder / "site")["items"]
    assert (items["compared"], items["identical"], items["missing"]) == (2, 2, 3)
    page = (closed.folder / "site" / "report.html").read_text("utf-8")
    assert "지어낸 질문" not in page


def test_records_that_are_no_item_of_the_bundle_are_refused(closed: Workshop) -> None:
    records = closed.folder / "own.jsonl"
    write_records(records, [record(99)])
    result = verify(closed, closed.bundle(), "--records", records)
    assert result.exit_code == 1
    assert "own.jsonl: none of its 1 records" in result.stderr


def test_a_sites_own_set_is_asked_too_and_its_texts_stay(closed: Workshop) -> None:
    own = closed.folder / "mine.jsonl"
    rows = [prediction(7), prediction(8, "1) 휴식")]
    own.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    result = verify(closed, closed.bundle(), "--reference", own)
    assert result.exit_code == 3, result.output
    report = read_result(closed.folder / "site")
    assert [(s["name"], s["source"], s["compared"]) for s in report["sets"]] == [
        ("test", "restricted", 0), ("own-1", "site", 2)
    ]  # fmt: skip
    assert [(c["set"], c["qa_id"], c["kind"]) for c in report["changed"]] == [
        ("own-1", "17008", "gained")
    ]
    assert "지어낸 질문" not in (closed.folder / "site" / "report.html").read_text("utf-8")


def test_a_stopped_verification_goes_on_where_it_was(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workshop.bundle()
    append = acceptance_command.append_predictions

    def killed(path: Path, answers: Any) -> Any:
        for count in append(path, answers):
            if count == 3:
                raise KeyboardInterrupt
            yield count

    with monkeypatch.context() as patch:
        patch.setattr(acceptance_command, "append_predictions", killed)
        verify(workshop, folder)
    answers = workshop.folder / "site" / "answers" / "test.jsonl"
    before = answers.read_text("utf-8")
    assert before.count("\n") == 3
    assert verify(workshop, folder).exit_code == 4
    assert answers.read_text("utf-8").startswith(before)
    assert answers.read_text("utf-8").count("\n") == 5


def test_an_installed_bundle_is_verified_where_it_is(workshop: Workshop) -> None:
    folder = workshop.bundle()
    (folder / "INSTALLED").write_text("")
    current = workshop.folder / "current"
    current.symlink_to(folder)
    assert verify(workshop, current).exit_code == 4


def test_a_model_in_parts_must_be_installed_first(workshop: Workshop) -> None:
    result = verify(workshop, workshop.bundle(max_file_bytes=100_000))
    assert result.exit_code == 1
    assert "install it" in result.stderr


def test_a_bundle_of_another_sender_is_refused(workshop: Workshop) -> None:
    folder = workshop.bundle()
    for key in (workshop.private, workshop.public):
        key.unlink()
    make_keys(workshop.private, workshop.public)
    assert "was not signed" in verify(workshop, folder).stderr


@pytest.mark.parametrize(
    "options", [[], ["--run", "demo", "--acceptance"], ["--run", "demo", "--slots", "2"]]
)
def test_what_can_not_be_meant_is_wrong_use(options: list[str]) -> None:
    assert CliRunner().invoke(main, ["verify", *options]).exit_code == 2


def test_what_it_says_is_what_the_model_answered(workshop: Workshop) -> None:
    verify(workshop, workshop.bundle())
    lines = (workshop.folder / "site" / "answers" / "test.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["output"] for line in lines} == {ANSWER}
