"""How sure a model is, as a share of right answers: what its validation split taught about it.

A calibration belongs to one GGUF, or one with an adapter over it, by SHA-256. `kormed eval` writes
it and this reads it: `eval/calibration-TYPE.json` of a run, `calibration.json` beside the model, or
beside the adapter, in a bundle.
"""

from collections.abc import Sequence
from math import exp, fsum
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kormed_edge.errors import EngineError
from kormed_edge.manifest import MANIFEST, read_manifest, sha256_file

BUNDLED = "calibration.json"
LOW_CONFIDENCE = 0.5
"""Below it an answer is more likely wrong than right; the threshold unless a run sets another."""
HIGH_CONFIDENCE = 0.8
_SHA256 = r"^[0-9a-f]{64}$"


class Level(NamedTuple):
    """How sure, in a word."""

    ko: str
    en: str


HIGH, MODERATE, LOW = Level("높음", "high"), Level("보통", "moderate"), Level("낮음", "low")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptionScale(_Frozen):
    """Temperature scaling (Guo et al. 2017): p^(1/T) of each option, made to sum to 1 again."""

    temperature: float = Field(gt=0, description="above 1 where the model was too sure")
    n: int = Field(gt=0, description="multiple-choice items that it was fitted on")

    def of(self, probabilities: Sequence[float]) -> tuple[float, ...]:
        """The same options' calibrated probabilities."""
        best = max(probabilities)
        # As shares of the best, so that a low temperature can not make all of them 0.
        weights = [(p / best) ** (1 / self.temperature) for p in probabilities]
        return tuple(weight / fsum(weights) for weight in weights)


class TextScale(_Frozen):
    """Platt's sigmoid of the mean log-probability of an answer's tokens, in nats."""

    slope: float = Field(ge=0)
    intercept: float
    n: int = Field(gt=0, description="short and descriptive items that it was fitted on")

    def of(self, mean_logprob: float) -> float:
        """Probability that such an answer is right."""
        return _sigmoid(self.slope * mean_logprob + self.intercept)


class Calibration(_Frozen):
    """The scales of one GGUF; None where the validation split had no such items."""

    schema_version: Literal[1] = 1
    model_sha256: str = Field(pattern=_SHA256)
    adapter_sha256: str | None = Field(None, pattern=_SHA256, description="what answered over it")
    options: OptionScale | None
    text: TextScale | None
    threshold: float = Field(ge=0, le=1, description="an answer below it carries a warning")
    fit_version: str

    def of_options(self, probabilities: Sequence[float]) -> tuple[float, ...] | None:
        """Calibrated probabilities of options, which sum to 1; None without a scale for them."""
        return self.options.of(probabilities) if self.options and probabilities else None

    def of_text(self, logprobs: Sequence[float]) -> float | None:
        """Probability that a free answer is right, from its tokens' log-probabilities.

        None without a scale for it; 0 for an answer without tokens.
        """
        if self.text is None:
            return None
        if not logprobs:
            return 0.0
        return self.text.of(mean_logprob(logprobs))


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Mean of tokens' log-probabilities, in nats a token."""
    return fsum(logprobs) / len(logprobs)


def level_of(confidence: float, threshold: float = LOW_CONFIDENCE) -> Level:
    """A confidence in a word: low is what a warning goes with."""
    if confidence < threshold:
        return LOW
    return HIGH if confidence >= HIGH_CONFIDENCE else MODERATE


def calibration_file(arm: str) -> str:
    """Name of an arm's calibration in the folder of `kormed eval`: gguf:Q4_K_M, lora:Q4_K_M."""
    return f"calibration-{arm.removeprefix('gguf:').replace(':', '-')}.json"


def read_calibration(
    path: Path, model_sha256: str, adapter_sha256: str | None = None
) -> Calibration:
    """A model's calibration; `EngineError` if the file is not one, or is another model's."""
    try:
        calibration = Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EngineError(
            f"{path} is not a calibration of this kit: {error}", "calibration schema 1",
            "copy the file again, or: kormed eval --force",
        ) from None  # fmt: skip
    found = (calibration.model_sha256, calibration.adapter_sha256)
    if found != (model_sha256, adapter_sha256):
        raise EngineError(
            f"{path} is of the model {_both(*found)}", _both(model_sha256, adapter_sha256),
            "evaluate this model: kormed eval --force; or remove the file",
        )  # fmt: skip
    return calibration


def find_calibration(
    file: Path, model_sha256: str, adapter_sha256: str | None = None
) -> Calibration | None:
    """What stands with a GGUF, or with an adapter's: beside it, as in a bundle, or in the eval/ of
    its run.

    None if there is none, or only such as were made of an earlier export. Raises `EngineError` for
    one that is damaged, and for one beside it that is another model's.
    """
    beside = file.parent / BUNDLED
    if beside.is_file():
        return read_calibration(beside, model_sha256, adapter_sha256)
    evaluated = file.parent.parent / "eval"
    if file.parent.name != "gguf" or not (evaluated / MANIFEST).is_file():
        return None
    for path in sorted(evaluated.glob(calibration_file("*"))):
        if _names(path, model_sha256, adapter_sha256):
            _require_whole(path)
            return read_calibration(path, model_sha256, adapter_sha256)
    return None


def _both(model: str, adapter: str | None) -> str:
    return f"{model} with the adapter {adapter}" if adapter else model


def _names(path: Path, *digests: str | None) -> bool:
    content = path.read_bytes()
    return all(digest.encode() in content for digest in digests if digest)


def _require_whole(path: Path) -> None:
    """`EngineError` unless a file of a stage is as its manifest says."""
    entry = read_manifest(path.parent).files.get(path.name)
    if entry is None or sha256_file(path) != entry.sha256:
        raise EngineError(
            f"{path} is not the file of its {MANIFEST}", "the file that `kormed eval` wrote",
            "kormed eval --force",
        )  # fmt: skip


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without an overflow on either side."""
    return 1 / (1 + exp(-x)) if x >= 0 else 1 - 1 / (1 + exp(x))
