import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from click.testing import CliRunner, Result
from guideline_files import write
from scripted_model import ANSWER, make_scripted
from serving import Process, kormed_serve
from tiny_models import make_adapter, make_base

from export.adapter import write_adapter_gguf
from export.convert import Provenance, write_gguf
from kormed_edge.api_keys import add_key
from kormed_edge.calibration import Calibration, TextScale
from kormed_edge.cli import main
from kormed_edge.guidelines import Guidelines
from kormed_edge.guidelines_file import default_path
from kormed_edge.manifest import sha256_file

QUESTION = {"question": "가장 먼저 할 검사는?"}
TINY = ("--threads", 1, "--context", 512, "--slots", 2, "--allow-unverified")


def kormed(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


def ask(service: Process, **headers: str) -> tuple[int, Any]:
    answer = service.client.post("/v1/ask", json=QUESTION, headers=headers)
    return answer.status_code, answer.json()


def metric(service: Process, line: str, **headers: str) -> float:
    text = service.client.get("/metrics", headers=headers).text
    return float(next(row for row in text.splitlines() if row.startswith(line)).split()[-1])


ENDS = (0, 2)
"""Ids of the tokens that end an answer of the tiny models."""


@contextmanager
def telling(service: Process, tokens: int) -> Iterator[Iterator[str]]:
    """The lines of a long answer as they come; leaving closes the connection."""
    body = {
        "messages": [{"role": "user", "content": "?"}],
        "stream": True,
        "max_tokens": tokens,
        "logit_bias": {str(token): -100 for token in ENDS},
    }
    with service.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


@pytest.fixture(scope="module")
def long_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can speak for long."""
    folder = tmp_path_factory.mktemp("long")
    make_base(folder / "hf", max_position_embeddings=4096)
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    return write_gguf(folder / "hf", None, folder / "long.gguf", nobody).path


@pytest.fixture(scope="module")
def service(scripted_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with kormed_serve(tmp_path_factory.mktemp("s"), "--model", scripted_gguf, *TINY) as process:
        process.wait_until_ready()
        yield process


def test_it_answers_and_counts(service: Process) -> None:
    status, body = ask(service)
    assert (status, body["answer"], body["model"]) == (200, ANSWER, "tiny")
    assert metric(service, 'kormed_requests_total{endpoint="/v1/ask",status="200"}') >= 1
    assert metric(service, 'kormed_tokens_total{kind="completion"}') > 1
    assert metric(service, "kormed_time_to_first_token_seconds_count") >= 1
    assert metric(service, "kormed_slots ") == 2
    assert metric(service, "kormed_kv_tokens_limit ") == 2 * 512


def test_calibration_beside_the_model_is_used(scripted_gguf: Path, tmp_path: Path) -> None:
    model = copyfile(scripted_gguf, tmp_path / "m.gguf")
    (tmp_path / "calibration.json").write_text(calibration(model, None))
    with kormed_serve(tmp_path, "--model", model, *TINY) as service:
        service.wait_until_ready()
        body = ask(service)[1]
    assert (body["calibrated"], body["confidence_words"]["en"]) == (True, "low")
    assert [warning["code"] for warning in body["warnings"]] == ["low_confidence"]


@pytest.fixture(scope="module")
def lora(scripted_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the scripted model answers."""
    folder = tmp_path_factory.mktemp("lora")
    adapter = make_adapter(scripted_base, folder / "hf", lora_alpha=64)
    nobody = Provenance(name="v2", run="r", version="0", prompt="p")
    return write_adapter_gguf(scripted_base, adapter, folder / "adapter.gguf", nobody).path


def calibration(model: Path, lora: Path | None) -> str:
    return Calibration(
        model_sha256=sha256_file(model), adapter_sha256=lora and sha256_file(lora), options=None,
        text=TextScale(slope=1.0, intercept=0.0, n=9), threshold=0.9, fit_version="1",
    ).model_dump_json()  # fmt: skip


def said_when_ready(service: Process) -> str:
    service.process.send_signal(signal.SIGTERM)
    return " ".join(service.process.communicate(timeout=30)[1].split())


def test_default_adapter_answers_with_its_own_calibration(
    scripted_gguf: Path, lora: Path, tmp_path: Path
) -> None:
    file = copyfile(lora, tmp_path / "adapter.gguf")
    (tmp_path / "calibration.json").write_text(calibration(scripted_gguf, file))
    options = ("--model", scripted_gguf, *TINY, "--adapter", f"v2={file}")
    with kormed_serve(tmp_path, *options, "--default-adapter", "v2") as service:
        service.wait_until_ready()
        bodies = [
            service.client.post("/v1/ask", json={**QUESTION, "model": name}).json()
            for name in (None, "v2", "tiny")
        ]
        digest = sha256_file(file)
        assert metric(service, f'kormed_model_info{{adapter_sha256="{digest}",name="v2"') == 1
        log = said_when_ready(service)
    told = [(body["model"], body["adapter_sha256"], body["calibrated"]) for body in bodies]
    assert told == [("v2", digest, True), ("v2", digest, True), ("tiny", None, False)]
    assert bodies[0]["answer"] == bodies[1]["answer"] != bodies[2]["answer"] == ANSWER
    assert f"· adapter v2 · SHA-256 {digest} · calibrated · ready" in log


def test_first_request_of_the_default_adapter_finds_the_system_prompt_read(
    scripted_gguf: Path, lora: Path, tmp_path: Path
) -> None:
    options = ("--model", scripted_gguf, *TINY, "--adapter", f"v2={lora}")
    with kormed_serve(tmp_path, *options, "--default-adapter", "v2") as service:
        service.wait_until_ready()
        ask(service)
        assert metric(service, 'kormed_tokens_total{kind="cached"}') > 0


def test_calibration_in_the_folder_of_both_is_the_model_s(
    scripted_gguf: Path, lora: Path, tmp_path: Path
) -> None:
    model, file = copyfile(scripted_gguf, tmp_path / "m.gguf"), copyfile(lora, tmp_path / "a.gguf")
    (tmp_path / "calibration.json").write_text(calibration(model, None))
    options = ("--model", model, *TINY, "--adapter", f"v2={file}")
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        assert ask(service)[1]["calibrated"] is True
        assert "· calibrated · ready" in said_when_ready(service)


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        (["--default-adapter", "v2"], "--default-adapter v2", "the name of an --adapter"),
        (["--adapter", "v1=a.gguf", "--default-adapter", "v2"], "--default-adapter v2", "v1"),
        (["--adapter", "m=a.gguf", "--default-adapter", "m"], "the model's own name", "apart"),
    ],
)
def test_default_adapter_must_be_one_of_the_adapters(
    options: list[str], found: str, expected: str
) -> None:
    result = kormed("--model", "m.gguf", *options)
    assert result.exit_code == 2, result.output
    assert found in result.stderr
    assert expected in result.stderr


def test_answers_cite_the_guidelines_that_are_named(scripted_gguf: Path, tmp_path: Path) -> None:
    index = tmp_path / "g.db"
    with Guidelines(index, write=True) as guidelines:
        guidelines.add(write(tmp_path, "소생.txt", "가장 먼저 할 검사는 심전도이다."))
    options = ("--model", scripted_gguf, *TINY, "--context", 4096, "--guidelines", index)
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        body = ask(service)[1]
        assert [passage["document"] for passage in body["passages"]] == ["소생.txt"]
        status = service.client.get("/v1/status").json()
        assert (status["guidelines"], status["calibrated"]) == (True, False)


def test_guidelines_that_nobody_named_are_told_of_and_not_used(
    scripted_gguf: Path, tmp_path: Path
) -> None:
    with Guidelines(default_path(), write=True) as guidelines:
        guidelines.add(write(tmp_path, "소생.txt", "심전도"))
    with kormed_serve(tmp_path, "--model", scripted_gguf, *TINY) as service:
        service.wait_until_ready()
        assert ask(service)[1]["passages"] is None
        service.process.send_signal(signal.SIGTERM)
        log = service.process.communicate(timeout=30)[1]
    assert "guidelines.db is there and not used: --guidelines default" in log


def test_guidelines_that_are_not_there_are_named_before_anything_listens(tmp_path: Path) -> None:
    result = kormed("--model", write(tmp_path, "m.gguf", ""), "--guidelines", tmp_path / "g.db")
    assert result.exit_code == 1
    assert "kormed guidelines add FILES --index" in result.stderr


@pytest.mark.parametrize(("options", "leaks"), [((), False), (("--allow-han",), True)])
def test_han_is_kept_out_unless_it_is_allowed(
    options: tuple[str, ...], leaks: bool, tmp_path: Path
) -> None:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    base = make_scripted(tmp_path / "hf", answer="心")
    model = write_gguf(base, None, tmp_path / "m.gguf", nobody).path
    with kormed_serve(tmp_path, "--model", model, *TINY, "--max-new-tokens", 4, *options) as it:
        it.wait_until_ready()
        assert ("心" in ask(it)[1]["answer"]) is leaks


def test_a_prompt_longer_than_the_context_is_refused(service: Process) -> None:
    answer = service.client.post("/v1/ask", json={"question": "가" * 2000})
    assert answer.status_code == 400
    assert "context of 512" in answer.json()["error"]["message"]


def test_two_hundred_at_once_are_answered_or_refused_and_none_is_lost(service: Process) -> None:
    start = threading.Barrier(200)

    def one(_: int) -> tuple[int, str | None]:
        start.wait()
        answer = service.client.post("/v1/ask", json=QUESTION)
        body = answer.json()
        assert answer.status_code != 200 or body["answer"] == ANSWER
        return answer.status_code, answer.headers.get("Retry-After")

    with ThreadPoolExecutor(200) as clients:
        answers = Counter(clients.map(one, range(200)))
    assert sum(answers.values()) == 200
    assert {status for status, _ in answers} <= {200, 429}
    assert all((wait is not None) == (status == 429) for status, wait in answers)
    assert answers[200, None] >= 2 + 64
    assert metric(service, "kormed_queue ") == metric(service, "kormed_slots_busy ") == 0
    assert ask(service)[0] == 200


def test_a_full_queue_refuses_at_once(long_gguf: Path, tmp_path: Path) -> None:
    options = ("--model", long_gguf, *TINY, "--context", 4000, "--slots", 1, "--queue", 0)
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        with telling(service, 3900) as lines:
            next(lines)
            status, refused = ask(service)
            assert (status, "error" in refused) == (429, True)


def test_sigterm_in_the_middle_of_an_answer_lets_it_end(long_gguf: Path, tmp_path: Path) -> None:
    with kormed_serve(tmp_path, "--model", long_gguf, *TINY, "--context", 4000) as service:
        service.wait_until_ready()
        with telling(service, 2000) as lines:
            next(lines)
            service.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '"finish_reason": "length"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert service.process.wait(30) == 0
        assert not service.path.exists()


def test_a_client_that_goes_away_frees_its_slot(long_gguf: Path, tmp_path: Path) -> None:
    options = ("--model", long_gguf, *TINY, "--context", 4000, "--slots", 1, "--queue", 1)
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        for _ in range(5):  # each waits for the slot of the one before
            with telling(service, 3900) as lines:
                next(lines)
        assert metric(service, 'kormed_tokens_total{kind="completion"}') < 5 * 3900


def test_keys_are_asked_for(scripted_gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    key = {"Authorization": f"Bearer {add_key(file, 'ward')}"}
    options = ("--model", scripted_gguf, *TINY, "--api-keys", file, "--rate", 2)
    with kormed_serve(tmp_path, *options) as service:
        service.wait_until_ready()
        assert ask(service)[0] == service.status("/metrics") == 401
        assert [ask(service, **key)[0] for _ in range(3)] == [200, 200, 429]
        assert metric(service, 'kormed_rejects_total{reason="rate"}', **key) == 1


def test_no_prompt_and_no_key_is_logged(scripted_gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    key = add_key(file, "ward")
    with kormed_serve(tmp_path, "--model", scripted_gguf, *TINY, "--api-keys", file) as service:
        service.wait_until_ready()
        assert ask(service, Authorization=f"Bearer {key}")[0] == 200
        for body in ('{"question": ["가장 먼저"]}', '{"question": "가장 먼저', "가장 먼저"):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            answer = service.client.post("/v1/ask", content=body, headers=headers)
            assert answer.status_code in (400, 422)
        service.process.send_signal(signal.SIGTERM)
        log = service.process.communicate(timeout=30)[1]
    assert "ready" in log
    assert "가장 먼저" not in log
    assert key not in log


def test_a_file_with_a_changed_byte_is_not_loaded(model: Path, tmp_path: Path) -> None:
    flipped = bytearray(model.read_bytes())
    flipped[-1] ^= 1
    model.write_bytes(flipped)
    with kormed_serve(tmp_path, "--model", model) as service:
        assert service.process.wait(60) == 1
        log = service.process.communicate()[1]
    assert "has SHA-256" in log
    assert "as its manifest says" in log
    assert "Traceback" not in log


def test_sigterm_while_loading_ends_it_at_once(tmp_path: Path) -> None:
    model = tmp_path / "huge.gguf"
    with model.open("wb") as stream:
        stream.truncate(2**37)  # nothing on the disk, and minutes to hash
    with kormed_serve(tmp_path, "--model", model, "--allow-unverified") as service:
        service.wait_for("/healthz", 200)
        assert service.status("/readyz") == 503
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
        assert not service.path.exists()


def test_a_verified_file_is_served(model: Path, tmp_path: Path) -> None:
    with kormed_serve(tmp_path, "--model", model, "--context", 512) as service:
        service.wait_until_ready()


@pytest.fixture
def model(scripted_gguf: Path, tmp_path: Path) -> Path:
    """A copy of the model with a manifest beside it."""
    from kormed_edge.manifest import MANIFEST, new_manifest, write_json

    folder = tmp_path / "gguf"
    folder.mkdir()
    copyfile(scripted_gguf, folder / "tiny.gguf")
    manifest = new_manifest(
        folder, stage="gguf", run="r", seconds=0, settings={}, inputs={}, base=None, seed=None
    )
    write_json(folder / MANIFEST, manifest.model_dump())
    return folder / "tiny.gguf"


def may_unshare() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-n", "true"], check=False).returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="unshare -n is not permitted here")
def test_it_serves_where_there_is_no_network(scripted_gguf: Path, tmp_path: Path) -> None:
    options = ("--model", scripted_gguf, *TINY)
    with kormed_serve(tmp_path, *options, before=("unshare", "-n")) as service:
        service.wait_until_ready()
        assert ask(service)[1]["answer"] == ANSWER
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_it_connects_to_nothing(scripted_gguf: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    # -D: the process is the service itself, which a signal reaches, and strace stands aside.
    before = ("strace", "-D", "--follow-forks", "--trace=connect", "--output", str(trace))
    options = ("--model", scripted_gguf, *TINY)
    with kormed_serve(tmp_path, *options, before=before) as service:
        service.wait_until_ready()
        assert ask(service)[1]["answer"] == ANSWER
        service.process.send_signal(signal.SIGTERM)
        service.process.communicate(timeout=60)  # until strace has written its last line
    assert "+++ exited with 0 +++" in trace.read_text()
    assert [line for line in trace.read_text().splitlines() if "connect(" in line] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines"),
        (["--host", "ward.example", "--insecure"], "is not an IP address"),
        (["--tls-key", "k.pem"], "one of --tls-certificate and --tls-key"),
        (["--cors-origin", "*"], "--cors-origin *"),
        (["--cors-origin", "https://a.example/path"], "--cors-origin https://a.example/path"),
        (["--api-keys", "no-such-file"], "no-such-file cannot be read"),
        (["--api-keys", "/dev/null"], "/dev/null"),
    ],
)
def test_wrong_use_is_refused_before_anything_listens(options: list[str], message: str) -> None:
    result = kormed("--model", "m.gguf", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_file_without_keys_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.touch(mode=0o600)
    result = kormed("--model", "m.gguf", "--host", "0.0.0.0", "--api-keys", file)
    assert result.exit_code == 2
    assert "holds no key" in result.stderr


def test_keys_or_insecure_open_an_address(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    add_key(file, "a")
    for options in (["--api-keys", file], ["--insecure"]):
        result = kormed("--model", tmp_path / "m.gguf", "--host", "0.0.0.0", *options)
        assert (result.exit_code, "m.gguf does not exist" in result.stderr) == (1, True)
