import shutil
from pathlib import Path

import pytest
from bundle_run import UNDECIDED, Workshop
from bundle_tampers import MODEL, TAMPERS, Tamper, flip, sign

from kormed_edge.bundle import format_sums, open_bundle, parse_sums, read_signed
from kormed_edge.errors import BundleError
from kormed_edge.manifest import sha256_file


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).fill()


@pytest.fixture
def workshop(template: Workshop, tmp_path: Path) -> Workshop:
    return template.copy(tmp_path / "workshop")


def test_sound_bundle_opens_with_the_public_key_alone(workshop: Workshop) -> None:
    folder = workshop.bundle()
    workshop.private.unlink()
    bundle = open_bundle(folder, workshop.public)
    assert (bundle.statement.name, bundle.statement.version) == ("demo", "3")
    assert bundle.statement.verified
    assert bundle.statement.signed == "2026-01-02T03:04:05Z"
    assert bundle.description.model.sha256 == sha256_file(folder / MODEL)


@pytest.mark.parametrize("tamper", TAMPERS.values(), ids=TAMPERS)
def test_changed_bundle_is_refused(tamper: Tamper, workshop: Workshop) -> None:
    folder = workshop.bundle()
    tamper(workshop, folder)
    with pytest.raises(BundleError):
        open_bundle(folder, workshop.public)


def test_a_changed_bit_in_any_file_is_refused(workshop: Workshop) -> None:
    folder = workshop.bundle(max_file_bytes=4000)
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(names) > 20
    for path in names:
        content = path.read_bytes()
        flip(path, len(content) // 2)
        with pytest.raises(BundleError):
            open_bundle(folder, workshop.public)
        path.write_bytes(content)
    open_bundle(folder, workshop.public)


def test_nothing_is_parsed_before_the_hashes_are_right(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workshop.bundle()
    (folder / "bundle.json").write_text("{")
    monkeypatch.setattr("kormed_edge.bundle.read_description", lambda _: pytest.fail("parsed"))
    with pytest.raises(BundleError, match=r"bundle\.json: damaged, bytes 0 to"):
        open_bundle(folder, workshop.public)


def test_empty_folder_more_is_refused(workshop: Workshop) -> None:
    folder = workshop.bundle()
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match="more is empty"):
        open_bundle(folder, workshop.public)


def test_description_of_another_version_is_refused(workshop: Workshop) -> None:
    folder, other = workshop.bundle("3"), workshop.bundle("4")
    for name in ("bundle.json", "blocks.json"):
        shutil.copy(other / name, folder / name)
    _, sums = read_signed(folder, workshop.public)
    sums = {name: sha256_file(folder / name) for name in sums}
    (folder / "SHA256SUMS").write_bytes(format_sums(sums))
    sign(workshop, folder)
    with pytest.raises(BundleError, match="of another bundle"):
        open_bundle(folder, workshop.public)


@pytest.mark.parametrize(("installed", "fits"), [("2", True), ("3.0", True), ("3.0.1", False)])
def test_older_version_is_refused(installed: str, fits: bool, workshop: Workshop) -> None:
    folder = workshop.bundle("3")
    if fits:
        open_bundle(folder, workshop.public, installed=installed)
    else:
        with pytest.raises(BundleError, match=r"3\.0\.1, which is installed"):
            open_bundle(folder, workshop.public, installed=installed)


def test_unverified_bundle_says_so_everywhere(workshop: Workshop) -> None:
    folder = workshop.bundle(gate=UNDECIDED, unverified=True)
    bundle = open_bundle(folder, workshop.public)
    assert folder.name == "demo-3-UNVERIFIED"
    assert not bundle.statement.verified
    assert not bundle.description.verified
    assert "KORMED_VERIFIED=no" in (folder / "service.env").read_text()
    assert "UNVERIFIED" in (folder / "GUIDE.ko.html").read_text()
    assert '"value": "no"' in (folder / "sbom.cdx.json").read_text()


@pytest.mark.parametrize(
    "text",
    [
        b"0" * 64 + b"  ../a\n",
        b"0" * 64 + b"  a/../b\n",
        b"0" * 64 + b"  /a\n",
        b"0" * 64 + b"  b\n" + b"0" * 64 + b"  a\n",
        b"0" * 64 + b"  a\n" + b"0" * 64 + b"  a\n",
        b"0" * 64 + b"  A\n" + b"0" * 64 + b"  a\n",
        b"0" * 64 + b" *a\n",
        b"0" * 64 + b"  a",
        b"0" * 64 + b"  a/\n",
        b"0" * 64 + b"  .a\n",
        b"0" * 64 + b"  a\\b\n",
        b"A" * 64 + b"  a\n",
    ],
)
def test_sums_in_any_other_form_are_refused(text: bytes) -> None:
    with pytest.raises(BundleError):
        parse_sums(text)
