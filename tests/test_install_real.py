"""Bundle, wipe, install, ask, verify, update, roll back, uninstall: `make install-test`.

With a real engine, the real edge image and the run of RUN_DIR; the installer has no network, and
neither has the service, which is asked through the engine.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from real_site import NAME, RealSite, docker, no_service

from eval.arms import answer_with_gguf
from eval.predictions import append_predictions
from eval.protocol import kit
from kormed_edge.bundle_command import bundle_command
from kormed_edge.config import EvalConfig
from kormed_edge.manifest import MANIFEST, manifest_hash, read_manifest, sha256_file
from kormed_edge.records import read_records
from kormed_edge.runs import ADAPTER_GGUF

pytestmark = pytest.mark.docker

IMAGE = os.environ.get("EDGE_IMAGE") or "kormed-edge"
RUN = Path(os.environ.get("RUN_DIR") or "runs/demo")
TYPE = "Q4_K_M"
MODEL = f"{RUN.name}-{TYPE}"
ITEMS = 8
ASK = """
from http.client import HTTPConnection
import json, sys
service = HTTPConnection("127.0.0.1", 8080, timeout=240)
body = {"messages": [{"role": "user", "content": "급성 충수염에서 압통이 가장 심한 곳은?"}],
        "max_tokens": 16, "temperature": 0, **({"model": sys.argv[1]} if sys.argv[1:] else {})}
service.request("POST", "/v1/chat/completions", json.dumps(body),
                {"Content-Type": "application/json"})
answer = json.load(service.getresponse())
print(json.dumps([answer["model"], answer["choices"][0]["message"]["content"]]))
"""


def kormed_bundle(*words: object) -> str:
    done = CliRunner().invoke(bundle_command, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.split()[0]


def ask(*model: str) -> tuple[str, str]:
    """What answered, and its answer: the same from every service that was just started."""
    name, text = json.loads(docker("exec", NAME, "python", "-c", ASK, *model))
    return name, text


def make_successor(run: Path, target: Path) -> None:
    """A copy of a run whose manifests say that it was trained on the first one's GGUF, evaluated
    over it on a few items."""
    shutil.copytree(run, target)
    model = run / "gguf" / f"{run.name}-{TYPE}.gguf"
    digest = sha256_file(model)
    config = EvalConfig.model_validate(read_manifest(run / "eval").settings["eval"])
    records = read_records(run / "data" / "test.jsonl")[:ITEMS]
    adapter = target / "gguf" / ADAPTER_GGUF
    answers = answer_with_gguf(model, records, kit(config.max_new_tokens), config.slots, adapter)
    sealed = target / "eval" / f"lora-{TYPE}.jsonl"
    assert list(append_predictions(sealed, answers))
    for stage, inputs in (("gguf", ()), ("eval", ("gguf",)), ("report", ("gguf", "eval"))):
        path = target / stage / MANIFEST
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["base"]["revision"] = f"sha256:{digest}"
        manifest["inputs"] |= {name: manifest_hash(target / name) for name in inputs}
        if stage == "eval":
            size = sealed.stat().st_size
            manifest["files"][sealed.name] = {"sha256": sha256_file(sealed), "size": size}
            manifest["settings"]["under"] = {f"lora:{TYPE}": digest}
        path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cycle")


@pytest.fixture(scope="module")
def bundles(folder: Path) -> list[Path]:
    """Version 1, version 2, and an update of version 2 that brings an adapter."""
    kormed_bundle("keygen", folder / "kormed")
    docker("save", IMAGE, "--output", str(folder / "image.tar"))
    common = ("--key", folder / "kormed.key", "--out", folder / "out", "--name", "demo")
    whole = ("--run", RUN.name, "--runs-dir", RUN.parent, "--type", TYPE,
             "--image", folder / "image.tar", "--unverified")  # fmt: skip
    made = [kormed_bundle("create", *common, *whole, "--version", n) for n in (1, 2)]
    make_successor(RUN, folder / "after")
    update = ("--run", "after", "--runs-dir", folder, "--delta", made[1], "--unverified")
    made.append(kormed_bundle("create", *common, *update, "--version", 3))
    return [Path(path) for path in made]


@pytest.fixture(scope="module")
def site(bundles: list[Path], folder: Path) -> Iterator[RealSite]:
    """A machine on which the image is not to be had but from the bundles."""
    assert len(bundles) == 3
    with no_service():
        docker("rmi", "--force", IMAGE)
        yield RealSite(folder / "site", folder / "kormed.pub", NETWORK="none")
        docker("load", "--input", str(folder / "image.tar"))


def test_from_bundle_to_uninstall(site: RealSite, bundles: list[Path]) -> None:
    first, second, update = bundles
    assert "ready at http://127.0.0.1:8080" in site.install(first)
    answer = ask()
    assert answer[0] == MODEL

    report = site.run("--verify", code=4)  # 33 items decide nothing, which is the truth here
    assert "33 of 33 items compared" in report
    (page,) = (site.root / "site/acceptance").glob("*/report.html")
    assert page.stat().st_size > 10_000

    site.install(second)
    assert site.current() == "demo-2"
    assert ask() == answer

    site.install(update)
    assert site.current() == "demo-3"
    adapted = ask()
    assert adapted[0] == "demo-3"
    assert adapted[1] != answer[1]
    assert ask(MODEL)[0] == MODEL
    assert f"{ITEMS} of {ITEMS} items compared" in site.run("--verify", code=4)

    for expected in ("demo-2", "demo-3", "demo-2"):
        site.run("--rollback")
        assert site.current() == expected
        assert ask() == (adapted if expected == "demo-3" else answer)
    assert "the service itself" in site.run("--doctor")

    site.run("--uninstall")
    assert sorted(path.name for path in site.root.iterdir()) == ["site"]
    for name in (IMAGE, "localhost/kormed-edge"):
        assert docker("images", "--quiet", name) == ""
    assert docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}$") == ""
