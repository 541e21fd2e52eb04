"""Prompts as token ids, by the tokenizer that a GGUF carries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

from kormed_edge.llama_model import LlamaModel
from kormed_edge.prompts import END, START, Message


class PromptTokens:
    """Encodes what a model is asked; no token is added to it.

    ChatML carries its own start token. What a message contains is text and nothing else: a special
    token that a user types does not become one.
    """

    def __init__(self, model: LlamaModel) -> None:
        self._model = model

    def of_text(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt, in which special tokens are what they look like."""
        return self._model.tokenize(prompt, special=True)

    def of_turns(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of messages, each a whole turn."""
        start, end, line = (self.of_text(text) for text in (START, END, "\n"))
        ids: list[int] = []
        for message in messages:
            # Not cut after the role: a line break and what follows it can be one token.
            text = f"{message['role']}\n{normalize('NFC', message['content'])}"
            ids += [*start, *self._model.tokenize(text, special=False), *end, *line]
        return ids

    def of_messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation and the start of its answer, those of `render_chatml`."""
        opening = self._model.tokenize("assistant\n", special=False)
        return [*self.of_turns(messages), *self.of_text(START), *opening]


@contextmanager
def open_tokens(path: Path) -> Iterator[PromptTokens]:
    """The tokenizer of a GGUF without its weights. Raises `EngineError` for a file without one."""
    model = LlamaModel(path, {}, vocab_only=True)
    try:
        yield PromptTokens(model)
    finally:
        model.close()
