"""What the images are built from: packages with hashes, base images with digests."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASES = ROOT / ".ci/bases"
DIGEST = "sha256:" + "0123456789abcdef" * 4
HASHED = re.compile(r"([a-z0-9-]+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
hashes = runpy.run_path(str(ROOT / ".ci/hashes.py"))


def hashed(name: str) -> dict[str, int]:
    """Pins of a requirements file with how many hashes each has; nothing else may be in it."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    found = HASHED.findall(text)
    assert HASHED.sub("", text) == ""
    return {pin: listed.count("--hash") for pin, listed in found}


def pins(name: str) -> set[str]:
    found: set[str] = set(hashes["pins_in"](ROOT / name).values())
    return found


def test_edge_image_installs_its_constraints_with_hashes() -> None:
    assert hashed("requirements-edge.txt").keys() == pins("constraints-edge.txt")


def test_training_image_installs_the_kits_constraints_with_hashes() -> None:
    found = hashed("requirements-train.txt").keys()
    assert found <= pins("constraints.txt")
    assert {pin.split("==")[0] for pin in found} >= {"torch", "trl", "llama-cpp-python", "numpy"}


@pytest.mark.parametrize("name", ["requirements-edge.txt", "requirements-train.txt"])
def test_binary_packages_have_a_hash_for_each_processor(name: str) -> None:
    counts = {pin.split("==")[0]: n for pin, n in hashed(name).items()}
    assert counts["numpy"] == counts["pydantic-core"] == 2
    assert counts["click"] == counts["llama-cpp-python"] == 1


def test_file_of_this_machine_is_refused() -> None:
    entry = {
        "metadata": {"name": "click", "version": "8.5.1"},
        "download_info": {"url": "file:///wheels/click.whl", "archive_info": {"hashes": {}}},
    }
    with pytest.raises(SystemExit, match=r"click==8\.5\.1 comes from a folder of this machine"):
        hashes["_digest"](entry)


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    path = tmp_path / "Dockerfile"
    path.write_text("ARG BASE_IMAGE=python:3.11\nARG CUDA_IMAGE=cuda:12\nFROM ${BASE_IMAGE}\n")
    return path


def pin(dockerfile: Path, engine: str) -> subprocess.CompletedProcess[str]:
    stub = dockerfile.with_name("docker")
    stub.write_text(f"#!/bin/sh\n{engine}")
    stub.chmod(0o755)
    return subprocess.run(
        [BASES, dockerfile], env={"DOCKER": str(stub), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_digest_that_the_registry_tells_is_written_and_renewed(dockerfile: Path) -> None:
    for digest in (DIGEST, DIGEST[:-1] + "0"):
        assert pin(dockerfile, f"echo {digest}").returncode == 0
        assert dockerfile.read_text().splitlines()[:2] == [
            f"ARG BASE_IMAGE=python:3.11@{digest}", f"ARG CUDA_IMAGE=cuda:12@{digest}",
        ]  # fmt: skip


def test_engine_without_buildx_is_asked_to_pull(dockerfile: Path) -> None:
    engine = (
        '[ "$1" != buildx ] || exit 1\n[ "$1 $2" = "image inspect" ] || exit 0\n'
        f'echo "registry.example/library/${{3%%:*}}@{DIGEST}"\n'
    )
    assert pin(dockerfile, engine).returncode == 0
    assert f"ARG CUDA_IMAGE=cuda:12@{DIGEST}\n" in dockerfile.read_text()


@pytest.mark.parametrize("engine", ["exit 1", "echo sha256:nonsense", "echo"])
def test_without_a_registry_nothing_changes(engine: str, dockerfile: Path) -> None:
    before = dockerfile.read_text()
    result = pin(dockerfile, engine)
    assert (result.returncode, dockerfile.read_text()) == (1, before)
    assert "python:3.11: no registry tells its digest here; left as it is" in result.stderr
