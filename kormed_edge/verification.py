"""Is a GGUF the one that its manifest means? Asked before llama.cpp opens it."""

from pathlib import Path

from kormed_edge.errors import EngineError
from kormed_edge.manifest import MANIFEST, read_manifest, sha256_file


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
