"""What ggml, the library under llama.cpp, tells of a GGUF's header and of this machine's GPUs.

llama-cpp-python loads ggml but declares none of these functions.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kormed_edge.errors import EngineError
from kormed_edge.llama_log import llama_log

_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU: has memory of its own


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@dataclass(frozen=True)
class Gpu:
    name: str
    free: int
    """Bytes, as is `total`."""
    total: int


def gpus() -> list[Gpu]:
    """The GPUs that this build of llama.cpp can use."""
    ggml = _library()
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    return [_gpu(ggml, device) for device in devices if ggml.ggml_backend_dev_type(device) == _GPU]


def _gpu(ggml: Any, device: int) -> Gpu:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return Gpu(ggml.ggml_backend_dev_description(device).decode(), free.value, total.value)


class GgufHeader:
    """Keys of a GGUF, read without its tensors. Use as a context manager.

    Raises `EngineError` when the file is no whole GGUF.
    """

    def __init__(self, path: Path) -> None:
        self._ggml = _library()
        log: list[str] = []
        with llama_log(log.append):
            self._gguf = self._ggml.gguf_init_from_file(os.fsencode(path), _InitParams(True, None))
        if not self._gguf:
            raise EngineError(
                f"{path}: llama.cpp cannot load it: {last_line(log)}",
                "a complete GGUF of a supported architecture",
                "make export, or copy the file again",
            )

    def __enter__(self) -> "GgufHeader":
        return self

    def __exit__(self, *_: object) -> None:
        self._ggml.gguf_free(self._gguf)

    def text(self, key: str) -> str | None:
        at = self._find(key, _STRING)
        return None if at is None else self._ggml.gguf_get_val_str(self._gguf, at).decode()

    def number(self, key: str) -> int | None:
        # The type is checked first, because ggml ends the process when it is another.
        at = self._find(key, _UINT32, _INT32)
        return None if at is None else int(self._ggml.gguf_get_val_data(self._gguf, at)[0])

    def numbers(self, key: str) -> list[int] | None:
        """An array of 32-bit integers."""
        at = self._find(key, _ARRAY)
        if at is None or self._ggml.gguf_get_arr_type(self._gguf, at) not in (_UINT32, _INT32):
            return None
        data = self._ggml.gguf_get_arr_data(self._gguf, at)
        return [int(value) for value in data[: self._ggml.gguf_get_arr_n(self._gguf, at)]]

    def length(self, key: str) -> int | None:
        """How many elements an array has."""
        at = self._find(key, _ARRAY)
        return None if at is None else int(self._ggml.gguf_get_arr_n(self._gguf, at))

    def tensor_size(self, name: str) -> int:
        """Bytes; 0 for a tensor that is not there."""
        at = self._ggml.gguf_find_tensor(self._gguf, name.encode())
        return int(self._ggml.gguf_get_tensor_size(self._gguf, at)) if at >= 0 else 0

    @property
    def data_offset(self) -> int:
        """Where the tensors' bytes begin in the file."""
        return int(self._ggml.gguf_get_data_offset(self._gguf))

    def _find(self, key: str, *types: int) -> int | None:
        at: int = self._ggml.gguf_find_key(self._gguf, key.encode())
        return at if at >= 0 and self._ggml.gguf_get_kv_type(self._gguf, at) in types else None


def last_line(log: list[str]) -> str:
    """What llama.cpp said last, without the name of its function."""
    lines = "".join(log).strip().splitlines()
    return lines[-1].split(": ", 1)[-1].strip() if lines else "no reason given"


def _library() -> Any:
    import llama_cpp
    from llama_cpp._ggml import libggml

    llama_cpp.llama_backend_init()  # loads the backends of a build that keeps them apart
    pointer, text, index = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    numbers = ctypes.POINTER(ctypes.c_int32)
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, (text, _InitParams)),
        ("gguf_free", None, (pointer,)),
        ("gguf_find_key", index, (pointer, text)),
        ("gguf_get_kv_type", ctypes.c_int, (pointer, index)),
        ("gguf_get_arr_type", ctypes.c_int, (pointer, index)),
        ("gguf_get_arr_n", ctypes.c_size_t, (pointer, index)),
        ("gguf_get_arr_data", numbers, (pointer, index)),
        ("gguf_get_val_data", numbers, (pointer, index)),
        ("gguf_get_val_str", text, (pointer, index)),
        ("gguf_find_tensor", index, (pointer, text)),
        ("gguf_get_tensor_size", ctypes.c_size_t, (pointer, index)),
        ("gguf_get_data_offset", ctypes.c_size_t, (pointer,)),
        ("ggml_backend_dev_count", ctypes.c_size_t, ()),
        ("ggml_backend_dev_get", pointer, (ctypes.c_size_t,)),
        ("ggml_backend_dev_type", ctypes.c_int, (pointer,)),
        ("ggml_backend_dev_description", text, (pointer,)),
        ("ggml_backend_dev_memory", None, (pointer, pointer, pointer)),
    ):
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
    return libggml
