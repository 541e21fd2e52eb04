from pathlib import Path
from typing import Any

import pytest
from bundle_run import PASSED, Workshop
from bundle_tampers import MODEL, flip
from click.testing import CliRunner, Result

from kormed_edge.cli import main


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).fill()


@pytest.fixture
def workshop(template: Workshop, tmp_path: Path) -> Workshop:
    return template.copy(tmp_path / "workshop")


def kormed(*words: object, **options: Any) -> Result:
    return CliRunner().invoke(main, ["bundle", *map(str, words)], **options)


def create(workshop: Workshop, *more: object, **options: Any) -> Result:
    return kormed(
        "create", "--run", "demo", "--runs-dir", workshop.run.parent, "--type", "Q4_K_M",
        "--version", "3", "--key", workshop.private, "--image", workshop.image,
        "--out", workshop.folder / "out", "--constraints", workshop.pins, *more, **options,
    )  # fmt: skip


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kormed_edge.bundle_evidence.decide_gate", lambda *_: PASSED)


def test_keygen_writes_a_pair_and_prints_the_fingerprint(tmp_path: Path) -> None:
    result = kormed("keygen", tmp_path / "site.a")
    assert result.exit_code == 0
    assert len(result.stdout.strip()) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site.a.key", "site.a.pub"]


@pytest.mark.usefixtures("passed")
def test_locked_key_signs_with_its_passphrase_only(workshop: Workshop) -> None:
    kormed("keygen", workshop.folder / "l", "--passphrase", input="말\n말\n")
    workshop.private = workshop.folder / "l.key"
    assert create(workshop, input="다른 말\n").exit_code == 1
    assert create(workshop, input="말\n").exit_code == 0


@pytest.mark.usefixtures("passed")
def test_created_bundle_checks(workshop: Workshop) -> None:
    result = create(workshop, "--max-file-bytes", "fat32")
    folder = workshop.folder / "out" / "demo-3"
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n")
    result = kormed("check", folder, "--key", workshop.public)
    assert result.exit_code == 0
    assert "demo 3, signed 2" in result.stderr
    assert "adapter → gguf:Q4_K_M: PASS" in result.stderr


@pytest.mark.usefixtures("passed")
def test_check_names_file_bytes_and_command(workshop: Workshop) -> None:
    create(workshop)
    folder = workshop.folder / "out" / "demo-3"
    flip(folder / MODEL)
    result = kormed("check", folder, "--key", workshop.public)
    assert result.exit_code == 1
    assert f"{MODEL}: damaged, bytes 0 to 10243" in result.stderr
    assert f"dd if=SOURCE/{MODEL} of={folder / MODEL} bs=4194304 skip=0 seek=0" in result.stderr


@pytest.mark.usefixtures("passed")
def test_check_refuses_another_key_and_an_older_version(workshop: Workshop) -> None:
    create(workshop)
    folder = workshop.folder / "out" / "demo-3"
    kormed("keygen", workshop.folder / "o")
    other = kormed("check", folder, "--key", workshop.folder / "o.pub")
    assert (other.exit_code, "do not use this bundle" in other.stderr) == (1, True)
    older = kormed("check", folder, "--key", workshop.public, "--installed", "4")
    assert (older.exit_code, "is version 3" in older.stderr) == (1, True)


def test_create_refuses_a_run_whose_gate_has_not_passed(workshop: Workshop) -> None:
    result = create(workshop)
    assert result.exit_code == 1
    assert "the gate of demo says INCONCLUSIVE" in result.stderr
    assert not (workshop.folder / "out" / "demo-3").exists()
    result = create(workshop, "--unverified")
    assert (result.exit_code, "UNVERIFIED" in result.stderr) == (0, True)
    assert (workshop.folder / "out" / "demo-3-UNVERIFIED").is_dir()


@pytest.mark.parametrize("size", ["0", "-1", "4G"])
def test_size_that_is_none_is_wrong_use(size: str, workshop: Workshop) -> None:
    assert create(workshop, "--max-file-bytes", size).exit_code == 2
