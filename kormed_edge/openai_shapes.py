"""Answers in the shapes of OpenAI's API: whole ones, and the chunks of a stream."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from kormed_edge.generation import AsyncGeneration
from kormed_edge.request import Piece, TokenLogprob

Json = dict[str, Any]


class Shape(Protocol):
    """How an answer is told to a client."""

    def whole(self, piece: Piece, usage: Json) -> Json: ...

    def opening(self) -> Iterator[Json]: ...

    def chunks(self, piece: Piece) -> Iterator[Json]: ...

    def closing(self, usage: Json) -> Iterator[Json]: ...


def usage_of(generation: AsyncGeneration) -> Json:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


class _Shape:
    prefix: str
    streamed: str
    """Value of "object" in a chunk."""

    def __init__(
        self, model: str, fingerprint: str, *, with_usage: bool, with_logprobs: bool
    ) -> None:
        """`with_usage` asks for a last chunk that tells it."""
        self._with_usage, self._with_logprobs = with_usage, with_logprobs
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def _chunk(self, *choices: Json) -> Json:
        chunk = {**self._head, "object": self.streamed, "choices": list(choices)}
        return chunk | ({"usage": None} if self._with_usage else {})

    def closing(self, usage: Json) -> Iterator[Json]:
        if self._with_usage:
            yield self._chunk() | {"usage": usage}


class ChatShape(_Shape):
    prefix, streamed = "chatcmpl", "chat.completion.chunk"

    def whole(self, piece: Piece, usage: Json) -> Json:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        choice = {"index": 0, "message": message, **self._ending(piece)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def _ending(self, piece: Piece) -> Json:
        logprobs = None
        if self._with_logprobs:
            content = [_chat_entry(entry) for entry in piece.logprobs]
            logprobs = {"content": content, "refusal": None}
        return {"logprobs": logprobs, "finish_reason": piece.finish_reason}

    def opening(self) -> Iterator[Json]:
        yield self._delta(Piece(""), {"role": "assistant", "content": ""})

    def chunks(self, piece: Piece) -> Iterator[Json]:
        """What is said and that it has ended are told in chunks of their own."""
        if piece.text or piece.logprobs:
            yield self._delta(Piece(piece.text, None, piece.logprobs), {"content": piece.text})
        if piece.finish_reason:
            yield self._delta(Piece("", piece.finish_reason), {})

    def _delta(self, piece: Piece, delta: Json) -> Json:
        ending = self._ending(piece) if piece.logprobs else {"finish_reason": piece.finish_reason}
        return self._chunk({"index": 0, "delta": delta, "logprobs": None, **ending})


class CompletionShape(_Shape):
    prefix, streamed = "cmpl", "text_completion"

    def __init__(
        self, model: str, fingerprint: str, *, with_usage: bool, with_logprobs: bool
    ) -> None:
        super().__init__(model, fingerprint, with_usage=with_usage, with_logprobs=with_logprobs)
        self._said = b""

    def whole(self, piece: Piece, usage: Json) -> Json:
        [chunk] = self.chunks(piece)
        return {**chunk, "usage": usage}

    def opening(self) -> Iterator[Json]:
        return iter(())

    def chunks(self, piece: Piece) -> Iterator[Json]:
        logprobs = self._logprobs(piece.logprobs) if self._with_logprobs else None
        choice = {"index": 0, "text": piece.text, "logprobs": logprobs}
        yield self._chunk({**choice, "finish_reason": piece.finish_reason})

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> Json:
        """OpenAI's older shape: columns, where a token's place is its first whole character's."""
        offsets = []
        for entry in entries:
            offsets.append(len(self._said.decode(errors="ignore")))
            self._said += entry.piece
        tops = [{_legacy(top.piece): top.logprob for top in entry.top} for entry in entries]
        return {
            "tokens": [_legacy(entry.piece) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": offsets,
        }


def _chat_entry(entry: TokenLogprob) -> Json:
    return {**_token(entry), "top_logprobs": [_token(top) for top in entry.top]}


def _token(entry: TokenLogprob) -> Json:
    """A part of a syllable shows as U+FFFD; its bytes are right."""
    text = entry.piece.decode(errors="replace")
    return {"token": text, "logprob": entry.logprob, "bytes": list(entry.piece)}


def _legacy(piece: bytes) -> str:
    """As OpenAI names a part of a character here, so that two of them stay two keys."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
