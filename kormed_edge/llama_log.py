"""llama.cpp's log, which tells what its return values do not."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def llama_log(on_line: Callable[[str], None]) -> Iterator[None]:
    """Send llama.cpp's log to `on_line` for a while; it is one setting of the whole process."""
    import llama_cpp

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    def forward(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        on_line(text.decode("utf-8", "replace"))

    # llama.cpp keeps only the address: this name is what keeps the function alive.
    callback = llama_cpp.llama_log_callback(forward)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)
