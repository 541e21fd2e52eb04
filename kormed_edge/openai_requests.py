"""The requests of OpenAI's API that are served, and by name those parts of it that are not.

Unknown fields are ignored, as OpenAI's clients send new ones; a field that would change the answer
and is not served is refused.
"""

from typing import Annotated, Any, Literal
from unicodedata import category

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kormed_edge.api_errors import ApiError
from kormed_edge.prompts import SYSTEM_PROMPT, Message
from kormed_edge.request import Sampling
from kormed_edge.schema_limits import check_schema

MAX_CHARACTERS = 32_768
MAX_MARKS = 30
"""Marks on one letter, the bound of Unicode's Stream-Safe Text Format (UAX #15)."""
SEEDS = 2**32 - 1

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "suffix": ("",),
    "grammar": (),
}
"""Fields of OpenAI and llama.cpp of which only these values, beside null, mean what is done here
anyway."""


def _require_few_marks(text: str) -> str:
    """Refuse piles of combining marks: NFC sorts each in quadratic time, with the GIL held."""
    marks = 0
    for char in "" if text.isascii() else text:
        marks = marks + 1 if category(char)[0] == "M" else 0
        if marks > MAX_MARKS:
            raise ValueError(f"more than {MAX_MARKS} combining marks on one letter")
    return text


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_require_few_marks)]
ModelName = Annotated[str, Field(max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[int, Field(gt=0, lt=2**31)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class ApiModel(BaseModel):
    """Strict: "5" is no number, and neither is NaN."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class TextPart(ApiModel):
    type: Literal["text"]
    text: Text


class ChatMessage(ApiModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]

    def as_message(self) -> Message:
        """`developer` is OpenAI's newer name of `system`."""
        role = "system" if self.role == "developer" else self.role
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": role, "content": text}


class StreamOptions(ApiModel):
    include_usage: bool | None = None


class SchemaFormat(ApiModel):
    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(ApiModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaFormat | None = None

    def as_schema(self) -> dict[str, Any] | None:
        """The JSON schema that an answer must follow, or None; `ApiError` 400 without one."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            param = "response_format.json_schema"
            raise ApiError(400, f"{param} is missing", param=param)
        check_schema(self.json_schema.schema_)
        return self.json_schema.schema_


class GenerationRequest(ApiModel):
    """What chats and raw completions share.

    The temperature is 0 by default, where OpenAI's is 1: a medical answer should be the same when
    it is asked for again.
    """

    model: ModelName | None = None
    max_tokens: Tokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, ge=0.01, le=10)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logit_bias: dict[TokenKey, Bias] | None = Field(default=None, max_length=1024)
    """Added to the logits as it is: -100 leaves a token without a chance but for a schema that
    allows no other."""
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, values in _SUPPORTED.items():
                given = data.get(name)
                if given is not None and given not in values:
                    raise unsupported(name)
        return data

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, json_schema: dict[str, Any] | None = None) -> Sampling:
        """`ApiError` or `EngineError` for a schema that cannot be a grammar."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "seed": None if self.seed is None else self.seed % SEEDS,
            "logit_bias": {int(id): bias for id, bias in (self.logit_bias or {}).items()},
            "json_schema": json_schema,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_than_text(cls, data: Any) -> Any:
        messages = data.get("messages") if isinstance(data, dict) else None
        for i, message in enumerate(messages if isinstance(messages, list) else ()):
            if not isinstance(message, dict):
                continue
            for name in ("tool_calls", "function_call", "audio"):
                if message.get(name):
                    raise unsupported(f"messages.{i}.{name}")
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and kind != "text":
                    raise unsupported(f"messages.{i}.content", f"a part of type {kind!r}")
        return data

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def tops(self) -> int | None:
        """How many likely tokens to report beside each; None for no report."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[Message]:
        """With the prompt that the model was trained under, unless it brings one."""
        given = [message.as_message() for message in self.messages]
        if given[0]["role"] == "system":
            return given
        return [{"role": "system", "content": SYSTEM_PROMPT}, *given]


class CompletionRequest(GenerationRequest):
    """A raw prompt: what looks like a special token in it is one, and no system prompt is added."""

    prompt: Text | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_CHARACTERS)]
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _unwrap_one_prompt(cls, data: Any) -> Any:
        prompt = data.get("prompt") if isinstance(data, dict) else None
        if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
            return data
        if len(prompt) > 1:
            raise unsupported("prompt", "more than one prompt")
        return {**data, "prompt": prompt[0]}


def unsupported(param: str, what: str | None = None) -> ApiError:
    return ApiError(
        400, f"{what or param} is not supported", code="unsupported_parameter", param=param
    )
