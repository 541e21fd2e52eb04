"""The engine: one GGUF answered by llama.cpp, the same for `eval`, `ask` and the service."""

import asyncio
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum
from pathlib import Path
from types import TracebackType
from typing import Any

from kormed_edge.errors import EngineError, PromptTooLongError
from kormed_edge.generation import AsyncGeneration, Generation, Job
from kormed_edge.llama_context import LlamaContext
from kormed_edge.llama_model import LlamaModel
from kormed_edge.memory_plan import MemoryPlan, ModelShape, plan_memory
from kormed_edge.prompt_tokens import PromptTokens
from kormed_edge.prompts import Message
from kormed_edge.request import EngineStatus, Request, TokenLogprob
from kormed_edge.sampling import Sampler
from kormed_edge.scheduler import Scheduler

BATCH = 512
"""Tokens of one step at most."""
CHUNK = {"cpu": 128, "gpu": 512}
"""Prompt tokens of a step in which others speak: what they wait for."""


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    option_probabilities: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens generated, when the request asks for them."""


class Engine:
    """One model that answers up to `slots` requests at once; others wait in the order they came.

    Prompts that begin alike share what was computed for the beginning. LoRA adapters lie beside
    the model, and each request names one or none. Any thread may ask. A context manager; dropped,
    it closes itself.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int = 4096,
        slots: int = 1,
        threads: int | None = None,
        gpu_layers: int | None = None,
        adapters: Mapping[str, Path] = {},
        reuse: bool = True,
        prefix: Sequence[Message] = (),
        prefix_adapter: str | None = None,
        queue: int | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        """Load a GGUF, and LoRA GGUFs by the name that requests give them.

        `context` is in tokens for each slot, `threads` None takes all cores, `gpu_layers` None as
        many as fit. `prefix` are the messages with which prompts begin as a rule: computed once and
        kept, for requests with `prefix_adapter`, by default those without an adapter. `reuse` False
        takes nothing else from one prompt to another, and reads prompts without regard to who waits
        for the next token: what `answer_all` gives is then the same to the last bit whatever was
        asked before. `queue` is how many requests may wait for a slot, None any number. `on_end` is
        called by the engine's thread with every request that has ended, and must not fail. Raises
        `EngineError` when llama.cpp cannot load a file or memory does not suffice. Files are not
        verified here: `verify_model` does that for models and adapters alike.
        """
        for path in (model, *adapters.values()):
            if not path.is_file():
                raise EngineError(f"{path} does not exist", "a GGUF file", "make export")
        _require_loaded(prefix_adapter, adapters)
        if slots < 1 or context < 1:
            raise EngineError(f"{slots} slots of {context} tokens", "at least one", "raise them")
        self.context = context
        self.memory: MemoryPlan = plan_memory(
            ModelShape.read(model),
            context=context,
            slots=slots,
            batch=BATCH,
            shared=sum(_most_tokens(message) for message in prefix),
            adapters=sum(path.stat().st_size for path in adapters.values()),
            gpu_layers=gpu_layers,
        )
        self._model = LlamaModel(model, adapters, gpu_layers=self.memory.gpu_layers)
        self._tokens = PromptTokens(self._model)
        self._scheduler = self._make_scheduler(
            threads, slots=slots, reuse=reuse, queue=queue, on_end=on_end,
            prefix=tuple(self._tokens.of_turns(prefix)), prefix_adapter=prefix_adapter,
        )  # fmt: skip
        self._scheduler.start()
        # Also at the interpreter's end, when a thread inside llama.cpp would bring it down.
        self._close = weakref.finalize(self, Scheduler.close, self._scheduler)

    def _make_scheduler(
        self, threads: int | None, *, slots: int, prefix: tuple[int, ...], **settings: Any
    ) -> Scheduler:
        cores = threads or len(os.sched_getaffinity(0))
        try:
            context = LlamaContext(
                self._model,
                cells=self.context * slots + len(prefix),
                sequences=slots + bool(prefix),
                batch=BATCH,
                threads=cores,
            )
        except EngineError:
            self._model.close()
            raise
        chunk = CHUNK["gpu" if self.memory.gpu_layers or not settings["reuse"] else "cpu"]
        return Scheduler(
            self._model, context, slots=slots, room=self.context, batch=BATCH, chunk=chunk,
            prefix=prefix, **settings,
        )  # fmt: skip

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Stop after the step under way, end requests with an error, and free the memory."""
        self._close()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that a request may give as its adapter."""
        return tuple(self._model.adapters)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt; `EngineError` when they leave no room for an answer."""
        ids = self._tokens.of_text(prompt)
        self._require_room(len(ids))
        return ids

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation and the start of its answer; `EngineError` as in `encode`.

        What a message contains is text and nothing else, as `PromptTokens` says.
        """
        ids = self._tokens.of_messages(messages)
        self._require_room(len(ids))
        return ids

    def _require_room(self, tokens: int) -> None:
        if tokens >= self.context:
            raise PromptTooLongError(
                f"the prompt has {tokens} tokens",
                f"fewer than the context of {self.context}",
                "shorten the question, or serve with a larger --context",
            )

    def submit(self, request: Request) -> Generation:
        """Put a request in the queue. Iterate over what this gives for the pieces of the answer.

        The answer ends at `max_tokens`, and where the context ends. An adapter, grammar or bias
        that is not valid raises `EngineError` here, before the first piece is asked for; so does
        a full queue, `EngineBusyError`.
        """
        job = self._make_job(request)
        generation = Generation(job, self)
        self._scheduler.submit(job)
        return generation

    def submit_async(self, request: Request, loop: asyncio.AbstractEventLoop) -> AsyncGeneration:
        """As `submit`, for a coroutine of `loop` to iterate over. Any thread may call it."""
        job = self._make_job(request)
        generation = AsyncGeneration(job, self, loop)
        self._scheduler.submit(job)
        return generation

    def _make_job(self, request: Request) -> Job:
        _require_loaded(request.adapter, self.adapters)
        self._require_room(len(request.ids))
        self._require_known(request.ids)
        return Job(request, Sampler(request.sampling, self._model))

    @property
    def is_open(self) -> bool:
        """False once the engine was closed, or has failed."""
        return self._scheduler.is_open

    def status(self) -> EngineStatus:
        """How many slots answer, how many requests wait, and how full the cache is."""
        return self._scheduler.status()

    def _require_known(self, ids: Sequence[int]) -> None:
        if min(ids) < 0 or max(ids) >= self._model.vocabulary:
            raise EngineError(
                f"the prompt has token {max(ids) if min(ids) >= 0 else min(ids)}",
                f"ids below {self._model.vocabulary}",
                "encode the prompt with this engine",
            )

    def stream(
        self, ids: Sequence[int], *, max_tokens: int, adapter: str | None = None
    ) -> Generation:
        """Generate greedily after a prompt's token ids, piece by piece; no syllable is split.

        `adapter` is the name of one of the engine's, or None for the model as it is.
        """
        return self.submit(Request(tuple(ids), max_tokens, adapter=adapter))

    def answer(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        adapter: str | None = None,
        options: Sequence[str] = (),
        stop: Sequence[str] = (),
    ) -> Answer:
        """As `stream`, when the whole answer is there; any string of `stop` ends it.

        `options` are texts such as "1" to "5" of which the answer begins with one; how likely each
        was comes with it, from the same reading of the prompt. Raises `EngineError` for options
        that begin with the same token.
        """
        tokens = self.option_tokens(options) if options else ()
        request = Request(tuple(ids), max_tokens, stop=tuple(stop), adapter=adapter, options=tokens)
        return self.answer_all([request])[0]

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests that enter together, in their order.

        While nothing else is asked, which tokens llama.cpp computes together depends on them alone.
        """
        jobs = [self._make_job(request) for request in requests]
        generations = [Generation(job, self) for job in jobs]
        self._scheduler.submit(*jobs)
        return [_whole(generation) for generation in generations]

    def option_probabilities(
        self,
        ids: Sequence[int],
        options: Sequence[str] = ("1", "2", "3", "4", "5"),
        adapter: str | None = None,
    ) -> tuple[float, ...]:
        """How likely each option is to be what follows a prompt, among the options: sums to 1.

        Nothing is generated. Options are told apart by their first tokens; `EngineError` when two
        begin with the same one.
        """
        tokens = self.option_tokens(options)
        generation = self.submit(Request(tuple(ids), 0, adapter=adapter, options=tokens))
        list(generation)
        return among_each_other(generation.options)

    def pieces(self) -> Iterator[bytes]:
        """What each token of the vocabulary writes, by id; nothing for a special one."""
        return map(self._model.bytes_of, range(self._model.vocabulary))

    def option_tokens(self, options: Sequence[str]) -> tuple[int, ...]:
        """First tokens of options, for `Request.options`; `EngineError` when two are the same."""
        firsts = tuple(self._model.tokenize(option, special=False)[:1] for option in options)
        tokens = tuple(first[0] for first in firsts if first)
        if not options or len(set(tokens)) < len(options):
            raise EngineError(
                f"the options {', '.join(map(repr, options))} do not differ in their first tokens",
                "options that begin with different tokens",
                "score them by generating, or number them",
            )
        return tokens


def _require_loaded(adapter: str | None, known: Collection[str]) -> None:
    if adapter is not None and adapter not in known:
        raise EngineError(
            f"adapter {adapter!r} is not loaded",
            f"one of {', '.join(known)}" if known else "no adapter",
            "name a loaded adapter, or none",
        )


def _most_tokens(message: Message) -> int:
    """How many tokens a message can have at most: a byte each, and those of its turn."""
    return len(message["role"].encode()) + len(message["content"].encode()) + 4


def _whole(generation: Generation) -> Answer:
    pieces = list(generation)
    return Answer(
        "".join(piece.text for piece in pieces),
        pieces[-1].finish_reason or "stop",
        generation.prompt_tokens,
        generation.completion_tokens,
        among_each_other(generation.options),
        tuple(entry for piece in pieces for entry in piece.logprobs),
    )


def among_each_other(options: Sequence[TokenLogprob]) -> tuple[float, ...]:
    """Probabilities of tokens among each other: they sum to 1."""
    best = max((option.logprob for option in options), default=0.0)
    weights = [exp(option.logprob - best) for option in options]
    return tuple(weight / fsum(weights) for weight in weights)
