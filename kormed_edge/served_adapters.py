"""The adapters of `kormed serve`: their files, names and calibrations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kormed_edge.calibration import BUNDLED, Calibration, find_calibration
from kormed_edge.errors import ConfigError
from kormed_edge.verification import verify_model


@dataclass(frozen=True)
class ServedAdapter:
    """What there is to know of an adapter; `calibration` is its own, over the model served."""

    sha256: str
    calibration: Calibration | None = None


def adapter_files(given: Sequence[str]) -> dict[str, Path]:
    """Files by the names that requests give them; `ConfigError` for what is not NAME=FILE."""
    pairs = [text.partition("=") for text in given]
    if wrong := [name + sign for name, sign, file in pairs if not (name and file)]:
        raise ConfigError(
            f"--adapter {wrong[0]}", "NAME=FILE", "--adapter v2=runs/v2/gguf/adapter.gguf"
        )
    return {name: Path(file) for name, _, file in pairs}


def require_default(name: str | None, adapters: Collection[str], model: str) -> None:
    """`ConfigError` for a --default-adapter that is not there, or has the name of the model."""
    if name is None:
        return
    if name not in adapters:
        raise ConfigError(
            f"--default-adapter {name}",
            f"one of {', '.join(adapters)}" if adapters else "the name of an --adapter",
            f"--adapter {name}=FILE --default-adapter {name}",
        )
    if name == model:
        raise ConfigError(
            f"--default-adapter {name}, which is the model's own name",
            "a name that tells the two apart",
            f"--adapter {name}-tuned=FILE --default-adapter {name}-tuned",
        )


def verify_adapters(
    files: Mapping[str, Path], *, model: Path, model_sha256: str, allow_unverified: bool
) -> dict[str, ServedAdapter]:
    """Each adapter's hash, held against its manifest, and its calibration over the model.

    Raises `EngineError` as `verify_model` and `find_calibration` do.
    """
    served = {}
    for name, file in files.items():
        digest = verify_model(file, allow_unverified=allow_unverified)
        known = None
        # What lies beside both, in one folder, is the model's.
        if not (file.parent.samefile(model.parent) and (file.parent / BUNDLED).is_file()):
            known = find_calibration(file, model_sha256, digest)
        served[name] = ServedAdapter(digest, known)
    return served
