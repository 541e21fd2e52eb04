"""A model that llama.cpp has loaded: its weights, its adapters and its tokens."""

import ctypes
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kormed_edge.errors import EngineClosedError, EngineError
from kormed_edge.ggml import last_line
from kormed_edge.llama_log import llama_log


class LlamaModel:
    """A GGUF, and LoRA GGUFs by name. Any thread may use it; `close` frees it."""

    def __init__(
        self,
        path: Path,
        adapters: Mapping[str, Path],
        *,
        gpu_layers: int = 0,
        vocab_only: bool = False,
    ) -> None:
        """Raises `EngineError` when llama.cpp cannot load one of the files.

        `vocab_only` loads the tokenizer and no weights.
        """
        import llama_cpp

        # At its first import llama-cpp-python prints all that llama.cpp says.
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama_cpp.llama_backend_init()
        self.path = path
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}
        self.pointer: Any = self._load(gpu_layers, vocab_only)
        self.vocab: Any = llama_cpp.llama_model_get_vocab(self.pointer)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.adapters = {name: self._load_adapter(file) for name, file in adapters.items()}

    def _load(self, gpu_layers: int, vocab_only: bool) -> Any:
        import llama_cpp

        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.vocab_only = vocab_only
        log: list[str] = []
        with llama_log(log.append):
            model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not model:
            raise EngineError(
                f"{self.path}: llama.cpp cannot load it: {last_line(log)}",
                "a complete GGUF of a supported architecture",
                "make export, or copy the file again",
            )
        return model

    def _load_adapter(self, path: Path) -> Any:
        """llama.cpp's pointer to an adapter, which it frees with the model."""
        import llama_cpp

        log: list[str] = []
        with llama_log(log.append):
            loaded = llama_cpp.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not loaded:  # a null pointer, never None, whatever the signature says
            reason = log[-1].split("lora adapter: ")[-1].strip()
            self.close()
            raise EngineError(
                f"{path}: llama.cpp cannot load it beside {self.path}: {reason}",
                "a whole LoRA GGUF that was trained on this model's base",
                "make export, or copy the adapter that belongs to this model",
            )
        return loaded

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids, none added; with `special`, the text of a special token becomes that token."""
        import llama_cpp

        data = text.encode()
        # A token is one byte at least.
        ids = (llama_cpp.llama_token * (len(data) + 1))()
        with self._lock:
            self._require_open()
            count = llama_cpp.llama_tokenize(
                self.vocab, data, len(data), ids, len(ids), False, special
            )
        return ids[: max(count, 0)]

    def bytes_of(self, token: int) -> bytes:
        """What a token writes; nothing for a special one."""
        import llama_cpp

        if token not in self._bytes:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                with self._lock:
                    self._require_open()
                    written = llama_cpp.llama_token_to_piece(
                        self.vocab, token, buffer, size, 0, False
                    )
                if written >= 0:
                    break
                size = -written
            self._bytes[token] = buffer.raw[:written]
        return self._bytes[token]

    def ends(self, token: int) -> bool:
        """Whether a token ends the answer."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        import llama_cpp

        with self._lock:
            if self.pointer:
                llama_cpp.llama_model_free(self.pointer)
            self.pointer = None

    def _require_open(self) -> None:
        if not self.pointer:
            raise EngineClosedError
