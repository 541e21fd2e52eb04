"""A Hugging Face model folder, read one tensor at a time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kormed_edge.errors import BaseModelError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorFile:
    """One safetensors file: names and shapes at once, a tensor's values when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            names: list[str] = file.keys()
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def tensor(self, name: str) -> "torch.Tensor":
        # The file is mapped, and what was read of a mapping stays resident while it lives: one
        # mapping a tensor keeps a 7B merge at the size of its largest tensor.
        with self._open() as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _open(self) -> Any:
        import safetensors

        open_file: Any = safetensors.safe_open
        try:
            return open_file(self._path, "pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise BaseModelError(
                f"{self._path}: {error}", "a whole safetensors file", "copy the file again"
            ) from error


class Checkpoint:
    """The weights and the configuration of a base model.

    `shapes` and `owners` give the shape and the file name of every tensor, file by file.
    Raises `BaseModelError` that names the file which is missing, damaged or incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _config(folder)
        named = _owners(folder)
        self._files = {name: TensorFile(folder / name) for name in sorted(set(named.values()))}
        for tensor, file in named.items():
            if tensor not in self._files[file].shapes:
                raise BaseModelError(
                    f"{folder / file}: no tensor {tensor}",
                    f"every tensor that {INDEX} names",
                    "download the base model again",
                )
        self.shapes = {
            name: shape for file in self._files.values() for name, shape in file.shapes.items()
        }
        self.owners = {name: key for key, file in self._files.items() for name in file.shapes}

    def tensor(self, name: str) -> "torch.Tensor":
        """The values of one tensor, in the type that the file holds."""
        return self._files[self.owners[name]].tensor(name)


def read_json(path: Path, purpose: str) -> dict[str, Any]:
    """A JSON object from a model folder; `purpose` says what the missing file would have been."""
    if not path.is_file():
        raise BaseModelError(
            f"{path.parent} has no {path.name}", purpose, "download the base model again"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise BaseModelError(f"{path}: not a JSON object", purpose)
    return content


def _config(folder: Path) -> dict[str, Any]:
    """The configuration with transformers' defaults filled in, as llama.cpp's converter sees it."""
    written = read_json(folder / "config.json", "a Hugging Face model configuration")
    if "quantization_config" in written:
        raise BaseModelError(
            f"{folder}: the weights are quantized",
            "a base model in 16 or 32 bits",
            "use the original model, not a 4-bit or 8-bit copy of it",
        )
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    return config


def _owners(folder: Path) -> dict[str, str]:
    """Tensor name to the file that holds it."""
    if (folder / INDEX).is_file():
        weight_map: dict[str, str] = read_json(folder / INDEX, "a shard index")["weight_map"]
        missing = sorted({f for f in weight_map.values() if not (folder / f).is_file()})
        if missing:
            raise BaseModelError(
                f"{folder} has no {', '.join(missing)}",
                f"every file that {INDEX} names",
                "download the base model again",
            )
        return weight_map
    if not (folder / SINGLE).is_file():
        raise BaseModelError(
            f"{folder} has neither {SINGLE} nor {INDEX}",
            "a Hugging Face model folder with safetensors weights",
            "give the folder of the base model, not of an adapter or a GGUF",
        )
    return dict.fromkeys(TensorFile(folder / SINGLE).shapes, SINGLE)
