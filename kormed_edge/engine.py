"""The engine: one GGUF answered by llama.cpp, the same for `eval`, `ask` and the service."""

import codecs
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kormed_edge.errors import EngineError
from kormed_edge.llama_log import llama_log
from kormed_edge.manifest import MANIFEST, read_manifest, sha256_file


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it streams; the last one carries the finish reason."""

    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Engine:
    """One model, one request at a time; the longest common prefix of two prompts is kept.

    LoRA adapters lie beside the model, and each request names one or none.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int = 4096,
        threads: int | None = None,
        adapters: Mapping[str, Path] = {},
    ) -> None:
        """Load a GGUF, and LoRA GGUFs by the name that requests give them.

        `context` is in tokens. Raises `EngineError` when llama.cpp cannot. Files are not verified
        here: `verify_model` does that for models and adapters alike.
        """
        import llama_cpp

        for path in (model, *adapters.values()):
            if not path.is_file():
                raise EngineError(f"{path} does not exist", "a GGUF file", "make export")
        cores = threads or len(os.sched_getaffinity(0))
        try:
            self._llama = llama_cpp.Llama(
                str(model),
                n_ctx=context,
                n_threads=cores,
                n_threads_batch=cores,
                n_gpu_layers=-1,
                chat_format="chatml",  # the file's own template is a program; it is never run
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise EngineError(
                f"{model}: llama.cpp cannot load it: {error}",
                "a complete GGUF of a supported architecture",
                "make export, or copy the file again",
            ) from None
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.context = context
        self._adapters = {name: self._load_adapter(path) for name, path in adapters.items()}
        self._adapter: str | None = None
        self._lock = threading.Lock()

    def _load_adapter(self, path: Path) -> Any:
        """llama.cpp's pointer to an adapter, which it frees with the model."""
        import llama_cpp

        log: list[str] = []
        with llama_log(log.append):
            loaded = llama_cpp.llama_adapter_lora_init(self._llama.model, os.fsencode(path))
        if not loaded:  # a null pointer, never None, whatever the signature says
            reason = log[-1].split("lora adapter: ")[-1].strip()
            beside = self._llama.model_path
            self._llama.close()
            raise EngineError(
                f"{path}: llama.cpp cannot load it beside {beside}: {reason}",
                "a whole LoRA GGUF that was trained on this model's base",
                "make export, or copy the adapter that belongs to this model",
            )
        return loaded

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that a request may give as its adapter."""
        return tuple(self._adapters)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt; `EngineError` when they leave no room for an answer.

        ChatML carries its own start token, so none is added.
        """
        ids = self._llama.tokenize(prompt.encode(), add_bos=False, special=True)
        if len(ids) >= self.context:
            raise EngineError(
                f"the prompt has {len(ids)} tokens",
                f"fewer than the context of {self.context}",
                "shorten the question, or serve with a larger --context",
            )
        return ids

    def stream(
        self, ids: list[int], *, max_tokens: int, adapter: str | None = None
    ) -> Iterator[Piece]:
        """Generate greedily after a prompt's token ids, piece by piece; no syllable is split.

        `adapter` is the name of one of the engine's, or None for the model as it is. An unknown
        name raises `EngineError` here, before the first piece is asked for.
        """
        if adapter is not None and adapter not in self._adapters:
            raise EngineError(
                f"adapter {adapter!r} is not loaded",
                f"one of {', '.join(self._adapters)}" if self._adapters else "no adapter",
                "name a loaded adapter, or none",
            )
        return self._pieces(ids, max_tokens, adapter)

    def _pieces(self, ids: list[int], max_tokens: int, adapter: str | None) -> Iterator[Piece]:
        # Decoded here: `Llama.create_completion` loses the bytes of a Hangul syllable that it
        # still held back when the end token comes.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        room = min(max_tokens, self.context - len(ids))
        with self._lock:
            self._apply(adapter)
            tokens = self._llama.generate(ids, temp=0.0)
            for _ in range(room):
                token = next(tokens)
                if self._ends(token):
                    yield Piece(decoder.decode(b"", final=True), "stop")
                    return
                if text := decoder.decode(self._llama.detokenize([token])):
                    yield Piece(text)
            yield Piece(decoder.decode(b"", final=True), "length")

    def _apply(self, adapter: str | None) -> None:
        """Make `adapter` the one that the next token is computed with, at its full scale."""
        import llama_cpp

        if adapter == self._adapter:
            return
        # The keys and values kept from the last prompt were computed with other weights.
        self._llama.reset()
        chosen = [] if adapter is None else [self._adapters[adapter]]
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        if llama_cpp.llama_set_adapters_lora(self._llama.ctx, pointers, len(chosen), scales):
            raise EngineError(f"llama.cpp cannot switch to adapter {adapter!r}")
        self._adapter = adapter

    def _ends(self, token: int) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def answer(self, prompt: str, *, max_tokens: int, adapter: str | None = None) -> Answer:
        ids = self.encode(prompt)
        pieces = list(self.stream(ids, max_tokens=max_tokens, adapter=adapter))
        text = "".join(piece.text for piece in pieces)
        written = self._llama.tokenize(text.encode(), add_bos=False, special=False)
        reason = pieces[-1].finish_reason or "stop"
        return Answer(text, reason, len(ids), len(written))


def verify_model(model: Path, *, allow_unverified: bool = False) -> str:
    """SHA-256 of a GGUF, checked against the manifest beside it before anything is loaded.

    An adapter's GGUF is verified in the same way as a model's.

    Raises `EngineError` when the hash differs, or when there is no manifest that names the file
    and `allow_unverified` is not set.
    """
    if not model.is_file():
        raise EngineError(f"{model} does not exist", "a GGUF file", "make export")
    digest = sha256_file(model)
    expected = None
    if (model.parent / MANIFEST).is_file():
        entry = read_manifest(model.parent).files.get(model.name)
        expected = entry.sha256 if entry else None
    if expected is None and not allow_unverified:
        raise EngineError(
            f"{model} is not named in a {MANIFEST} beside it",
            "a model with its manifest, as `kormed export` writes them",
            "copy the manifest too, or give --allow-unverified",
        )
    if expected not in (None, digest):
        raise EngineError(
            f"{model} has SHA-256 {digest}",
            f"{expected}, as its manifest says",
            "copy the model again; do not use this file",
        )
    return digest
