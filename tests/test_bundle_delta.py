import json
from hashlib import sha256
from pathlib import Path

import pytest
from bundle_run import ADAPTER, GGUF, PASSED, Workshop, install_update
from bundle_tampers import flip
from click.testing import CliRunner

from kormed_edge import bundle_delta
from kormed_edge.bundle import open_bundle, parse_sums
from kormed_edge.bundle_command import bundle_command
from kormed_edge.bundle_installed import open_site
from kormed_edge.bundle_signing import make_keys
from kormed_edge.calibration import find_calibration
from kormed_edge.errors import BundleError

ADAPTER_WORDS = "demo-4=/bundle/adapter/adapter.gguf --default-adapter demo-4"
INSTALLED_MODEL = sha256(GGUF).hexdigest()
TAKEN = ["image/kormed-edge.tar", "model/demo-Q4_K_M.gguf", "model/manifest.json"]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path).fill()


def test_update_brings_the_adapter_and_names_what_it_takes(workshop: Workshop) -> None:
    folder = workshop.update(workshop.bundle("3", max_file_bytes=4000))
    bundle = open_bundle(folder, workshop.public)
    assert folder.name == "demo-4-UNVERIFIED"
    assert (folder / "adapter/adapter.gguf").read_bytes() == ADAPTER
    assert not (folder / "model").exists()
    assert not (folder / "image").exists()
    assert bundle.description.delta is not None
    assert bundle.description.delta.base == "demo-3"
    assert bundle.description.model.parts == ()
    assert sorted(parse_sums((folder / "FROM_BASE").read_bytes())) == TAKEN


def test_service_of_an_update_answers_with_the_adapter(workshop: Workshop) -> None:
    env = (workshop.update(workshop.bundle("3")) / "service.env").read_text()
    assert "KORMED_BASE=demo-3\n" in env
    assert f"KORMED_ADAPTER=--adapter {ADAPTER_WORDS}\n" in env


def test_papers_of_an_update_name_adapter_and_base(workshop: Workshop) -> None:
    folder = workshop.update(workshop.bundle("3"))
    assert "demo-3 위에 설치하는 갱신" in (folder / "GUIDE.ko.html").read_text(encoding="utf-8")
    names = [c["name"] for c in json.loads((folder / "sbom.cdx.json").read_text())["components"]]
    assert {"adapter.gguf", "demo-Q4_K_M.gguf"} <= set(names)


def test_adapter_of_another_model_is_refused(workshop: Workshop) -> None:
    base = workshop.bundle("3")
    with pytest.raises(BundleError, match="was trained on maker/base sha256:other"):
        workshop.update(base, trained_on="sha256:other")


def test_update_whose_gate_judged_something_else_cannot_be_called_verified(
    workshop: Workshop,
) -> None:
    base = workshop.bundle("3")
    with pytest.raises(BundleError, match="it judged gguf:Q4_K_M, not lora:Q4_K_M"):
        workshop.update(base, unverified=False)


def test_update_that_passed_is_verified_and_carries_its_answers_and_calibration(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = PASSED.model_copy(update={"candidate": "lora:Q4_K_M"})
    monkeypatch.setattr(bundle_delta, "decide_gate", lambda _, arm: {"lora:Q4_K_M": passed}[arm])
    folder = workshop.update(workshop.bundle("3"), under=INSTALLED_MODEL, unverified=False)
    described = open_bundle(folder, workshop.public).description
    assert (folder.name, described.verified, described.gate) == ("demo-4", True, passed)
    assert [sealed.file for sealed in described.acceptance] == ["acceptance/test.jsonl"]
    adapter = folder / "adapter/adapter.gguf"
    lora = sha256(ADAPTER).hexdigest()
    assert find_calibration(adapter, INSTALLED_MODEL, lora) is not None


def test_update_without_an_evaluation_of_its_own_has_no_answers(workshop: Workshop) -> None:
    folder = workshop.update(workshop.bundle("3"))
    assert open_bundle(folder, workshop.public).description.acceptance == ()


def test_answers_over_another_model_are_refused(workshop: Workshop) -> None:
    base = workshop.bundle("3")
    with pytest.raises(BundleError, match="was answered with another model, abab"):
        workshop.update(base, under="ab" * 32)


def test_update_that_does_not_say_what_answered_is_not_verified(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_delta, "decide_gate", lambda *_: PASSED)
    base = workshop.bundle("3")
    with pytest.raises(BundleError, match="was answered with another model, None"):
        workshop.update(base, unverified=False)


def test_base_must_be_whole_and_by_the_same_key(workshop: Workshop) -> None:
    base = workshop.bundle("3")
    flip(base / "model/demo-Q4_K_M.gguf")
    with pytest.raises(BundleError, match="not what was signed"):
        workshop.update(base)
    workshop.private.unlink()
    workshop.public.unlink()
    make_keys(workshop.private, workshop.public)
    with pytest.raises(BundleError, match="was not signed with the private key of --key"):
        workshop.update(base)


def test_update_of_an_update_is_refused(workshop: Workshop) -> None:
    update = workshop.update(workshop.bundle("3"))
    with pytest.raises(BundleError, match="itself an update of demo-3"):
        workshop.update(update, "5")


def test_installed_update_opens_as_a_whole(workshop: Workshop) -> None:
    base = workshop.bundle("3")
    folder = install_update(workshop.update(base), base)
    bundle = open_site(folder, workshop.public)
    assert (folder / bundle.description.model.file).read_bytes() == GGUF


@pytest.mark.parametrize("name", ["FROM_BASE", "adapter/adapter.gguf", *TAKEN])
def test_changed_file_of_an_installed_update_is_named(name: str, workshop: Workshop) -> None:
    base = workshop.bundle("3")
    folder = install_update(workshop.update(base), base)
    flip(folder / name)
    with pytest.raises(BundleError, match=name):
        open_site(folder, workshop.public)


def test_command_makes_an_update(workshop: Workshop) -> None:
    base = workshop.bundle("3")
    run = workshop.update(base).parent.parent / "runs/after-demo"
    words = [
        "create", "--run", run.name, "--runs-dir", run.parent, "--delta", base, "--version", "5",
        "--key", workshop.private, "--out", workshop.folder / "made", "--name", "demo",
        "--constraints", workshop.pins,
    ]  # fmt: skip
    assert CliRunner().invoke(bundle_command, [*map(str, words)]).exit_code == 1
    done = CliRunner().invoke(bundle_command, [*map(str, words), "--unverified"])
    assert done.exit_code == 0, done.output
    assert (workshop.folder / "made/demo-5-UNVERIFIED/FROM_BASE").is_file()


def test_command_takes_a_base_or_an_image(workshop: Workshop) -> None:
    words = ["create", "--run", "x", "--version", "1", "--key", str(workshop.private)]
    base = str(workshop.bundle())
    for more in ([], ["--type", "Q4_K_M"], ["--delta", base, "--type", "Q4_K_M"]):
        assert CliRunner().invoke(bundle_command, [*words, *more]).exit_code == 2
