import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bundle_run import GGUF, REFERENCE, UNDECIDED, Workshop, make_image, stage

from kormed_edge.bundle import open_bundle
from kormed_edge.bundle_build import image_reference
from kormed_edge.calibration import find_calibration
from kormed_edge.errors import BundleError, EngineError
from kormed_edge.manifest import manifest_hash

LATER = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).fill()


@pytest.fixture
def workshop(template: Workshop, tmp_path: Path) -> Workshop:
    return template.copy(tmp_path / "workshop")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_equal_inputs_give_equal_bytes_but_for_the_signature_s_time(workshop: Workshop) -> None:
    first = contents(workshop.bundle(out="first", max_file_bytes=4000))
    again = contents(workshop.bundle(out="again", max_file_bytes=4000))
    later = contents(workshop.bundle(out="later", max_file_bytes=4000, at=LATER))
    assert again == first
    assert {name for name in first if first[name] != later[name]} == {"SIGNED", "SIGNED.sig"}
    assert first.keys() == later.keys()


def test_bundle_holds_the_model_and_the_chain_of_manifests(workshop: Workshop) -> None:
    bundle = open_bundle(workshop.bundle(), workshop.public)
    files, described = contents(bundle.folder), bundle.description
    assert files["model/demo-Q4_K_M.gguf"] == GGUF
    assert files["image/kormed-edge.tar"] == workshop.image.read_bytes()
    assert set(described.manifests) == {"data", "adapter", "gguf", "eval", "report"}
    assert described.manifests["gguf"] == manifest_hash(bundle.folder / "model")
    evaluated = json.loads(files["manifests/eval.json"])
    assert evaluated["inputs"]["gguf"] == described.manifests["gguf"]
    assert described.base is not None
    assert described.base.path == ""


def calibrate(workshop: Workshop, **changes: str) -> bytes:
    """Evaluate the run again, with a calibration of its model; returns the file's content."""
    digest = hashlib.sha256(GGUF).hexdigest()
    scales = {"options": {"temperature": 2.0, "n": 3}, "text": None, "threshold": 0.5}
    known = {"model_sha256": digest, "fit_version": "1", **scales, **changes}
    content = json.dumps(known).encode()
    shutil.rmtree(workshop.run / "report")
    old = {path.name: path.read_bytes() for path in (workshop.run / "eval").glob("*.jsonl")}
    shutil.rmtree(workshop.run / "eval")
    stage(workshop.run, "eval", {**old, "calibration-Q4_K_M.json": content}, ("gguf",), eval={})
    stage(workshop.run, "report", {"index.html": b"<p>report"}, ("eval",))
    return content


def test_calibration_stands_signed_beside_the_model_where_the_service_looks(
    workshop: Workshop,
) -> None:
    content = calibrate(workshop)
    bundle = open_bundle(workshop.bundle(), workshop.public)
    model = bundle.folder / bundle.description.model.file
    assert (model.parent / "calibration.json").read_bytes() == content
    assert "model/calibration.json" in (bundle.folder / "SHA256SUMS").read_text()
    assert find_calibration(model, bundle.description.model.sha256) is not None


def test_calibration_of_another_model_is_not_packed(workshop: Workshop) -> None:
    calibrate(workshop, model_sha256="cd" * 32)
    with pytest.raises(EngineError, match="is of the model"):
        workshop.bundle()


def test_calibration_that_was_changed_is_not_packed(workshop: Workshop) -> None:
    content = calibrate(workshop)
    path = workshop.run / "eval" / "calibration-Q4_K_M.json"
    path.write_bytes(content.replace(b"0.5", b"0.1"))
    with pytest.raises(BundleError, match="is not the file of its manifest"):
        workshop.bundle()


def test_parts_join_to_the_model(workshop: Workshop) -> None:
    bundle = open_bundle(workshop.bundle(max_file_bytes=4000), workshop.public)
    model = bundle.description.model
    joined = b"".join((bundle.folder / part).read_bytes() for part in model.parts)
    assert (len(model.parts), len(joined)) == (3, model.size)
    assert hashlib.sha256(joined).hexdigest() == model.sha256


def test_no_bundle_without_a_gate_that_passed(workshop: Workshop) -> None:
    with pytest.raises(BundleError, match="INCONCLUSIVE"):
        workshop.bundle(gate=UNDECIDED)
    assert not list((workshop.folder / "out").iterdir())


def test_finished_bundle_is_never_overwritten(workshop: Workshop) -> None:
    workshop.bundle()
    with pytest.raises(BundleError, match="exists"):
        workshop.bundle()


def test_stopped_attempt_leaves_no_bundle_and_does_not_hinder_the_next(workshop: Workshop) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop.bundle(on_bytes=stop)
    assert [path.name for path in (workshop.folder / "out").iterdir()] == ["demo-3.partial"]
    folder = workshop.bundle()
    open_bundle(folder, workshop.public)
    assert list(folder.parent.iterdir()) == [folder]


def test_file_that_is_not_the_manifest_s_is_refused(workshop: Workshop) -> None:
    (workshop.run / "gguf" / "demo-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(BundleError, match="not the file of its manifest"):
        workshop.bundle()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../demo"}, "cannot name a bundle"),
        ({"version": "1.02"}, "is no version"),
        ({"version": "v1"}, "is no version"),
        ({"type": "Q8_0"}, "has no Q8_0"),
        ({"constraints": Path("none.txt")}, "none.txt cannot be read"),
    ],
)
def test_impossible_order_is_refused(
    changes: dict[str, object], message: str, workshop: Workshop
) -> None:
    with pytest.raises(BundleError, match=message):
        workshop.bundle(**changes)  # type: ignore[arg-type]


def test_image_is_known_by_the_name_in_its_archive(tmp_path: Path) -> None:
    assert image_reference(make_image(tmp_path / "i.tar")) == REFERENCE


@pytest.mark.parametrize("tags", [(), ("-v:1",), ("a b:1",), ("a:1\nKORMED_MODEL=x",)])
def test_image_without_a_plain_name_is_refused(tags: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        image_reference(make_image(tmp_path / "i.tar", tags))


def test_other_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "i.tar").write_bytes(b"no archive")
    with pytest.raises(BundleError, match="not an archive of one image"):
        image_reference(tmp_path / "i.tar")
