"""The software bill of materials: CycloneDX 1.6, with the model described beside the packages.

What a vulnerability scanner reads. No random serial number and no time: equal contents give equal
bytes. Source: https://cyclonedx.org/docs/1.6/json/
"""

import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kormed_edge.errors import BundleError

Component = dict[str, Any]
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!+-]+)")
_LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)", re.IGNORECASE)


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Names and versions of a constraints file; `BundleError` for a line that pins nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}", "the packages of the edge image",
            "give the kit's constraints-edge.txt with --constraints",
        ) from None  # fmt: skip
    stated = [line.partition("#")[0].strip() for line in lines]
    found = [(line, _PIN.fullmatch(line)) for line in stated if line]
    if wrong := next((line for line, match in found if match is None), None):
        raise BundleError(f"{path}: {wrong!r} pins no version", "NAME==VERSION")
    return sorted((match[1], match[2]) for _, match in found if match)


def make_sbom(
    name: str, version: str, components: Iterable[Component], properties: Mapping[str, str]
) -> bytes:
    """A CycloneDX 1.6 document as JSON; its serial number is a hash of the rest."""
    root = {
        "type": "application", "bom-ref": f"bundle:{name}@{version}", "name": name,
        "version": version,
        "properties": [{"name": key, "value": value} for key, value in properties.items()],
    }  # fmt: skip
    listed = list(components)
    refs = [component["bom-ref"] for component in listed]
    body = {
        "version": 1,
        "metadata": {"component": root},
        "components": listed,
        "dependencies": [
            {"ref": root["bom-ref"], "dependsOn": refs}, *({"ref": ref} for ref in refs),
        ],
    }  # fmt: skip
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": serial.urn}
    return (json.dumps({**head, **body}, ensure_ascii=False, indent=2) + "\n").encode()


def package_component(name: str, version: str) -> Component:
    """A package of PyPI, with its licence where that very version is installed here."""
    purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
    licences = _licences(name, version)
    return {
        "type": "library", "bom-ref": purl, "name": name, "version": version,
        **({"licenses": licences} if licences else {}), "purl": purl,
    }  # fmt: skip


def image_component(reference: str, sha256: str) -> Component:
    """The container image, by the hash of its archive."""
    name, _, tag = reference.rpartition(":")
    return {
        "type": "container", "bom-ref": f"image:{sha256}", "name": name, "version": tag,
        "hashes": [_hash(sha256)],
    }  # fmt: skip


def model_component(
    name: str, version: str, sha256: str, base: str, licence: str, properties: Mapping[str, str]
) -> Component:
    """The GGUF with its model card: what it was made from, for what, and its limits."""
    return {
        "type": "machine-learning-model", "bom-ref": f"model:{sha256}", "name": name,
        "version": version, "description": f"fine-tuned from {base}, quantized for llama.cpp",
        "hashes": [_hash(sha256)],
        **({"licenses": [_named(licence)]} if licence else {}),
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "considerations": {
                "useCases": ["questions on Korean essential medicine, under a clinician"],
                "technicalLimitations": ["not for independent diagnosis or prescription"],
            },
        },
        "properties": [{"name": key, "value": value} for key, value in properties.items()],
    }  # fmt: skip


def licence_texts(pins: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Licence texts by package, as far as that very version is installed here."""
    texts = {}
    for name, version in pins:
        installed = _installed(name, version)
        files = (installed.files or []) if installed else []
        found = sorted((f for f in files if _LICENCE_FILE.match(f.name)), key=str)
        whole = [f"==== {file.name}\n\n{file.read_text(encoding='utf-8')}" for file in found]
        if whole:
            texts[f"{name}-{version}"] = "\n".join(whole)
    return texts


def _installed(name: str, version: str) -> importlib.metadata.Distribution | None:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.version == version else None


def _licences(name: str, version: str) -> list[dict[str, Any]]:
    """What the package says of itself: an SPDX expression, or words that claim to be none."""
    installed = _installed(name, version)
    if installed is None:
        return []
    meta: Any = installed.metadata  # typeshed's protocol lacks `get`
    if expression := meta.get("License-Expression"):
        return [{"expression": expression}]
    lines = [line for line in (meta.get("License") or "").splitlines() if line.strip()]
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License :: ")]
    # A whole licence text in that field is no name of it.
    names = lines if len(lines) == 1 else [c.rpartition(" :: ")[2] for c in classifiers]
    return [_named(name) for name in names]


def _named(licence: str) -> dict[str, Any]:
    return {"license": {"name": licence}}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
