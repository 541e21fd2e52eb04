"""What a bundle carries besides model, image and proof: installer, units, guide, licences, SBOM."""

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from kormed_edge.bundle import Description
from kormed_edge.prompts import NOTICE
from kormed_edge.sbom import (
    image_component,
    licence_texts,
    make_sbom,
    model_component,
    package_component,
)

Pins = Sequence[tuple[str, str]]


def other_texts(
    described: Description, key: str, pins: Pins, licences: Sequence[Path] = ()
) -> dict[str, bytes]:
    """Contents by file name. `key` is the fingerprint of the public key, `pins` the packages of
    the edge image, `licences` files that travel besides theirs."""
    return {
        "install.sh": _template("install.sh").encode(),
        "units/kormed.service": _template("kormed.service").encode(),
        "units/kormed.container": _template("kormed.container").encode(),
        "service.env": _service_env(described).encode(),
        "GUIDE.ko.html": _guide(described, key).encode(),
        "sbom.cdx.json": _sbom(described, pins),
        **_licence_files(described, pins, licences),
    }


def _template(name: str) -> str:
    return (files("kormed_edge") / "bundle_files" / name).read_text(encoding="utf-8")


def _service_env(described: Description) -> str:
    """What the units read. An image name of each version's own, so that loading a new one leaves
    that of the service alone; for an update, the image of the version that it stands on."""
    delta = described.delta
    own = f"{described.name}-{described.version}"
    settings = {
        "IMAGE": f"localhost/kormed-edge:{own}",
        "LOADED": described.image.reference,
        "MODEL": Path(described.model.file).name,
        "VERIFIED": "yes" if described.verified else "no",
        "BASE": delta.base if delta else "",
        "ADAPTER": _ADAPTER.format(own, delta.adapter.file) if delta else "",
        "NETWORK": "host",
        "PORT": "8080",
        "ENGINE_OPTIONS": "",
        "SERVE_OPTIONS": "",
    }
    return "".join(f"KORMED_{name}={value}\n" for name, value in settings.items())


_ADAPTER = "--adapter {0}=/bundle/{1} --default-adapter {0}"
_BANNER = (
    '<p class="unverified">미검증 (UNVERIFIED): 정확도 유지 검증을 통과하지 않은 묶음입니다. '
    "시험용이며 진료에 사용할 수 없습니다.</p>"
)


_DELTA = (
    "<p><b>{0} 위에 설치하는 갱신(LoRA 어댑터)입니다.</b> {0}이(가) 이 서버에 설치되어 있어야 "
    "하며, 모델과 이미지는 설치된 것을 씁니다. 설치하면 어댑터 <code>{1}-{2}</code>가 답하고, "
    "요청의 <code>model</code>에 <code>{3}</code>을(를) 지정하면 이전 모델이 답합니다.</p>"
)


def _guide(described: Description, key: str) -> str:
    base, model, gate = described.base, described.model, described.gate
    shown = {
        "name": described.name, "version": described.version, "sha256": model.sha256,
        "model": Path(model.file).name, "megabytes": f"{model.size / 1e6:,.1f}",
        "base": f"{base.id} ({base.license or '라이선스 미기재'})" if base else "미기재",
        "outcome": gate.outcome, "reference": gate.reference, "candidate": gate.candidate,
        "fingerprint": key, "notice": NOTICE,
        "flag": "" if described.verified else " --accept-unverified",
    }  # fmt: skip
    escaped = {name: html.escape(text) for name, text in shown.items()}
    banner = "" if described.verified else _BANNER
    if described.delta:
        banner += _DELTA.format(
            html.escape(described.delta.base),
            html.escape(shown["name"]),
            html.escape(shown["version"]),
            html.escape(Path(model.file).stem),
        )
    return Template(_template("GUIDE.ko.html")).substitute(escaped, banner=banner)


def _sbom(described: Description, pins: Pins) -> bytes:
    base, model, image = described.base, described.model, described.image
    about = {
        "kormed:type": described.type,
        "kormed:verified": "yes" if described.verified else "no",
        "kormed:gate": described.gate.outcome,
        **({"kormed:base": base.id, "kormed:base-revision": base.revision or ""} if base else {}),
    }
    components = [
        model_component(
            Path(model.file).name, described.version, model.sha256,
            base.id if base else "an unnamed base", base.license if base else "", about,
        ),
        image_component(image.reference, image.sha256),
        package_component("kormed-edge", described.kit_version),
        *(package_component(name, version) for name, version in pins),
    ]  # fmt: skip
    if delta := described.delta:
        name = Path(delta.adapter.file).name
        components.append(
            model_component(
                name, described.version, delta.adapter.sha256, f"{delta.base} ({model.sha256})",
                base.license if base else "", {"kormed:kind": "LoRA"},
            )
        )  # fmt: skip
    verified = {"kormed:verified": about["kormed:verified"]}
    return make_sbom(described.name, described.version, components, verified)


def _licence_files(
    described: Description, pins: Pins, licences: Sequence[Path]
) -> Mapping[str, bytes]:
    """Texts of the packages, those that were given, and a line on model and items."""
    base = described.base
    model = f"{base.id} {base.revision or ''}: {base.license or 'not named'}" if base else "unnamed"
    items = "".join(f"{s.file}: {s.source}, {s.licence}\n" for s in described.acceptance)
    texts = licence_texts([("kormed-edge", described.kit_version), *pins])
    return {
        "licences/CONTENTS.txt": f"base model {model}\n{items}".encode(),
        **{f"licences/{package}.txt": text.encode() for package, text in texts.items()},
        **{f"licences/{path.name}": path.read_bytes() for path in licences},
    }
