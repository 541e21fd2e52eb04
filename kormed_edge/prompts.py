"""The one place where a prompt is made: system prompt, messages, ChatML text.

The text is rendered here, never by the template inside a model file, which is a program that a
loader would execute (CVE-2024-34359).
"""

from collections.abc import Sequence
from typing import TypedDict
from unicodedata import normalize

from kormed_edge.records import Record

SYSTEM_PROMPT = (
    "당신은 한국의 필수의료 분야에 특화된 의학 전문 AI 어시스턴트입니다. "
    "임상 근거에 기반하여 정확하고 신뢰할 수 있는 의학 지식을 제공합니다."
)
NOTICE = (
    "의료진의 판단을 돕는 참고 자료이며, 단독 진단이나 처방에 사용할 수 없습니다. "
    "An aid under a clinician's oversight, not for independent diagnosis or prescription."
)
START = "<|im_start|>"
END = "<|im_end|>"


class Message(TypedDict):
    role: str
    content: str


SYSTEM_MESSAGE: Message = {"role": "system", "content": SYSTEM_PROMPT}


def question_messages(question: str) -> list[Message]:
    return [SYSTEM_MESSAGE, {"role": "user", "content": question}]


def record_messages(record: Record) -> list[Message]:
    return [*question_messages(record.question), {"role": "assistant", "content": record.answer}]


def render_chatml(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """ChatML text of a conversation, equal to what the template of Qwen2.5 and SmolLM2 gives.

    Contents become NFC, which Hugging Face's Qwen tokenizer would do and llama.cpp would not: a
    question typed with decomposed Hangul must give both the same tokens.
    Source: `chat_template` in Qwen2.5-7B-Instruct's tokenizer_config.json, without tools.
    """
    turns = [f"{START}{m['role']}\n{normalize('NFC', m['content'])}{END}\n" for m in messages]
    return "".join(turns) + (f"{START}assistant\n" if add_generation_prompt else "")


def question_prompt(question: str) -> str:
    """The text from which a model goes on with its answer."""
    return render_chatml(question_messages(question), add_generation_prompt=True)
