"""The edge image in a real container engine, shut in as a hospital runs it: `make image-test`.

DOCKER is the client, EDGE_IMAGE the image, MODEL_DIR a folder with one GGUF or more and their
manifest.json.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.docker

DOCKER = os.environ.get("DOCKER") or "docker"
IMAGE = os.environ.get("EDGE_IMAGE") or "kormed-edge"
MODEL_DIR = Path(os.environ.get("MODEL_DIR") or "runs/demo/gguf")
SHUT_IN = (
    "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--memory=2g", "--health-interval=1s",
)  # fmt: skip
LOADING_S = 120.0
STOPPING_S = 5.0
QUESTION = "급성 충수염에서 압통이 가장 심한 곳은 어디인가?"
ASK = f"""
from http.client import HTTPConnection
import json
service = HTTPConnection("127.0.0.1", 8080, timeout=240)
service.request("POST", "/v1/ask", json.dumps({{"question": "{QUESTION}"}}),
                {{"Content-Type": "application/json"}})
response = service.getresponse()
print(json.dumps([response.status, json.load(response)]))
"""
TELL_A_LONG_STORY = """
from http.client import HTTPConnection
import json
service = HTTPConnection("127.0.0.1", 8080)
story = {"messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 3000}
service.request("POST", "/v1/chat/completions", json.dumps(story),
                {"Content-Type": "application/json"})
print("asked", flush=True)
service.getresponse()
"""
CONTENTS = """
import json, os, shutil
from importlib.metadata import distributions
names = sorted(d.metadata["Name"].lower().replace("_", "-") for d in distributions())
tools = [t for t in ("cc", "gcc", "g++", "clang", "c++", "cmake", "make", "pip") if shutil.which(t)]
print(json.dumps({"uid": os.getuid(), "packages": names, "tools": tools}))
"""
# The only places where anything can be written: a folder in memory, for keys, index and reports.
HOME = ("--tmpfs=/site:mode=1777", "--env=KORMED_HOME=/site/home")
GUIDELINE = "소아 아나필락시스에는 지어낸 약 가나다 0.01 mg/kg을 근육 주사한다."
INDEX_AND_SEARCH = (
    "import subprocess; r = lambda *w: subprocess.run(['kormed', 'guidelines', *w], check=True);"
    "r('add', '/documents/epi.txt'); r('search', '아나필락시스에 쓰는 약의 용량')"
)
MAX_BYTES = 550_000_000
Start = Callable[..., str]


def docker(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DOCKER, *arguments], capture_output=True, text=True, timeout=timeout)


def output(*arguments: str, timeout: float = 300) -> str:
    done = docker(*arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python(code: str) -> str:
    return output("run", "--rm", *SHUT_IN, "--entrypoint=python", IMAGE, "-c", code)


def state(container: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(output("inspect", "--format={{json .State}}", container))
    return found


def wait_until_healthy(container: str) -> None:
    deadline = time.monotonic() + LOADING_S
    while state(container)["Health"]["Status"] != "healthy":  # type: ignore[index]
        running = state(container)["Running"] and time.monotonic() < deadline
        assert running, docker("logs", container).stderr
        time.sleep(0.25)


@pytest.fixture(scope="session")
def model() -> Path:
    """The smallest model of MODEL_DIR, which also holds an adapter and an importance matrix."""
    others = {"adapter.gguf", "imatrix.gguf"}
    models = [path for path in MODEL_DIR.glob("*.gguf") if path.name not in others]
    found = sorted(models, key=lambda path: path.stat().st_size)
    if not found or not (MODEL_DIR / "manifest.json").is_file():
        pytest.fail(
            f"{MODEL_DIR} holds no model. Expected: GGUF files and their manifest.json. "
            "Run: make demo, or make image-test MODEL_DIR=PATH"
        )
    return found[0].resolve()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a service on a folder; what was started is removed at the end, each by its id."""
    started: list[str] = []

    def run(folder: Path, name: str) -> str:
        mount = f"--volume={folder}:/model:ro"
        command = ("serve", "--model", f"/model/{name}", "--drain-seconds", "1")
        started.append(output("run", "--detach", *SHUT_IN, mount, IMAGE, *command))
        return started[-1]

    yield run
    for container in started:
        docker("rm", "--force", container)


@pytest.fixture(scope="module")
def service(start: Start, model: Path) -> str:
    container = start(model.parent, model.name)
    wait_until_healthy(container)
    return container


@pytest.fixture(scope="session")
def contents() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(python(CONTENTS))
    return found


def test_it_holds_no_training_library(contents: dict[str, list[str]]) -> None:
    assert "llama-cpp-python" in contents["packages"]
    absent = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "triton"}
    assert absent.isdisjoint(contents["packages"])


def test_it_holds_no_compiler_and_no_installer(contents: dict[str, list[str]]) -> None:
    assert contents["tools"] == []


def test_it_does_not_run_as_root(contents: dict[str, int]) -> None:
    assert contents["uid"] == 10001


def test_its_labels_name_version_and_commit(capsys: pytest.CaptureFixture[str]) -> None:
    image = json.loads(output("image", "inspect", IMAGE))[0]
    with capsys.disabled():
        print(f"\n{IMAGE}: {image['Size'] / 1e6:.0f} MB")
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    commit = labels["org.opencontainers.image.revision"]
    assert f"KORMED_COMMIT={commit}" in image["Config"]["Env"]
    assert output("run", "--rm", *SHUT_IN, IMAGE, "--version").endswith(
        labels["org.opencontainers.image.version"]
    )


def test_it_is_small_enough() -> None:
    assert json.loads(output("image", "inspect", IMAGE))[0]["Size"] <= MAX_BYTES


def test_doctor_finds_nothing_wrong_in_it(model: Path) -> None:
    mount = f"--volume={model.parent}:/bundle/model:ro"
    done = docker("run", "--rm", *SHUT_IN, *HOME, mount, IMAGE, "doctor", "--bundle", "/bundle")
    assert (done.returncode, "used by llama.cpp" in done.stderr) == (0, True), done.stderr


def test_it_indexes_and_finds_the_sites_own_guidelines(tmp_path: Path) -> None:
    (tmp_path / "epi.txt").write_text(GUIDELINE, encoding="utf-8")
    (tmp_path / "epi.txt").chmod(0o644)
    tmp_path.chmod(0o755)
    found = docker(
        "run", "--rm", *SHUT_IN, *HOME, f"--volume={tmp_path}:/documents:ro",
        "--entrypoint=python", IMAGE, "-c", INDEX_AND_SEARCH,
    )  # fmt: skip
    assert "가나다 0.01 mg/kg" in found.stdout + found.stderr, found.stderr


def test_it_answers_a_korean_question_without_a_network(service: str) -> None:
    status, body = json.loads(output("exec", service, "python", "-c", ASK))
    assert status == 200, body
    assert body["answer"].strip()


def test_it_refuses_a_model_with_one_flipped_byte(
    start: Start, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(model.parent / "manifest.json", folder)
    flipped = bytearray(model.read_bytes())
    flipped[-1] ^= 1
    (folder / model.name).write_bytes(flipped)
    container = start(folder, model.name)
    assert output("wait", container, timeout=LOADING_S) == "1"
    assert "SHA-256" in docker("logs", container).stderr


def test_it_stops_when_told_to(start: Start, model: Path) -> None:
    container = start(model.parent, model.name)
    wait_until_healthy(container)
    output("kill", "--signal=TERM", container)
    output("wait", container, timeout=STOPPING_S)


def test_it_stops_in_the_middle_of_an_answer(start: Start, model: Path) -> None:
    container = start(model.parent, model.name)
    wait_until_healthy(container)
    command = [DOCKER, "exec", container, "python", "-c", TELL_A_LONG_STORY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"asked\n"
        output("kill", "--signal=TERM", container)
        output("wait", container, timeout=STOPPING_S)


def test_it_stops_while_it_loads(start: Start, model: Path) -> None:
    container = start(model.parent, model.name)
    output("kill", "--signal=TERM", container)
    output("wait", container, timeout=STOPPING_S)
