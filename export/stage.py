"""The export stage: which files it writes, in which order, and what is proven about each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.convert import Provenance
from export.imatrix import FILE as IMATRIX
from export.imatrix import ImportanceMatrix
from export.logits import Answer
from export.parity import (
    FIXED_PROMPT,
    LogitComparison,
    check_generation,
    check_logits,
    check_tokens,
    compare_answers,
    compare_answers_with_hf,
    limits_of,
    parity_report,
    written_answers,
)
from export.quantize import quantize
from export.readback import Check, check_file
from kormed_edge.config import ExportConfig
from kormed_edge.errors import ExportError
from kormed_edge.manifest import write_json
from kormed_edge.progress import progress
from kormed_edge.prompts import question_prompt, record_messages, render_chatml
from kormed_edge.records import read_records
from kormed_edge.runs import ADAPTER_GGUF

HF = "hf"


class ParityError(ExportError):
    """A file is not the model that it was made from."""


@dataclass
class Export:
    """One export under way: what it reads, where it writes, and what was found so far."""

    run: str
    config: ExportConfig
    base: Path
    adapter: Path
    data: Path
    folder: Path
    provenance: Provenance
    checks: list[Check] = field(default_factory=list)
    types: dict[str, Any] = field(default_factory=dict)
    imatrix: dict[str, Any] = field(default_factory=dict)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, str]:
        """File name by type, as evaluation names its arms; `bf16` is the one quantized."""
        merges = {"bf16": f"{self.run}-bf16.gguf"}
        merges |= {f"bf16-{onto}": f"{self.run}-bf16-{onto}.gguf" for onto in self.config.onto[1:]}
        return merges | {type_: f"{self.run}-{type_}.gguf" for type_ in self.config.types}

    @property
    def bf16(self) -> Path:
        return self.folder / self.models["bf16"]

    def merges(self) -> dict[str, Path]:
        """The bf16 file of every base that takes the adapter."""
        first, *others = self.config.onto
        files = {first: "bf16", **{onto: f"bf16-{onto}" for onto in others}}
        return {onto: self.folder / self.models[name] for onto, name in files.items()}

    def report(self) -> dict[str, Any]:
        """The content of `parity.json`."""
        return {**parity_report(self.checks), "types": self.types, "imatrix": self.imatrix}

    def write(self) -> None:
        """Write every file and prove it. Raises `ParityError` at the first that is wrong."""
        for onto, path in self.merges().items():
            self._merge(onto, path)
        matrix = self._collect() if self.config.imatrix else None
        for type_ in self.config.types:
            self._quantize(type_, matrix)
        self._write_adapter()
        self._require_passed()
        self._compare(matrix)
        self._require_passed()

    def _merge(self, onto: str, path: Path) -> None:
        """Write one bf16 file and read it back; llama.cpp may crash on a file that is wrong."""
        from export.convert import write_gguf
        from export.keys import check_keys
        from export.readback import check_weights

        keep = self.config.keep_hf and onto == self.config.onto[0]
        with progress(f"export: merge onto {onto}, write bf16") as update:
            written = write_gguf(
                self.base,
                self.adapter,
                path,
                self.provenance,
                onto=onto,
                keep_hf=self.folder / HF if keep else None,
                on_tensor=update,
            )
        self.checks += [check_file(path, written.shapes), check_keys(self.base, path)]
        with progress("export: compute the weights again") as update:
            self.checks.append(check_weights(self.base, self.adapter, onto, path, update))
        self._require_passed()
        self._shapes = written.shapes

    def _collect(self) -> ImportanceMatrix:
        from peft import PeftModel

        from export.architectures import recognise
        from export.checkpoint import Checkpoint
        from export.imatrix import collect, write_imatrix
        from kormed_edge.nf4 import load_nf4, load_tokenizer

        texts = _training_texts(self.data, self.config.imatrix_texts)
        model: Any = PeftModel.from_pretrained(load_nf4(self.base), str(self.adapter))
        with progress("export: importance matrix", len(texts)) as update:
            matrix = collect(
                model,
                load_tokenizer(self.adapter),
                texts,
                recognise(Checkpoint(self.base)),
                datasets=self.provenance.datasets,
                on_text=update,
            )
        write_imatrix(matrix, self.folder / IMATRIX)
        self.imatrix = {"texts": len(texts), "tokens": matrix.tokens}
        return matrix

    def _quantize(self, type_: str, matrix: ImportanceMatrix | None) -> None:
        path = self.folder / self.models[type_]
        with progress(f"export: quantize to {type_}") as update:
            written = quantize(self.bf16, path, type_, update, matrix)
        self.types[type_] = {
            "bytes": written.bytes,
            "tensors": written.types,
            "fallbacks": {name: asdict(other) for name, other in written.fallbacks.items()},
        }
        self.checks.append(check_file(path, self._shapes))

    def _write_adapter(self) -> None:
        from export.adapter import write_adapter_gguf

        path = self.folder / ADAPTER_GGUF
        written = write_adapter_gguf(self.base, self.adapter, path, self.provenance)
        self.checks.append(check_file(path, written.shapes))

    def _compare(self, matrix: ImportanceMatrix | None) -> None:
        every, some = _prompts(self.data, self.config.parity_prompts)
        prompts = [FIXED_PROMPT, *some]
        others = list(self.merges().items())[1:]
        with progress("export: parity", 2 + len(others) + len(self.config.types)) as update:
            self.checks.append(check_tokens(self.adapter, self.bf16, every))
            update(1, note="tokens")
            with written_answers(self.bf16, prompts) as answers:
                self._compare_with_hf("bf16", answers, self.config.onto[0])
                update(2, note="bf16")
                for done, type_ in enumerate(self.config.types, 3):
                    self._compare_type(type_, answers, matrix)
                    update(done, note=type_)
            for done, (onto, path) in enumerate(others, 3 + len(self.config.types)):
                with written_answers(path, prompts) as answers:
                    self._compare_with_hf(f"bf16-{onto}", answers, onto)
                update(done, note=onto)

    def _compare_with_hf(self, name: str, answers: Sequence[Answer], onto: str) -> None:
        drift = compare_answers_with_hf(self.base, self.adapter, answers, onto=onto)
        self.checks.append(
            check_logits(f"Hugging Face → {name}", drift, limits_of("BF16", self.config.max_kld))
        )
        self.checks.append(check_generation(f"Hugging Face → {name}", drift))

    def _compare_type(
        self, type_: str, answers: Sequence[Answer], matrix: ImportanceMatrix | None
    ) -> None:
        drift = compare_answers(answers, self.folder / self.models[type_])
        limits = limits_of(type_, self.config.max_kld)
        self.checks.append(check_logits(f"bf16 → {type_}", drift, limits))
        if matrix and self.config.compare_imatrix:
            blind = self._without_imatrix(type_, answers)
            self.imatrix.setdefault("mean_kld", {})[type_] = {
                "with": drift.mean_kld,
                "without": blind.mean_kld if blind else None,
            }

    def _without_imatrix(self, type_: str, answers: Sequence[Answer]) -> LogitComparison | None:
        """The drift of the same type without the matrix; None for a type that needs one."""
        from export.quantize import NEED_IMATRIX

        if type_ in NEED_IMATRIX:
            return None
        path = self.folder / f"{type_}-without.gguf"
        try:
            quantize(self.bf16, path, type_)
            return compare_answers(answers, path)
        finally:
            path.unlink(missing_ok=True)

    def _require_passed(self) -> None:
        if failed := [check.name for check in self.checks if not check.passed]:
            raise ParityError(f"parity failed: {', '.join(failed)}", "every check within its limit")


def mark_failed(folder: Path, target: Path, report: dict[str, Any]) -> None:
    """Move the GGUF files of a failed export to `target`, under names that nothing loads."""
    target.mkdir()
    for path in folder.glob("*.gguf"):
        path.rename(target / f"{path.name}.failed")
    write_json(target / "parity.json", report)


def _training_texts(data: Path, count: int) -> list[str]:
    """Whole training samples, spread over the split, which is sorted by department."""
    records = read_records(data / "train.jsonl")
    chosen = records[:: max(1, len(records) // count)][:count]
    return [render_chatml(record_messages(r), add_generation_prompt=False) for r in chosen]


def _prompts(data: Path, some: int) -> tuple[list[str], list[str]]:
    """Every prompt that the evaluation will ask, and a few of the validation split."""
    valid, test = (
        [question_prompt(r.question) for r in read_records(data / f"{name}.jsonl")]
        for name in ("valid", "test")
    )
    return [*valid, *test], valid[:some]
