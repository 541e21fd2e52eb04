"""A model that is asked on a terminal: its answer, and what the page would tell of it."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.text import Text

from kormed_edge.calibration import Calibration
from kormed_edge.engine import Engine
from kormed_edge.errors import ConfigError
from kormed_edge.progress import console
from kormed_edge.prompts import NOTICE
from kormed_edge.request import Piece, Request, joined
from kormed_edge.safety import drifts, find_guidance
from kormed_edge.suppression import Suppression

if TYPE_CHECKING:
    from kormed_edge.ask_shapes import Question
    from kormed_edge.asking import Asked
    from kormed_edge.generation import Generation
    from kormed_edge.guidelines import Guidelines

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
    "uncalibrated": {"ko": "보정되지 않은 값", "en": "not calibrated"},
    "passages": {"ko": "지침 구절", "en": "Passages of the guidelines"},
    "page": {"ko": "{}쪽", "en": "page {}"},
    "cited": {"ko": "인용됨", "en": "cited"},
    "regenerated": {
        "ko": "다른 글자가 섞여 답변을 다시 썼습니다.",
        "en": "Other scripts had slipped in: the answer was written anew.",
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

    Without a `calibration` a confidence is the model's own opinion. With a `suppression` an answer
    that drifts into another script all the same is written anew, once.
    """

    engine: Engine
    model: str
    sha256: str
    max_new_tokens: int
    calibration: Calibration | None = None
    language: Language = "ko"
    as_json: bool = False
    guidelines: "Guidelines | None" = None
    suppression: Suppression | None = None

    def ask(self, text: str) -> None:
        """Print what the model answers and what to think of it.

        Raises `ConfigError` for a text that the service would refuse, `EngineError` when there is
        no answer.
        """
        question = _question(text)
        guidance = find_guidance(question.text)
        if guidance and not self.as_json:
            self.say(f"⚠ {self.word('guidance')}: {asdict(guidance)[self.language]}", "bold red")
        asked = self._prepared(question)
        piece, generation, regenerated = self._read(self._request(asked))
        judged = self._judged(question, asked, piece, generation)
        told: dict[str, Any] = {"regenerated": regenerated}
        told |= {"guidance": asdict(guidance) if guidance else None}
        told |= {"model": self.model, "adapter": None, "sha256": self.sha256}
        told |= {"adapter_sha256": None, "notice": NOTICE}
        if self.as_json:
            click.echo(_json_line({**judged, **told}))
        else:
            self._tell({**judged, **told}, asked.choices)

    def _prepared(self, question: "Question") -> "Asked":
        from kormed_edge.asking import Asked, consult

        if self.guidelines is None:
            return Asked(question.text, question.choices)
        return consult(
            self.guidelines, question.text, question.choices, self.engine, self.max_new_tokens
        )

    def _request(self, asked: "Asked") -> Request:
        return asked.request(
            self.engine,
            max_new_tokens=self.max_new_tokens,
            calibrated=self.calibration is not None,
            suppression=self.suppression,
        )

    def _read(self, request: Request) -> "tuple[Piece, Generation, bool]":
        """The whole answer, written out, and whether it was written anew."""
        generation = self.engine.submit(request)
        piece = self._hear(generation, may_drift=self.suppression is None)
        if piece is not None or self.suppression is None:
            return piece or Piece("", "stop"), generation, False
        if not self.as_json:
            self.say(self.word("regenerated"), "yellow")
        sampling = replace(request.sampling, banned=self.suppression.strict)
        generation = self.engine.submit(replace(request, sampling=sampling))
        return self._hear(generation, may_drift=True) or Piece("", "stop"), generation, True

    def _hear(self, generation: "Generation", *, may_drift: bool) -> Piece | None:
        """An answer to its end, or None as soon as it drifts.

        A terminal sees it while it is written, a file or a pipe when it is whole: from these an
        answer could not be taken back.
        """
        live, pieces, drifted = sys.stdout.isatty(), list[Piece](), False
        with closing(generation):
            with console.status(self.word("reading")):
                following = next(generation)
            try:
                for piece in chain([following], generation):
                    drifted = not may_drift and drifts(piece.text)
                    if drifted:
                        return None
                    pieces.append(piece)
                    self._write(piece.text if live else "")
            finally:
                if live or not drifted:
                    self._write("\n" if live else f"{joined(pieces).text}\n")
        return joined(pieces)

    def _write(self, text: str) -> None:
        if text and not self.as_json:
            click.echo(printable(text), nl=False)

    def _judged(
        self, question: "Question", asked: "Asked", piece: Piece, generation: "Generation"
    ) -> dict[str, Any]:
        from kormed_edge.appraisal import appraise
        from kormed_edge.phi import find_phi

        personal = bool(find_phi(question.text))
        return appraise(piece, asked, generation.options, self.calibration, personal=personal)

    def _tell(self, judged: Mapping[str, Any], choices: Sequence[str]) -> None:
        option, shares = judged["option"], judged["option_probabilities"] or ()
        console.print()
        if option and option <= len(choices):
            self.say(f"{self.word('choice')}: {option}) {choices[option - 1]}", "bold")
        if (confidence := judged["confidence"]) is not None:
            words = judged["confidence_words"][self.language]
            how = "" if judged["calibrated"] else f" · {self.word('uncalibrated')}"
            self.say(f"{self.word('confidence')} {words} ({confidence:.0%}){how}")
        if shares:
            self.say(" · ".join(f"{i}) {share:.0%}" for i, share in enumerate(shares, 1)))
        self._tell_passages(judged)
        uncertain = self.word("uncertain")
        if judged["warnings"]:
            self.say(f"⚠ {uncertain}", "bold yellow")
        for warning in judged["warnings"]:
            self.say(f"  - {warning[self.language].removeprefix(f'{uncertain}. ')}", "yellow")
        self.say(NOTICE, "dim")

    def _tell_passages(self, judged: Mapping[str, Any]) -> None:
        if judged["passages"]:
            self.say(self.word("passages"), "bold")
        for passage in judged["passages"] or ():
            page = self.word("page").format(passage["page"]) if passage["page"] else ""
            cited = self.word("cited") if passage["number"] in judged["cited"] else ""
            parts = (passage["document"], page, passage["heading"], cited)
            self.say(f"[{passage['number']}] " + " · ".join(part for part in parts if part))
            self.say(passage["text"], "dim")
        if note := judged["guidelines_note"]:
            self.say(note[self.language], "yellow")

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

    from kormed_edge.ask_shapes import Question

    try:
        return Question(question=text)
    except ValidationError as error:
        found = error.errors()[0]["msg"]
        raise ConfigError(f"the question: {found}", "a text that the service takes") from None
