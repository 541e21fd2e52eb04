"""The importance matrix: which columns of each weight matrix its inputs make matter.

For each matrix the sum over tokens of the squared input, column by column; llama.cpp's quantizer
rounds so that the error is small where that sum is large. Sums are taken from the Hugging Face
model, so the tokens are those of training. llama.cpp orders the rows of a llama q or k
projection in its own way, which leaves the columns where they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from export.architectures import Architecture
from kormed_edge.errors import ExportError

if TYPE_CHECKING:
    import torch

FILE = "imatrix.gguf"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_PREFIX = "base_model.model."  # what PEFT puts before the name of every module
_NORM = "model.norm"

Columns = npt.NDArray[np.float32]
OnText = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """`sums`: squared inputs by GGUF tensor name, one value a column, over `tokens` tokens.

    `chunk_size` is the length, in tokens, at which texts were cut.
    """

    sums: dict[str, Columns]
    tokens: int
    datasets: tuple[str, ...]
    chunk_size: int

    @property
    def chunks(self) -> int:
        """How many chunks of `chunk_size` the tokens fill, the last one perhaps in part."""
        return -(-self.tokens // self.chunk_size)

    def means(self) -> dict[str, Columns]:
        """Mean squared input of every column, which is what the quantizer takes."""
        return {name: sums / np.float32(self.tokens) for name, sums in self.sums.items()}


def collect(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    architecture: Architecture,
    *,
    datasets: tuple[str, ...] = (),
    max_length: int = 512,
    on_text: OnText | None = None,
) -> ImportanceMatrix:
    """Run `texts` through a model, one at a time, each cut at `max_length` tokens.

    `model` is a Hugging Face model in any precision, or a PEFT model around one; the inputs are
    then those that the merged weights will see. `datasets` are names for the record only.
    Raises `ExportError` for no text, an empty text, a model of another shape, and inputs that
    are not finite.
    """
    import torch

    if not texts:
        raise ExportError("no texts for the importance matrix", "some records of the train split")
    sums, tokens = _Sums(), 0
    with _hooked(model, architecture, sums), _evaluating(model), torch.inference_mode():
        for done, text in enumerate(texts, 1):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]
            if not ids:
                raise ExportError(f"text {done} for the importance matrix is empty", "some text")
            model(
                input_ids=torch.tensor([ids], device=model.device),
                use_cache=False,
                logits_to_keep=1,
            )
            tokens += len(ids)
            if on_text:
                on_text(done, len(texts))
    return ImportanceMatrix(sums.finish(), tokens, datasets, max_length)


@dataclass(slots=True)
class _Sums:
    """Float64 sums on the model's device, so that a long run loses nothing and copies once."""

    by_name: dict[str, "torch.Tensor"] = field(default_factory=dict)

    def add(self, name: str, inputs: "torch.Tensor") -> None:
        squared = inputs.flatten(0, -2).float().square().sum(0).double()
        self.by_name[name] = self.by_name[name] + squared if name in self.by_name else squared

    def finish(self) -> dict[str, Columns]:
        sums = {name: self.by_name[name].cpu().numpy() for name in sorted(self.by_name)}
        if broken := [name for name, values in sums.items() if not np.isfinite(values).all()]:
            raise ExportError(
                f"inputs of {len(broken)} matrices are not finite: {', '.join(broken[:4])}",
                "finite activations",
                "look at the adapter's loss, or run the model in bfloat16 instead of float16",
            )
        return {name: values.astype(np.float32) for name, values in sums.items()}


@contextmanager
def _hooked(model: Any, architecture: Architecture, sums: _Sums) -> Iterator[None]:
    modules = {name.removeprefix(_PREFIX): module for name, module in model.named_modules()}
    wanted = _projections(architecture)
    if missing := [name for name in [*wanted, _NORM] if name not in modules]:
        raise ExportError(f"the model has no {', '.join(missing[:4])}", f"a {architecture.name}")
    # PEFT's wrapper, not the matrix inside it, has the name: its input is the merged weight's.
    handles = [
        modules[name].register_forward_pre_hook(_on_input(sums, stored))
        for name, stored in wanted.items()
    ]
    # The head's input is taken where it is made, so that no logits need be computed.
    handles.append(modules[_NORM].register_forward_hook(_on_output(sums, _head(architecture))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(sums: _Sums, name: str) -> Callable[[Any, tuple["torch.Tensor", ...]], None]:
    return lambda _module, inputs: sums.add(name, inputs[0])


def _on_output(sums: _Sums, name: str) -> Callable[[Any, Any, "torch.Tensor"], None]:
    return lambda _module, _inputs, output: sums.add(name, output)


def _projections(architecture: Architecture) -> dict[str, str]:
    """GGUF tensor name by module name of every matrix in the blocks."""
    table = gguf.get_tensor_name_map(architecture.arch, architecture.config["num_hidden_layers"])
    weights = sorted(name for name in architecture.required() if name.endswith("_proj.weight"))
    return {
        name.removesuffix(".weight"): str(table.get_name(name, try_suffixes=(".weight",)))
        for name in weights
    }


def _head(architecture: Architecture) -> str:
    """GGUF name of the matrix that makes the logits.

    llama-imatrix leaves the head out unless told otherwise, and a tied one always, though
    llama.cpp's quantizer uses either entry. It pays even where the embedding looks words up in
    the same matrix: on SmolLM2-135M (tied), head in Q6_K and the rest unquantized, the mean KLD
    over 770 positions was 0.0015 with the entry and 0.0026 without.
    """
    return "token_embd.weight" if architecture.tied else "output.weight"


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, which would change the inputs; then as the model was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def write_imatrix(matrix: ImportanceMatrix, path: Path) -> None:
    """Write llama.cpp's own format, which llama-quantize and llama-imatrix read.

    Source: `IMatrixCollector::save_imatrix` in llama.cpp's tools/imatrix/imatrix.cpp. A failed
    run leaves no file.
    """
    writer = gguf.GGUFWriter(None, "")  # no architecture: this is no model
    writer.add_type(gguf.GGUFType.IMATRIX)
    # gguf leaves an empty list out, and llama-quantize refuses a file without this key.
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(matrix.datasets) or [""])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, matrix.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, matrix.chunk_size)
    for name, sums in sorted(matrix.sums.items()):
        writer.add_tensor(name + _SUMS, sums)
        writer.add_tensor(name + _COUNTS, np.array([matrix.tokens], np.float32))
    temporary = path.with_name(path.name + ".tmp")
    try:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix of a dense model back; raises `ExportError` for anything else."""
    try:
        return _read(gguf.GGUFReader(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ExportError(
            f"{path} is no importance matrix: {error}",
            f"the {FILE} of an export",
            "make it again with `kormed export`",
        ) from error


def _read(reader: gguf.GGUFReader) -> ImportanceMatrix:
    keys = {name: field.contents() for name, field in reader.fields.items()}
    if keys.get(gguf.Keys.General.TYPE) != gguf.GGUFType.IMATRIX:
        raise ValueError(f"general.type is {keys.get(gguf.Keys.General.TYPE)}")
    stored = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    names = [name.removesuffix(_SUMS) for name in stored if name.endswith(_SUMS)]
    counts = {float(count) for name in names for count in stored[name + _COUNTS]}
    if len(counts) != 1:
        raise ValueError(f"{len(names)} matrices with {len(counts)} numbers of tokens")
    return ImportanceMatrix(
        {name: stored[name + _SUMS] for name in names},
        int(counts.pop()),
        tuple(filter(None, keys[gguf.Keys.IMatrix.DATASETS])),
        int(keys[gguf.Keys.IMatrix.CHUNK_SIZE]),
    )
