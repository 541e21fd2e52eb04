import json
from pathlib import Path

import pytest

from kormed_edge.errors import BundleError
from kormed_edge.sbom import (
    image_component,
    licence_texts,
    make_sbom,
    model_component,
    package_component,
    read_pins,
)

DIGEST = "ab" * 32
MODEL = model_component("m.gguf", "3", DIGEST, "maker/base", "apache-2.0", {"kormed:gate": "PASS"})


def test_pins_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("# head\nfoo==2.0  # why\nBar_x==1.0.post1\n\n")
    assert read_pins(tmp_path / "c.txt") == [("Bar_x", "1.0.post1"), ("foo", "2.0")]


def test_line_without_a_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("foo>=2\n")
    with pytest.raises(BundleError, match="'foo>=2' pins no version"):
        read_pins(tmp_path / "c.txt")


def test_equal_contents_give_equal_bytes_and_others_another_serial_number() -> None:
    def serial(name: str) -> str:
        number: str = json.loads(make_sbom(name, "3", [MODEL], {}))["serialNumber"]
        return number

    assert make_sbom("demo", "3", [MODEL], {}) == make_sbom("demo", "3", [MODEL], {})
    assert serial("demo") == serial("demo") != serial("other")
    assert serial("demo").startswith("urn:uuid:")


def test_document_names_its_format_and_depends_on_every_component() -> None:
    components = [MODEL, image_component("kormed-edge:0.1.0", DIGEST)]
    sbom = json.loads(make_sbom("demo", "3", components, {"kormed:verified": "yes"}))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert sbom["components"] == components
    refs = [component["bom-ref"] for component in components]
    assert sbom["dependencies"][0] == {"ref": "bundle:demo@3", "dependsOn": refs}
    assert "timestamp" not in sbom["metadata"]


def test_model_is_described() -> None:
    assert MODEL["type"] == "machine-learning-model"
    assert MODEL["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert MODEL["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert MODEL["modelCard"]["considerations"]["technicalLimitations"]


def test_package_has_the_licence_that_it_states_itself() -> None:
    from importlib.metadata import version

    found = package_component("typing_extensions", version("typing_extensions"))
    assert found["purl"] == f"pkg:pypi/typing-extensions@{version('typing_extensions')}"
    assert found["licenses"] == [{"expression": "PSF-2.0"}]


def test_licence_of_another_version_is_not_claimed() -> None:
    assert "licenses" not in package_component("click", "0.0.1")
    assert "licenses" not in package_component("no-such-package", "1")
    assert licence_texts([("click", "0.0.1"), ("no-such-package", "1")]) == {}
