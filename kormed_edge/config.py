"""The settings of a run: one YAML file, checked strictly, every value overridable.

A value's source (default, file, command line) is kept, so that a run can print what it is about
to do and where each setting came from.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kormed_edge.errors import ConfigError

Ratio = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which records, and how they are split."""

    source: str = Field("samples", description="AI Hub folder or zip, JSONL, or KorMedMCQA")
    scheme: Literal["paper", "official"] = Field(
        "paper", description="pool and re-split, or AI Hub's own split"
    )
    ratios: tuple[Ratio, Ratio, Ratio] = Field((0.8, 0.1, 0.1), description="train, valid, test")
    seed: int = 42
    on_invalid: Literal["error", "drop"] = Field(
        "error", description="a bad record stops, or is dropped and listed"
    )
    dedupe: bool = Field(False, description="remove from train what also stands in valid or test")
    balance: Literal["none", "oversample", "weighted_loss"] = Field(
        "none",
        description="domains in training: as they are, smaller ones repeated up to the largest, "
        "or all of them with the same weight in the loss",
    )

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> "DataConfig":
        if abs(sum(self.ratios) - 1) > 1e-9:
            raise ValueError(f"ratios must sum to 1, these sum to {sum(self.ratios):g}")
        return self


class TrainConfig(Section):
    """NF4 QLoRA; the defaults are Tables 1 and 2 of the paper."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: Ratio = 0.05
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, gt=0, description="optimizer steps; overrides epochs")
    batch_size: int = Field(2, gt=0, description="samples per micro-batch")
    gradient_accumulation: int = Field(8, gt=0, description="micro-batches per optimizer step")
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Ratio = 0.05
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(1024, gt=0, description="tokens; longer samples are cut")
    optimizer: Literal["paged_adamw_8bit", "adamw_8bit", "adamw_torch"] = "paged_adamw_8bit"
    gradient_checkpointing: bool | Annotated[int, Field(ge=0)] = Field(
        default=True, description="layers recomputed in the backward pass: all, none, or how many"
    )
    tokens_per_batch: int | None = Field(
        None, gt=0, description="cut micro-batches into packs of at most so many tokens"
    )
    compile: bool = Field(default=True, description="compile the decoder layers, on a GPU")
    loss: Literal["sequence", "answer"] = Field(
        "sequence", description="tokens that the loss counts"
    )
    seed: int = 42
    log_steps: int = Field(10, gt=0)
    eval_steps: int = Field(100, gt=0, description="optimizer steps between validations")
    save_steps: int = Field(100, gt=0, description="optimizer steps between checkpoints")
    tensorboard: bool = Field(
        default=False, description="write TensorBoard's files too; needs the extra tensorboard"
    )

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation

    def recomputed(self, layers: int) -> int:
        """How many of a model's layers are recomputed in the backward pass."""
        chosen = self.gradient_checkpointing
        return layers * chosen if isinstance(chosen, bool) else min(chosen, layers)

    @model_validator(mode="after")
    def _a_sample_fits_into_a_pack(self) -> "TrainConfig":
        if self.tokens_per_batch is not None and self.tokens_per_batch < self.max_length:
            raise ValueError(
                f"{self.tokens_per_batch} tokens_per_batch, less than max_length {self.max_length}"
            )
        return self


class DpoConfig(Section):
    """Preference training of a finished adapter (Rafailov et al. 2023)."""

    beta: float = Field(0.1, gt=0, description="how closely the adapter is held to where it began")
    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = Field(
        "sigmoid", description="sigmoid is DPO's own; robust allows for wrong pairs"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of pairs believed to be the wrong way round, robust"
    )
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, gt=0, description="optimizer steps; overrides epochs")
    batch_size: int = Field(2, gt=0, description="pairs per micro-batch, two samples each")
    gradient_accumulation: int = Field(8, gt=0, description="micro-batches per optimizer step")
    learning_rate: float = Field(5e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Ratio = 0.1
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(1024, gt=0, description="tokens; longer answers are cut")
    valid_share: float = Field(
        0.1, gt=0, lt=1, description="questions whose pairs are held out to validate on"
    )
    optimizer: Literal["paged_adamw_8bit", "adamw_8bit", "adamw_torch"] = "paged_adamw_8bit"
    gradient_checkpointing: bool = True
    seed: int = 42
    log_steps: int = Field(5, gt=0)
    eval_steps: int = Field(50, gt=0, description="optimizer steps between validations")
    save_steps: int = Field(50, gt=0, description="optimizer steps between checkpoints")

    @model_validator(mode="after")
    def _smoothing_has_its_loss(self) -> "DpoConfig":
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing is for the loss robust, not for {self.loss}")
        return self


Onto = Literal["original", "nf4"]


class ExportConfig(Section):
    onto: tuple[Onto, ...] = Field(
        default=("original",),
        min_length=1,
        description="weights that take the adapter: the 16-bit base's, or those in NF4 that it was "
        "trained against; the first is quantized, a second becomes one more bf16 file and arm",
    )
    keep_hf: bool = Field(False, description="write the merged model as a Hugging Face folder too")
    types: tuple[str, ...] = Field(("Q8_0", "Q4_K_M"), description="llama.cpp quantization types")
    imatrix: bool = Field(True, description="quantize with an importance matrix")
    imatrix_texts: int = Field(128, gt=0, description="training records that the matrix sees")
    compare_imatrix: bool = Field(
        default=False, description="measure every type without the matrix too"
    )
    max_kld: dict[str, float] = Field(
        default={},
        description="mean KL divergence (nats) allowed for a type, instead of the kit's own limit",
    )
    parity_prompts: int = Field(8, gt=0, description="validation prompts whose logits are compared")

    @field_validator("onto", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("onto", "types")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("one is named twice")
        return value


FLIP_LIMITS = {"merged": 0.02, "bf16": 0.02, "Q8_0": 0.02, "Q6_K": 0.04, "Q5_K_M": 0.04}
"""Share of flips that a candidate may have; the rest may have that of Q4_K_M."""


class Thresholds(Section):
    """What an arm may lose against the one before it; differences are candidate − reference."""

    margin: float = Field(default=-0.02, ge=-1, lt=0, description="accuracy, multiple choice")
    rouge_margin: float = Field(
        default=-0.01, ge=-1, lt=0, description="rouge_ko ROUGE-L, all items"
    )
    max_flips: float = Field(
        default=0.08,
        gt=0,
        le=1,
        description="share of items right in one arm only; where it is not given, by the "
        "candidate's type: 0.02 bf16 and Q8_0, 0.04 Q6_K and Q5_K_M, 0.08 others",
    )
    max_rate_increase: float = Field(
        default=0.005, gt=0, le=1, description="unread answers, missing ends, Han leak"
    )
    max_ece_increase: float = Field(
        default=0.02, gt=0, le=1, description="calibration error of option probabilities"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of every one-sided bound")


class GateConfig(Thresholds):
    """The retention gate: which arm is held against which, and how much it may lose."""

    reference: str = "adapter"
    candidate: str = "gguf:Q4_K_M"

    @model_validator(mode="before")
    @classmethod
    def _flips_by_type(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "max_flips" in data:
            return data
        candidate = str(data.get("candidate", "")).rpartition(":")[2]
        limit = FLIP_LIMITS.get(candidate)
        return data if limit is None else {**data, "max_flips": limit}

    @model_validator(mode="after")
    def _two_arms(self) -> "GateConfig":
        if self.reference == self.candidate:
            raise ValueError(f"{self.reference} is held against itself")
        return self


class EvalConfig(Section):
    arms: tuple[str, ...] | None = Field(
        None, description="null: base, adapter and every GGUF; lora:TYPE is an update of a run"
    )
    max_new_tokens: int = Field(256, gt=0)
    batch_size: int = Field(64, gt=0, description="items a batch, Hugging Face arms")
    slots: int = Field(16, gt=0, description="items answered at once, GGUF arms")
    sample: Literal["all", "paper"] = Field(
        "all", description="the whole test split, or 66 items a type as the paper; not for release"
    )
    limit: int | None = Field(
        None, gt=0, description="items an arm; marks results as not for release"
    )
    bertscore_encoder: str | None = Field(
        default=None,
        min_length=1,
        description="local folder of a Hugging Face encoder; null: no BERTScore",
    )
    calibrate: tuple[str, ...] | None = Field(
        default=None,
        description="GGUF arms whose confidence is calibrated on the validation split; null: the "
        "gate's candidate",
    )
    warn_below: Ratio = Field(
        default=0.5, description="calibrated confidence below which an answer carries a warning"
    )
    gate: GateConfig = GateConfig()

    @property
    def partial(self) -> bool:
        """Whether items are left out, so that no gate may decide on them."""
        return self.limit is not None or self.sample != "all"


class RunConfig(Section):
    """Everything that a run is made from."""

    base: str = Field(
        "Qwen/Qwen2.5-7B-Instruct", description="hub id, folder, GGUF file, or smollm2-135m"
    )
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    dpo: DpoConfig = DpoConfig()
    export: ExportConfig = ExportConfig()
    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True)
class ResolvedConfig:
    """A checked configuration and, for every dotted key, the place its value came from."""

    values: RunConfig
    sources: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        for key, value in _leaves(self.values.model_dump(mode="json")):
            yield key, value, self.sources.get(key, "default")

    def override(self, key: str, value: Any) -> "ResolvedConfig":
        """The same settings with one that an option of the command line gave."""
        tree = self.values.model_dump()
        _put(tree, key, value)
        sources = {**self.sources, key: "command line"}
        return ResolvedConfig(RunConfig.model_validate(tree), sources)

    def to_yaml(self) -> str:
        return yaml.safe_dump(
            self.values.model_dump(mode="json"), allow_unicode=True, sort_keys=False
        )


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> ResolvedConfig:
    """Read a run's YAML and apply `key=value` overrides; all mistakes are reported at once."""
    tree = _read_yaml(path) if path else {}
    sources = {key: str(path) for key, _ in _leaves(tree)}
    mistakes = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            mistakes.append(f"--set {override}: expected key=value")
            continue
        try:
            value = yaml.safe_load(text)
            _put(tree, key.strip(), value)
            sources |= {leaf: "command line" for leaf, _ in _leaves({key.strip(): value})}
        except (yaml.YAMLError, TypeError) as error:
            mistakes.append(f"--set {override}: {error}")
    try:
        values = RunConfig.model_validate(tree)
    except ValidationError as error:
        mistakes += [_describe(e) for e in error.errors()]
    if mistakes:
        listed = "\n  ".join(mistakes)
        raise ConfigError(
            f"{len(mistakes)} mistake(s) in {path or 'the command line'}:\n  {listed}",
            "the keys and ranges of docs/config.md",
            "mend the lines above",
        )
    return ResolvedConfig(values, sources)


def known_keys() -> Iterator[tuple[str, Any, str]]:
    """Every key with its default and its meaning, for the documentation."""
    yield from _keys_of(RunConfig, "")


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default, field.description or ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            "a YAML file of settings",
            "choose one with --config FILE; those of the kit are in configs/",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "a YAML file in UTF-8") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}", "a mapping of settings")
    return tree


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise TypeError(f"{parent} is a value, not a section")
    tree[last] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _describe(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: {error['msg']} (found {error['input']!r})"
