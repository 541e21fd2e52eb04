"""What an importance matrix gives: drift of each GGUF type with and without one.

    python bench/imatrix.py --run NAME [--runs-dir DIR] [--types Q4_K_M,IQ4_XS] [--texts 64]
                            [--prompts 8] [--tokens 32]

Needs a run with data, adapter and bf16 GGUF. The matrix comes from records of the train split
(prompt, answer and end token) through the NF4 base with the adapter; drift is the KL divergence
in nats from the bf16 GGUF over its own answers to prompts of the validation split. Writes to a
temporary folder only and prints a Markdown table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from export.architectures import recognise
from export.checkpoint import Checkpoint
from export.imatrix import ImportanceMatrix, collect
from export.parity import LogitComparison, compare_logits
from export.quantize import NEED_IMATRIX, check_types, quantize
from kormed_edge.base import base_folder
from kormed_edge.manifest import read_manifest
from kormed_edge.prompts import question_prompt, record_messages, render_chatml
from kormed_edge.records import read_records


def matrix_of(run: Path, texts: int) -> ImportanceMatrix:
    from peft import PeftModel

    from kormed_edge.nf4 import load_nf4, load_tokenizer

    adapter = run / "adapter"
    base = base_folder(read_manifest(adapter))
    model = PeftModel.from_pretrained(load_nf4(base), str(adapter))
    records = read_records(run / "data" / "train.jsonl")[:texts]
    return collect(
        model,
        load_tokenizer(adapter),
        [render_chatml(record_messages(r), add_generation_prompt=False) for r in records],
        recognise(Checkpoint(base)),
        datasets=("train.jsonl",),
    )


def drift(
    bf16: Path, type: str, matrix: ImportanceMatrix | None, prompts: Sequence[str], tokens: int
) -> tuple[int, LogitComparison]:
    with TemporaryDirectory(prefix="kormed-imatrix-") as folder:
        made = quantize(bf16, Path(folder) / f"{type}.gguf", type, imatrix=matrix)
        return made.bytes, compare_logits(bf16, made.path, prompts, tokens)


def row(bf16: Path, type: str, matrix: ImportanceMatrix, prompts: list[str], tokens: int) -> str:
    """One line of the table; a type that needs a matrix has no value without one."""
    size, given = drift(bf16, type, matrix, prompts, tokens)
    mean = p99 = "–"
    if type not in NEED_IMATRIX:
        _, blind = drift(bf16, type, None, prompts, tokens)
        mean, p99 = f"{blind.mean_kld:.5f}", f"{blind.p99_kld:.4f}"
    cells = [type, f"{size:,}", mean, f"{given.mean_kld:.5f}", p99, f"{given.p99_kld:.4f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--types", default="Q4_K_M,IQ4_XS,Q3_K_M,IQ3_M,Q2_K")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    types = given.types.split(",")
    check_types(types, has_imatrix=True)
    run = given.runs_dir / given.run
    bf16 = run / "gguf" / f"{given.run}-bf16.gguf"
    records = read_records(run / "data" / "valid.jsonl")[: given.prompts]
    prompts = [question_prompt(record.question) for record in records]
    matrix = matrix_of(run, given.texts)
    print(f"{given.run}: matrix of {matrix.tokens:,} tokens, {len(prompts)} prompts\n")
    print("| type | bytes | mean KLD without | mean KLD with | p99 without | p99 with |")
    print("|---|---|---|---|---|---|")
    for type in types:
        print(row(bf16, type, matrix, prompts, given.tokens), flush=True)


if __name__ == "__main__":
    main()
