"""What POST /v1/ask takes and gives."""

from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from kormed_edge.guidelines_api import PassageShape
from kormed_edge.openai_requests import ApiModel, ModelName, Text
from kormed_edge.records import format_question, split_options

MAX_OPTIONS = 64
Option = Annotated[Text, Field(min_length=1, max_length=2048)]


class Question(ApiModel):
    """`options` are those of a multiple choice; without them they are looked for in the text.
    `guidelines` asks for an answer from the hospital's guidelines, or for one without; null leaves
    it to the service, which uses them if it has them."""

    question: Annotated[Text, Field(min_length=1)]
    options: list[Option] | None = Field(default=None, min_length=2, max_length=MAX_OPTIONS)
    model: ModelName | None = None
    stream: bool | None = None
    guidelines: bool | None = None

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is empty")
        return question

    @property
    def text(self) -> str:
        """The question as the model was taught to read one."""
        if self.options is None:
            return self.question
        return format_question(self.question.strip(), self.choices)

    @property
    def choices(self) -> list[str]:
        if self.options is not None:
            return [" ".join(option.split()) for option in self.options]
        return split_options(self.question)[1][:MAX_OPTIONS]


class Doubt(BaseModel):
    """A warning, a note or guidance, in Korean and English."""

    code: str
    ko: str
    en: str


class Words(BaseModel):
    """One thing said in Korean and English."""

    ko: str
    en: str


class NumberedPassage(PassageShape):
    """A passage under the number by which the answer may cite it."""

    number: int


class AskAnswer(BaseModel):
    """`option` counts from 1; probabilities are among the options; `confidence` is that of the
    option answered, or, if `calibrated`, that a free answer is right, and `confidence_words` says
    how high it is; `guidance` says whom to call first. They are null where there is nothing to
    tell. `calibrated` says that of answers with this confidence about this share was right on the
    model's validation split; otherwise it is the model's own opinion.

    `passages` are those that the model was given; null where no guidelines were asked for, empty
    where none was relevant, and then `guidelines_note` says so. `cited` are their numbers in the
    answer. `regenerated` says that a first answer drifted into another script and was thrown
    away. `sha256` is of the GGUF, also where `model` is the name of an `adapter` over it."""

    answer: str
    finish_reason: str
    option: int | None
    option_probabilities: list[float] | None
    confidence: float | None
    confidence_words: Words | None
    calibrated: bool
    warnings: list[Doubt]
    passages: list[NumberedPassage] | None
    cited: list[int]
    guidelines_note: Doubt | None
    regenerated: bool
    guidance: Doubt | None
    model: str
    adapter: str | None
    sha256: str
    adapter_sha256: str | None
    notice: str
    request_id: str
