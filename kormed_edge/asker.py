"""A model that is asked on a terminal: its answer, and what the page would tell of it."""

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.text import Text

from kormed_edge.calibration import Calibration
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError
from kormed_edge.progress import console
from kormed_edge.prompts import NOTICE, question_messages
from kormed_edge.request import Piece, Request
from kormed_edge.safety import find_guidance

if TYPE_CHECKING:
    from kormed_edge.ask_api import Question
    from kormed_edge.generation import Generation

Language = Literal["ko", "en"]
WORDS: dict[str, dict[Language, str]] = {
    "loading": {"ko": "모델을 검증하고 불러옵니다…", "en": "Verifying and loading the model…"},
    "reading": {"ko": "질문을 읽고 있습니다…", "en": "Reading the question…"},
    "guidance": {"ko": "먼저 확인하십시오", "en": "Before anything else"},
    "choice": {"ko": "선택한 보기", "en": "Option chosen"},
    "confidence": {"ko": "확신도", "en": "Confidence"},
    "uncertain": {
        "ko": "불확실: 전문의 확인 필요", "en": "Uncertain: have a specialist confirm it",
    },
    "stopped": {
        "ko": "중지했습니다. 답변이 완전하지 않습니다.",
        "en": "Stopped. The answer is not complete.",
    },
    "prompt": {"ko": "질문> ", "en": "Question> "},
    "hint": {
        "ko": "질문마다 따로 답합니다. 객관식은 보기까지 그대로 붙여 넣으십시오.\n"
        "Enter 묻기 · Ctrl-C 답변 중지 · 빈 줄이나 Ctrl-D 끝내기",
        "en": "Each question is answered by itself. Paste multiple choice with its options.\n"
        "Enter asks · Ctrl-C stops the answer · an empty line or Ctrl-D ends",
    },
}  # fmt: skip
# What a terminal obeys instead of showing: C0 and C1, and marks that turn the reading direction.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Asker:
    """A model that is asked on a terminal, under the name and SHA-256 of its file.

    Without a `calibration` a confidence is the model's own opinion.
    """

    engine: Engine
    model: str
    sha256: str
    max_new_tokens: int
    calibration: Calibration | None = None
    language: Language = "ko"
    as_json: bool = False

    def ask(self, text: str) -> None:
        """Print what the model answers and what to think of it.

        Raises `ConfigError` for a text that the service would refuse, `EngineError` when there is
        no answer.
        """
        question = _question(text)
        guidance = find_guidance(question.text)
        if guidance and not self.as_json:
            self.say(f"⚠ {self.word('guidance')}: {asdict(guidance)[self.language]}", "bold red")
        with closing(self.engine.submit(self._request(question))) as generation:
            judged = self._judged(question, self._read(generation), generation)
        told = {"guidance": asdict(guidance) if guidance else None, "model": self.model}
        told |= {"adapter": None, "sha256": self.sha256, "notice": NOTICE}
        if self.as_json:
            click.echo(_json_line({**judged, **told}))
        else:
            self._tell(judged, question.choices)

    def _request(self, question: "Question") -> Request:
        from kormed_edge.ask_api import _option_tokens

        ids = tuple(self.engine.encode_messages(question_messages(question.text)))
        options = _option_tokens(self.engine, len(question.choices))
        # How sure a free answer is stands in the probabilities of its tokens alone.
        logprobs = None if question.choices or self.calibration is None else 0
        return Request(ids, self.max_new_tokens, options=options, logprobs=logprobs)

    def _read(self, generation: "Generation") -> Piece:
        """The whole answer, written out while it comes."""
        with console.status(self.word("reading")):
            pieces = [next(generation)]
        try:
            self._write(pieces[0])
            for piece in generation:
                pieces.append(piece)
                self._write(piece)
        finally:
            if not self.as_json:
                click.echo()
        return Piece(
            "".join(piece.text for piece in pieces),
            pieces[-1].finish_reason,
            tuple(entry for piece in pieces for entry in piece.logprobs),
        )

    def _write(self, piece: Piece) -> None:
        if not self.as_json:
            click.echo(printable(piece.text), nl=False)

    def _judged(
        self, question: "Question", piece: Piece, generation: "Generation"
    ) -> dict[str, Any]:
        from kormed_edge.ask_api import appraise
        from kormed_edge.phi import PERSONAL_DATA, find_phi

        judged = appraise(piece, question.choices, generation.options, self.calibration)
        if find_phi(question.text):
            judged["warnings"].append(asdict(PERSONAL_DATA))
        return judged

    def _tell(self, judged: Mapping[str, Any], choices: list[str]) -> None:
        option, shares = judged["option"], judged["option_probabilities"] or ()
        console.print()
        if option and option <= len(choices):
            self.say(f"{self.word('choice')}: {option}) {choices[option - 1]}", "bold")
        if (confidence := judged["confidence"]) is not None:
            words = judged["confidence_words"][self.language]
            self.say(f"{self.word('confidence')} {words} ({confidence:.0%})")
        if shares:
            self.say(" · ".join(f"{i}) {share:.0%}" for i, share in enumerate(shares, 1)))
        if judged["warnings"]:
            self.say(f"⚠ {self.word('uncertain')}", "bold yellow")
        for warning in judged["warnings"]:
            self.say(f"  - {warning[self.language]}", "yellow")
        self.say(NOTICE, "dim")

    def word(self, name: str) -> str:
        """One of `WORDS` in the language of this terminal."""
        return WORDS[name][self.language]

    def say(self, text: str, style: str = "") -> None:
        """Print a line to standard error."""
        # A Text, because a str would have its :emoji: replaced even without markup.
        console.print(Text(printable(text), style), soft_wrap=True)


def printable(text: str) -> str:
    """The text with U+FFFD for what would move a cursor, ring, colour or reorder it."""
    return _CONTROLS.sub("\ufffd", text.replace("\r", ""))


def _json_line(value: Mapping[str, Any]) -> str:
    """JSON that is readable Korean, with escapes for what a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _question(text: str) -> "Question":
    from pydantic import ValidationError

    from kormed_edge.ask_api import Question

    try:
        return Question(question=text)
    except ValidationError as error:
        found = error.errors()[0]["msg"]
        raise ConfigError(f"the question: {found}", "a text that the service takes") from None
