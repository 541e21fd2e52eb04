import html
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from bundle_run import REFERENCE, UNDECIDED, Workshop

from kormed_edge.bundle_signing import fingerprint, read_public_key


def run(commands: str, folder: Path) -> str:
    done = subprocess.run(["sh", "-ec", commands], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).fill()


@pytest.fixture
def workshop(template: Workshop, tmp_path: Path) -> Workshop:
    return template.copy(tmp_path / "workshop")


def test_guide_names_what_it_comes_with(workshop: Workshop) -> None:
    guide = (workshop.bundle() / "GUIDE.ko.html").read_text(encoding="utf-8")
    key = fingerprint(read_public_key(workshop.public))
    for shown in ("demo 3 설치 안내", "demo-Q4_K_M.gguf", "maker/base (apache-2.0)", key, "PASS"):
        assert shown in guide
    assert "install.sh$'" in guide
    assert "미검증" not in guide


def test_guide_s_own_checks_work_with_openssl_and_sha256sum_alone(workshop: Workshop) -> None:
    folder = workshop.bundle()
    page = (folder / "GUIDE.ko.html").read_text(encoding="utf-8")
    assert "/root/kormed.pub" in page
    page = page.replace("/root/kormed.pub", str(workshop.public))
    commands = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    print_key, check = commands[:2]
    key = fingerprint(read_public_key(workshop.public))
    assert run(print_key, folder) == f"{key}  -\n"
    sums = sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    assert run(check, folder) == (
        f"Signature Verified Successfully\n{sums}\n{sums}  SHA256SUMS\ninstall.sh: OK\n"
    )


def test_guide_of_an_unverified_bundle_warns(workshop: Workshop) -> None:
    folder = workshop.bundle(gate=UNDECIDED, unverified=True)
    guide = (folder / "GUIDE.ko.html").read_text(encoding="utf-8")
    assert "미검증" in guide
    assert "--accept-unverified" in guide


def test_service_reads_image_and_model_from_one_file(workshop: Workshop) -> None:
    assert (workshop.bundle() / "service.env").read_text() == (
        "KORMED_IMAGE=localhost/kormed-edge:demo-3\n"
        f"KORMED_LOADED={REFERENCE}\nKORMED_MODEL=demo-Q4_K_M.gguf\nKORMED_VERIFIED=yes\n"
        "KORMED_BASE=\nKORMED_ADAPTER=\nKORMED_NETWORK=host\nKORMED_PORT=8080\n"
        "KORMED_ENGINE_OPTIONS=\nKORMED_SERVE_OPTIONS=\n"
    )


def test_licences_of_packages_items_and_model_are_here(workshop: Workshop) -> None:
    extra = workshop.folder / "QWEN.txt"
    extra.write_text("terms")
    folder = workshop.bundle(licences=(extra,)) / "licences"
    assert (folder / "QWEN.txt").read_text() == "terms"
    assert "Redistribution" in (folder / "click-8.5.1.txt").read_text()
    assert (folder / "CONTENTS.txt").read_text() == (
        "base model maker/base : apache-2.0\nacceptance/test.jsonl: samples, Apache-2.0\n"
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_unit(workshop: Workshop) -> None:
    unit = workshop.folder / "kormed.service"
    text = (workshop.bundle() / "units/kormed.service").read_text()
    unit.write_text(text.replace("/usr/bin/docker", "/bin/true"))
    command = ["systemd-analyze", "verify", unit]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
