"""`kormed export`: adapter to bf16 GGUF, quantized files, parity."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from kormed_edge import __version__
from kormed_edge.base import base_folder
from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError
from kormed_edge.manifest import Manifest, read_manifest, write_json
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console, progress
from kormed_edge.prompts import SYSTEM_PROMPT, question_prompt
from kormed_edge.records import read_records
from kormed_edge.runs import open_stage, require_stage


@click.command("export")
@run_options
def export_command(options: RunOptions) -> None:
    """Merge the adapter, write GGUF, quantize, and prove that nothing was lost on the way.

    \b
    Example: kormed export --run demo
             kormed export --run demo --set "export.types=[Q4_K_M, Q6_K]" --force
    """
    make_gguf(options)


def make_gguf(options: RunOptions) -> None:
    config = options.config.values.export
    options.show("export")
    adapter = require_stage(options.run, "adapter")
    trained = read_manifest(adapter)
    settings = {"export": config.model_dump(mode="json")}
    with open_stage(
        options.run, "gguf", settings, inputs=["adapter", "data"], force=options.force
    ) as draft:
        if draft is None:
            console.print(f"{options.run / 'gguf'}: finished already")
            return
        base = base_folder(trained)
        draft.base, draft.seed = trained.base, trained.seed
        checks = _write_files(options, base, adapter, trained, draft.folder)
        write_json(draft.folder / "parity.json", checks)
        draft.facts["models"] = _models(options.run.name, config.types)
    _show_checks(checks)
    console.print(f"{options.run / 'gguf'}: {len(draft.facts['models'])} GGUF files, parity proven")


def _models(run: str, types: tuple[str, ...]) -> dict[str, str]:
    return {"bf16": f"{run}-bf16.gguf", **{t: f"{run}-{t}.gguf" for t in types}}


def _write_files(
    options: RunOptions, base: Path, adapter: Path, trained: Manifest, folder: Path
) -> dict[str, Any]:
    from export.convert import write_gguf
    from export.parity import check_file, parity_report
    from export.quantize import quantize

    config = options.config.values.export
    run = options.run.name
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    require_space(folder, int(weights * (1.2 + 0.7 * len(config.types))), "the GGUF files")
    bf16 = folder / f"{run}-bf16.gguf"
    with progress("export: merge and write bf16") as update:
        written = write_gguf(
            base, adapter, bf16, _provenance(run, trained), onto=config.onto, on_tensor=update
        )
    checks = [check_file(bf16, written.shapes)]
    fallbacks = {}
    for type_ in config.types:
        with progress(f"export: quantize to {type_}") as update:
            quantized = quantize(bf16, folder / f"{run}-{type_}.gguf", type_, update)
        fallbacks[type_] = quantized.fallbacks
        checks.append(check_file(quantized.path, written.shapes))
    checks += _compare(options, base, adapter, folder)
    report = {**parity_report(checks), "fallbacks": fallbacks}
    if not report["passed"]:
        _show_checks(report)
        failed = [check.name for check in checks if not check.passed]
        raise ExportError(
            f"parity failed: {', '.join(failed)}",
            "every check above within its limit",
            "look at the table above; nothing was written to the run folder",
        )
    return report


def _compare(options: RunOptions, base: Path, adapter: Path, folder: Path) -> list[Any]:
    from export.parity import (
        LIMITS,
        Limits,
        check_logits,
        check_tokens,
        compare_logits,
        compare_with_hf,
        limits_of,
    )

    config = options.config.values.export
    run = options.run.name
    bf16 = folder / f"{run}-bf16.gguf"
    everything, some = _prompts(options.run / "data", config.parity_prompts)
    with progress("export: parity", 2 + len(config.types)) as update:
        checks = [check_tokens(adapter, bf16, everything)]
        update(1, note="tokens")
        drift = compare_with_hf(base, adapter, bf16, some, onto=config.onto)
        checks.append(check_logits("Hugging Face → bf16", drift, limits_of("BF16")))
        update(2, note="bf16")
        for done, type_ in enumerate(config.types, 3):
            drift = compare_logits(bf16, folder / f"{run}-{type_}.gguf", some)
            known = LIMITS.get(type_, Limits(float("inf")))  # a type without a limit is measured
            limits = replace(known, mean_kld=config.max_kld.get(type_, known.mean_kld))
            checks.append(check_logits(f"bf16 → {type_}", drift, limits))
            update(done, note=type_)
    return checks


def _prompts(data: Path, some: int) -> tuple[list[str], list[str]]:
    """Every prompt that the evaluation will ask, and a few of the validation split."""
    valid, test = (
        [question_prompt(r.question) for r in read_records(data / f"{name}.jsonl")]
        for name in ("valid", "test")
    )
    return [*valid, *test], valid[:some]


def _provenance(run: str, trained: Manifest) -> Any:
    from export.convert import Provenance

    base = trained.base
    return Provenance(
        name=run,
        run=run,
        version=__version__,
        prompt=SYSTEM_PROMPT,
        finetune="nf4-qlora",
        base_model=base.id if base else "",
        base_revision=(base.revision or "") if base else "",
    )


def _show_checks(report: dict[str, Any]) -> None:
    table = Table("parity check", "measured", "limit", "", box=None, pad_edge=False)
    for check in report["checks"]:
        verdict = "[green]ok[/]" if check["passed"] else "[red]FAILED[/]"
        table.add_row(check["name"], _short(check["measured"]), _short(check["expected"]), verdict)
    for type_, tensors in report["fallbacks"].items():
        if tensors:
            kinds = sorted(set(tensors.values()))
            note = f"{len(tensors)} tensors as {', '.join(kinds)}"
            table.add_row(f"{type_}: shapes it cannot take", note, "", "noted")
    console.print(table)


def _short(values: dict[str, Any]) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return ", ".join(shown)
