"""A merged model as a Hugging Face folder, written a tensor at a time.

safetensors' own writer wants a whole shard in memory; the format is a length, a JSON header and
the values in order, and the header follows from the shapes alone.
"""

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from export.checkpoint import INDEX, Checkpoint

if TYPE_CHECKING:
    import torch

_BF16 = 2  # bytes
_ALIGNMENT = 8


class HfFolder:
    """Writes the base's shards anew in bf16, and its other files byte for byte.

    Tensors come in the checkpoint's order. The folder stands under a temporary name until all of
    them are written, and is removed if they are not.
    """

    def __init__(self, checkpoint: Checkpoint, names: list[str], target: Path) -> None:
        self._target = target
        self._partial = target.with_name(target.name + ".tmp")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        _copy_others(checkpoint.folder, self._partial)
        _write_index(checkpoint, names, self._partial)
        self._owners = {name: checkpoint.owners[name] for name in names}
        self._shapes = checkpoint.shapes
        self._shard = ""
        self._file: BinaryIO | None = None
        self._left = list(names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_shard()
        if kind is None and not self._left:
            shutil.rmtree(self._target, ignore_errors=True)
            self._partial.rename(self._target)
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, name: str, value: "torch.Tensor") -> None:
        import torch

        if name != self._left[0]:
            raise ValueError(f"tensor {name} where {self._left[0]} was due")
        if self._owners[name] != self._shard:
            self._open_shard(self._owners[name])
        half = value.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
        if self._file:
            half.tofile(self._file)
        del self._left[0]

    def _open_shard(self, shard: str) -> None:
        self._close_shard()
        inside = [name for name in self._left if self._owners[name] == shard]
        self._file = (self._partial / shard).open("wb")
        self._file.write(_header({name: self._shapes[name] for name in inside}))
        self._shard = shard

    def _close_shard(self) -> None:
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Source: the safetensors README, "Format"."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _bytes(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(shape: tuple[int, ...]) -> int:
    count = _BF16
    for length in shape:
        count *= length
    return count


def _copy_others(base: Path, folder: Path) -> None:
    """Configuration, tokenizer, licence: everything but weights, in whatever format."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix not in weights and path.name != INDEX:
            shutil.copyfile(path, folder / path.name)


def _write_index(checkpoint: Checkpoint, names: list[str], folder: Path) -> None:
    if len(set(checkpoint.owners.values())) == 1:
        return
    index = {
        "metadata": {"total_size": sum(_bytes(checkpoint.shapes[name]) for name in names)},
        "weight_map": {name: checkpoint.owners[name] for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
