from pathlib import Path

import pytest
from bundle_run import GGUF, Workshop
from bundle_tampers import MODEL, flip

from kormed_edge.bundle_installed import open_site
from kormed_edge.errors import BundleError


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path).fill()


def install(folder: Path) -> Path:
    """What install.sh makes of a bundle's folder."""
    for first in folder.glob("*/*.part-000"):
        whole = first.with_suffix("")
        parts = sorted(whole.parent.glob(f"{whole.name}.part-*"))
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
    (folder / "INSTALLED").write_text("what the installer noted")
    return folder


@pytest.mark.parametrize("size", [None, 4000])
def test_installed_bundle_opens(size: int | None, workshop: Workshop) -> None:
    folder = install(workshop.bundle(max_file_bytes=size))
    bundle = open_site(folder, workshop.public)
    assert (folder / bundle.description.model.file).read_bytes() == GGUF


def test_a_bundle_that_was_not_installed_opens_too(workshop: Workshop) -> None:
    assert open_site(workshop.bundle(), workshop.public).statement.name == "demo"


@pytest.mark.parametrize("size", [None, 4000])
@pytest.mark.parametrize(
    "name",
    [MODEL, "model/manifest.json", "acceptance/test.jsonl", "image/kormed-edge.tar", "bundle.json"],
)
def test_a_changed_file_is_named(name: str, size: int | None, workshop: Workshop) -> None:
    folder = install(workshop.bundle(max_file_bytes=size))
    flip(folder / name)
    with pytest.raises(BundleError, match=name):
        open_site(folder, workshop.public)


def test_a_changed_sum_of_a_joined_file_is_named(workshop: Workshop) -> None:
    folder = install(workshop.bundle(max_file_bytes=4000))
    flip(folder / f"{MODEL}.sha256", 0)
    with pytest.raises(BundleError, match=r"gguf\.sha256"):
        open_site(folder, workshop.public)


def test_a_file_more_is_refused(workshop: Workshop) -> None:
    folder = install(workshop.bundle())
    (folder / "more").touch()
    with pytest.raises(BundleError, match="not part of the bundle"):
        open_site(folder, workshop.public)
