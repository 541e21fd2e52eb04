"""`kormed export`: adapter to bf16 GGUF, quantized files, parity."""

import shutil
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from kormed_edge import __version__
from kormed_edge.base import base_folder
from kormed_edge.disk import require_space
from kormed_edge.errors import ExportError
from kormed_edge.manifest import Manifest, manifest_hash, read_manifest, write_json
from kormed_edge.options import RunOptions, run_options
from kormed_edge.progress import console
from kormed_edge.prompts import SYSTEM_PROMPT
from kormed_edge.runs import open_stage, require_stage

_TRACE = 16  # hex digits of a manifest's hash


@click.command("export")
@click.option(
    "--onto",
    type=click.Choice(["original", "nf4"]),
    multiple=True,
    help="Weights that take the adapter; give it twice for both.  [default: export.onto]",
)
@click.option(
    "--keep-hf", is_flag=True, help="Write the merged model as a Hugging Face folder too."
)
@run_options
def export_command(options: RunOptions, onto: tuple[str, ...], keep_hf: bool) -> None:
    """Merge the adapter, write GGUF, quantize, and prove that nothing was lost on the way.

    \b
    Example: kormed export --run demo
             kormed export --run demo --set "export.types=[Q4_K_M, IQ4_XS]" --force
             kormed export --run demo --onto original --onto nf4 --keep-hf --force
    """
    if onto:
        options = options.override("export.onto", onto)
    if keep_hf:
        options = options.override("export.keep_hf", True)
    make_gguf(options)


def make_gguf(options: RunOptions) -> None:
    from export.quantize import check_types
    from export.stage import HF, Export, ParityError, mark_failed

    config = options.config.values.export
    options.show("export")
    check_types(config.types, config.imatrix)
    adapter = require_stage(options.run, "adapter")
    trained = read_manifest(adapter)
    failed = options.run / "gguf.failed"
    settings = {"export": config.model_dump(mode="json")}
    with open_stage(
        options.run, "gguf", settings, inputs=["adapter", "data"], force=options.force
    ) as draft:
        if draft is None:
            console.print(f"{options.run / 'gguf'}: finished already")
            return
        shutil.rmtree(failed, ignore_errors=True)  # an earlier attempt's, many GB
        base = base_folder(trained)
        draft.base, draft.seed = trained.base, trained.seed
        _require_space(base, draft.folder, len(config.onto) + config.keep_hf, len(config.types))
        export = Export(
            run=options.run.name,
            config=config,
            base=base,
            adapter=adapter,
            data=options.run / "data",
            folder=draft.folder,
            provenance=_provenance(options.run, trained),
        )
        try:
            export.write()
        except ParityError as error:
            _show_report(export.report())
            mark_failed(draft.folder, failed, export.report())
            raise ExportError(
                error.found,
                error.expected,
                f"look at the table above and at {failed}, whose files are not for use",
            ) from None
        write_json(draft.folder / "parity.json", export.report())
        draft.facts["models"] = export.models
        draft.facts["merged"] = HF if config.keep_hf else None
    _show_report(export.report())
    console.print(f"{options.run / 'gguf'}: {len(export.models)} GGUF models, parity proven")


def _require_space(base: Path, folder: Path, copies: int, types: int) -> None:
    """Room for everything at once: whole copies, and files of at most 8.5 bits a weight."""
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    require_space(folder, int(weights * (1.1 * copies + 0.7 * types + 0.1)), "the GGUF files")


def _provenance(run: Path, trained: Manifest) -> Any:
    from export.convert import Provenance

    base, data = trained.base, read_manifest(run / "data")
    return Provenance(
        name=run.name,
        run=run.name,
        version=__version__,
        prompt=SYSTEM_PROMPT,
        license=base.license if base else "",
        finetune="nf4-qlora",
        base_model=base.id if base else "",
        base_revision=(base.revision or "") if base else "",
        datasets=(Path(str(data.settings["data"]["source"])).name,),
        adapter=manifest_hash(run / "adapter")[:_TRACE],
        data=manifest_hash(run / "data")[:_TRACE],
    )


def _show_report(report: dict[str, Any]) -> None:
    table = Table("parity check", "measured", "limit", "", box=None, pad_edge=False)
    for check in report["checks"]:
        verdict = "[green]ok[/]" if check["passed"] else "[red]FAILED[/]"
        measured, limit = _differing(check) if check["name"].startswith("keys ") else _both(check)
        table.add_row(check["name"], measured, limit, verdict)
    for type_, made in report["types"].items():
        if fallbacks := made["fallbacks"].values():
            used = ", ".join(sorted({other["used"] for other in fallbacks}))
            note = f"{len(fallbacks)} tensors as {used}, see parity.json"
            table.add_row(f"{type_}: shapes it cannot take", note, "", "noted")
    for type_, kld in report["imatrix"].get("mean_kld", {}).items():
        table.add_row(f"{type_}: importance matrix", _short(kld), "", "noted")
    console.print(table)


def _both(check: dict[str, Any]) -> tuple[str, str]:
    return _short(check["measured"]), _short(check["expected"])


def _differing(check: dict[str, Any]) -> tuple[str, str]:
    """Of the many keys of a file, those that are wrong."""
    measured, wanted = check["measured"], check["expected"]
    wrong = {key: value for key, value in wanted.items() if measured.get(key) != value}
    shown = {key: measured.get(key) for key in wrong}
    return _short(shown) if wrong else f"{len(wanted)} keys", _short(wrong)


def _short(values: dict[str, Any]) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return ", ".join(shown)
