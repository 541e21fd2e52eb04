import fcntl
import json
import os
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from guideline_files import write
from scripted_model import ANSWER
from test_ask_api import TEXT
from test_server import client_of

from kormed_edge import ask_command
from kormed_edge.ask_api import AskAnswer
from kormed_edge.asker import WORDS, Asker, printable
from kormed_edge.calibration import Calibration, TextScale
from kormed_edge.cli import main
from kormed_edge.engine import Engine
from kormed_edge.errors import PromptTooLongError
from kormed_edge.guidelines import Guidelines
from kormed_edge.page_api import FOLDER
from kormed_edge.prompts import NOTICE
from kormed_edge.request import Piece, Request, TokenLogprob
from kormed_edge.suppression import Suppression

HOSTILE = "[red]:bomb:[/] \x1b]0;x\x07\x1b[2J\x9b31m\u202e끝\r\n"
WAIT_S = 60
HAN, STRICT = frozenset({7}), frozenset({7, 8})
SUPPRESSION = Suppression(HAN, STRICT)


class Spoken(list[Piece]):
    """A generation that says its pieces, and is interrupted at the end if it has none."""

    def __init__(self, said: tuple[str, ...], options: tuple[TokenLogprob, ...]) -> None:
        super().__init__([Piece(text) for text in said] + [Piece("", "stop")])
        self.options = options

    def __next__(self) -> Piece:
        if self[0].text == "^C":
            raise KeyboardInterrupt
        return self.pop(0)

    def __iter__(self) -> Iterator[Piece]:
        while self:
            yield next(self)

    def close(self) -> None: ...


class Speaker:
    """An engine that says the same to everyone; "^C" among it interrupts."""

    is_open = True

    def __init__(self, *said: str, chances: tuple[float, ...] = ()) -> None:
        self.said, self.instead, self.asked = said, ("심전도",), list[Request]()
        self.chances = tuple(TokenLogprob(i, b"", chance) for i, chance in enumerate(chances))

    def encode_messages(self, messages: Any) -> list[int]:
        if "너무 긴" in messages[-1]["content"]:
            raise PromptTooLongError("the prompt has 9 tokens", "fewer", "shorten the question")
        return [1]

    def option_tokens(self, options: list[str]) -> tuple[int, ...]:
        return tuple(range(len(options)))

    def submit(self, request: Request) -> Spoken:
        self.asked.append(request)
        said = self.instead if request.sampling.banned == STRICT else self.said
        return Spoken(said, self.chances if request.options else ())


def asker(*said: str, chances: tuple[float, ...] = (), **settings: Any) -> Asker:
    engine: Any = Speaker(*said, chances=chances)
    return Asker(engine, "tiny", "ab" * 32, 8, **settings)


@pytest.fixture
def kormed(scripted_gguf: Path) -> Any:
    model = ["--model", str(scripted_gguf), "--allow-unverified", "--context", "512"]

    def run(*arguments: str, stdin: bytes | str = "") -> Result:
        return CliRunner().invoke(main, ["ask", *model, "--threads", "1", *arguments], input=stdin)

    return run


def test_answer_alone_goes_to_standard_output(kormed: Any) -> None:
    result = kormed("가장 먼저 할 검사는?")
    assert (result.exit_code, result.stdout) == (0, f"{ANSWER}\n")
    assert result.stderr == f"\n{NOTICE}\n"


@pytest.mark.parametrize("stdin", [TEXT.encode(), f"\ufeff{TEXT}\r\n".encode()])
@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_item_on_standard_input_is_a_multiple_choice(
    kormed: Any, stdin: bytes, arguments: list[str]
) -> None:
    result = kormed(*arguments, stdin=stdin)
    assert result.stdout == f"{ANSWER}\n"
    assert "선택한 보기: 3) 심전도\n확신도 " in result.stderr


def test_json_is_one_line_and_what_the_service_says(kormed: Any, scripted_gguf: Path) -> None:
    question = f"연락처 010-1234-5678\n{TEXT}"
    result = kormed("--json", question)
    [line] = result.stdout.splitlines()
    with Engine(scripted_gguf, context=512, threads=1) as engine:
        client: TestClient = client_of(engine)
        said = client.post("/v1/ask", json={"question": question}).json()
    told = json.loads(line)
    assert set(told) == set(AskAnswer.model_fields) - {"request_id"}
    assert told | {"sha256": said["sha256"], "request_id": said["request_id"]} == said
    assert [warning["code"] for warning in told["warnings"]][-1] == "personal_data"
    assert result.stderr == ""


def test_free_answer_of_a_calibrated_model_has_a_confidence(
    scripted_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = TextScale(slope=0.0, intercept=0.0, n=9)
    calibration = Calibration(
        model_sha256="ab" * 32, options=None, text=scale, threshold=0.6, fit_version="1"
    )
    with Engine(scripted_gguf, context=512, threads=1) as engine:
        Asker(engine, "tiny", "ab" * 32, 8, calibration).ask("가장 먼저 할 검사는?")
    said = capsys.readouterr().err
    assert "\n확신도 낮음 (50%)\n⚠ 불확실: 전문의 확인 필요\n  - 모델이 이 답을" in said
    assert said.count("전문의 확인 필요") == 1


def test_ask_needs_a_question(kormed: Any) -> None:
    for result in (kormed("  "), kormed(stdin=" \n")):
        assert result.exit_code == 2
        assert "the question is empty" in result.stderr


@pytest.mark.parametrize(
    ("stdin", "found"),
    [
        ("가장".encode("cp949"), "iconv -f CP949 -t UTF-8"),
        (("가" + "\u0301" * 40).encode(), "40 combining marks"),
        (("가" * 40_000).encode(), "at most 32768 characters"),
    ],
)
def test_text_that_the_service_would_refuse_is_refused(
    kormed: Any, stdin: bytes, found: str
) -> None:
    result = kormed(stdin=stdin)
    assert result.exit_code == 2
    assert found.replace("40 ", "more than 30 ") in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "both or neither given"),
        (["--run", "x", "--model", "m.gguf"], "both or neither given"),
        (["--run", "x"], "make export RUN=x"),
        (["--model", "m.gguf"], "m.gguf does not exist"),
    ],
)
def test_ask_needs_one_model(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["ask", "질문", "--runs-dir", str(tmp_path), *options])
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_guidance_comes_before_the_answer_and_doubts_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "지금 남편이 숨을 안 쉬어요"
    asker("心", "肺").ask(question)
    said = capsys.readouterr()
    assert said.out == "心肺\n"
    assert said.err.startswith("⚠ 먼저 확인하십시오: 지금 위급한 상황이라면 먼저 119에")
    assert "⚠ 불확실: 전문의 확인 필요\n  - 답변에 한자가" in said.err
    asker("心", language="en").ask(question)
    assert capsys.readouterr().err.startswith("⚠ Before anything else: If this is happening now")


@pytest.mark.parametrize(
    ("chances", "words"),
    [
        (
            (-9.0, -9.0, -0.01, -9.0),
            "확신도 높음 (100%) · 보정되지 않은 값\n1) 0% · 2) 0% · 3) 100% · 4) 0%\n",
        ),
        (
            (-1.0, -1.0, -1.0, -1.0),
            "확신도 낮음 (25%) · 보정되지 않은 값\n1) 25% · 2) 25% · 3) 25% · 4) 25%\n⚠",
        ),
    ],
)
def test_confidence_is_the_pages(
    chances: tuple[float, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asker("3) 심전도", chances=chances).ask(TEXT)
    assert words in capsys.readouterr().err


def test_text_of_a_model_is_no_markup_and_commands_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = "[red]:bomb:[/] \ufffd]0;x\ufffd\ufffd[2J\ufffd31m\ufffd끝"
    asker(f"2) {HOSTILE}", chances=(-1.0, -1.0)).ask(f"질문?\n1) 가\n2) {HOSTILE}")
    said = capsys.readouterr()
    assert said.out == f"2) {shown}\n\n"
    assert f"선택한 보기: 2) {shown}\n" in said.err
    assert printable(said.out + said.err) == said.out + said.err


def test_answer_that_drifts_is_written_anew(capsys: pytest.CaptureFixture[str]) -> None:
    asked = asker("심", "電圖", suppression=SUPPRESSION)
    asked.ask("질문")
    said = capsys.readouterr()
    assert said.out == "심전도\n"
    assert "다른 글자가 섞여 답변을 다시 썼습니다." in said.err
    first, second = asked.engine.asked  # type: ignore[attr-defined]
    assert (first.sampling.banned, second.sampling.banned) == (HAN, STRICT)


def test_terminal_sees_both_answers_with_a_word_between(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    asker("심", "電圖", suppression=SUPPRESSION).ask("질문")
    assert capsys.readouterr().out == "심\n심전도\n"


def test_second_answer_is_told_whatever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    asked = asker("心", suppression=SUPPRESSION, as_json=True)
    asked.engine.instead = ("心電圖",)  # type: ignore[attr-defined]
    asked.ask("질문")
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["regenerated"]) == ("心電圖", True)
    assert [warning["code"] for warning in told["warnings"]] == ["han_leak"]


def test_passages_stand_below_the_answer(kormed: Any, tmp_path: Path) -> None:
    index = tmp_path / "g.db"
    with Guidelines(index, write=True) as guidelines:
        guidelines.add(write(tmp_path, "소생.txt", "심정지에 에피네프린 1 mg을 준다."))
    found = kormed("--guidelines", str(index), "심정지에 주는 에피네프린은?", "--context", "4096")
    assert (found.exit_code, found.stdout) == (0, f"{ANSWER}\n")
    assert "지침 구절\n[1] 소생.txt\n심정지에 에피네프린 1 mg을 준다.\n" in found.stderr
    assert "인용하지 않았습니다" in found.stderr
    nothing = kormed("--guidelines", str(index), "주차장은 몇 시까지?")
    assert "관련된 구절을 찾지 못했습니다" in nothing.stderr


def test_json_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    asker(HOSTILE, as_json=True).ask("질문")
    [line] = capsys.readouterr().out.splitlines()
    assert printable(line) == line
    assert json.loads(line)["answer"] == HOSTILE


def test_words_are_those_of_the_page() -> None:
    page = (FOLDER / "words.js").read_text("utf-8")
    for name in ("guidance", "uncertain", "stopped", "reading", "passages", "cited"):
        assert f'{{ ko: "{WORDS[name]["ko"]}", en: "{WORDS[name]["en"]}" }}' in page
    for text in (*WORDS["regenerated"].values(), *WORDS["uncalibrated"].values()):
        assert text in page


def converse(asker: Asker, monkeypatch: pytest.MonkeyPatch, *typed: str) -> None:
    left = [*typed, ""]
    monkeypatch.setattr(ask_command, "_typed", lambda _: left.pop(0))
    ask_command._converse(asker)
    assert left == []


def test_stopped_answer_ends_no_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(asker("심", "^C"), monkeypatch, "하나", "둘")
    said = capsys.readouterr()
    assert said.out == "심\n심\n"
    assert said.err.count("중지했습니다. 답변이 완전하지 않습니다.\n") == 2
    assert NOTICE not in said.err


def test_question_that_fails_ends_no_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(asker("가"), monkeypatch, "너무 긴 질문", "\ud800", "질문")
    said = capsys.readouterr()
    assert said.out == "가\n"
    assert "shorten the question" in said.err
    assert "a text that the service takes" in said.err


def test_engine_that_failed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = asker("가")
    broken.engine.is_open = False  # type: ignore[misc]
    with pytest.raises(PromptTooLongError):
        converse(broken, monkeypatch, "너무 긴 질문")


def test_stopped_answer_of_one_question_ends_the_command(
    kormed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "submit", lambda *_: Spoken(("심", "^C"), ()))
    result = kormed("질문")
    assert (result.exit_code, result.stdout) == (1, "심\n")
    assert "Aborted!" in result.stderr


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        ([("질문", False), ("다음", False)], "질문"),
        ([("", False)], ""),
        ([EOFError], ""),
        ([KeyboardInterrupt, ("질문", False)], "질문"),
        # The last line of a paste that has no end of its own: Enter, and an empty line.
        ([("줄기", True), ("", True), ("1) 가", False), ("2) 나", False), ("", False)],
         "줄기\n\n1) 가\n2) 나"),
        ([("줄기", True), ("1) 가", False), EOFError], "줄기\n1) 가"),
        ([("버림", True), KeyboardInterrupt, ("질문", False)], "질문"),
    ],
)  # fmt: skip
def test_lines_that_were_pasted_at_once_are_one_question(
    typed: list[Any], question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def type_line(_: str) -> str:
        line = typed.pop(0)
        if isinstance(line, type):
            raise line
        text, more = line
        waits.append(more)
        return str(text)

    monkeypatch.setattr(ask_command, "_input", type_line)
    monkeypatch.setattr(ask_command, "_more_waits", lambda: waits[-1])
    assert ask_command._typed("> ") == question


LAUNCH = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "from kormed_edge.cli import main; main()"
)


class Terminal:
    """`kormed ask` on a terminal of its own; its screen, as it was written."""

    def __init__(self, *arguments: str) -> None:
        self.master, terminal = os.openpty()
        self.screen = b""
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\x18\x00\x78\x00\x00\x00\x00\x00")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, "ask", *arguments], start_new_session=True,
            stdin=terminal, stdout=terminal, stderr=terminal,
            env=os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_to(self, text: str) -> str:
        """What was written since the last call, up to and with a text."""
        while text.encode() not in self.screen:
            assert select.select([self.master], [], [], WAIT_S)[0], self.screen
            self.screen += os.read(self.master, 65536)
        before, found, self.screen = self.screen.partition(text.encode())
        return (before + found).decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(scripted_gguf: Path) -> Iterator[Terminal]:
    it = Terminal("--model", str(scripted_gguf), "--allow-unverified", "--context", "512")
    yield it
    it.close()


def test_conversation_on_a_real_terminal(terminal: Terminal) -> None:
    terminal.read_to("질문> ")
    terminal.type(f"\x1b[200~{TEXT}\x1b[201~\r")
    assert "선택한 보기: 3) 심전도" in terminal.read_to("질문> ").replace("\r", "")
    terminal.type("가장 먼저 할 검사는?\r")
    assert f"{ANSWER}\r\n" in terminal.read_to("질문> ")
    terminal.type("\r")
    assert terminal.process.wait(WAIT_S) == 0
