"""What a GGUF holds, for comparing two of them."""

from pathlib import Path
from typing import Any

import gguf


def keys(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: (field.types, field.contents()) for name, field in fields.items()}


def tensors(path: Path) -> dict[str, tuple[Any, list[int], bytes]]:
    return {
        t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes())
        for t in gguf.GGUFReader(path).tensors
    }
