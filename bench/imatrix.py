"""What an importance matrix gives: drift of each GGUF type with and without one.

    python bench/imatrix.py --run NAME [--runs-dir DIR] [--types Q4_K_M,IQ4_XS] [--texts 14]

Needs a finished export: its bf16 GGUF and its imatrix.gguf, which comes from the train split.
Drift is the KL divergence in nats from the bf16 file at every token of whole validation samples,
which the models read and do not write: greedy answers of a small model differ so much among
themselves that a few hundred of their tokens show nothing. The difference is given with its
standard error over texts. Writes to a temporary folder only and prints a Markdown table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from export.imatrix import ImportanceMatrix, read_imatrix
from export.logits import log_softmax
from export.quantize import NEED_IMATRIX, check_types, quantize
from kormed_edge.prompts import record_messages, render_chatml
from kormed_edge.records import read_records

Rows = npt.NDArray[np.float32]
CONTEXT = 1024


def read_texts(path: Path, texts: Sequence[str]) -> list[Rows]:
    """Log-probabilities of the next token after every token, a (tokens, vocabulary) each."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False
    )
    read = []
    for text in texts:
        tokens = model.tokenize(text.encode(), add_bos=False, special=True)[:CONTEXT]
        model.reset()
        model.eval(tokens)
        read.append(np.stack([log_softmax(row) for row in model.scores[: len(tokens)]]))
    model.close()
    return read


def drift(
    reference: Sequence[Rows], bf16: Path, type: str, matrix: ImportanceMatrix | None,
    texts: Sequence[str],
) -> tuple[int, list[npt.NDArray[np.float32]]]:  # fmt: skip
    """Size of the file in bytes, and the divergence at every token of every text."""
    with TemporaryDirectory(prefix="kormed-imatrix-") as folder:
        made = quantize(bf16, Path(folder) / f"{type}.gguf", type, imatrix=matrix)
        read = read_texts(made.path, texts)
    return made.bytes, [
        np.sum(np.exp(p) * (p - q), axis=1) for p, q in zip(reference, read, strict=True)
    ]


def row(
    reference: Sequence[Rows], bf16: Path, type: str, matrix: ImportanceMatrix, texts: Sequence[str]
) -> str:
    """One line of the table; a type that needs a matrix has no value without one."""
    size, given = drift(reference, bf16, type, matrix, texts)
    mean = np.concatenate(given).mean()
    if type in NEED_IMATRIX:
        return f"| {type} | {size:,} | – | {mean:.4f} | |"
    _, blind = drift(reference, bf16, type, None, texts)
    change = np.array([a.mean() - b.mean() for a, b in zip(given, blind, strict=True)])
    error = change.std(ddof=1) / len(change) ** 0.5
    without = np.concatenate(blind).mean()
    return (
        f"| {type} | {size:,} | {without:.4f} | {mean:.4f} | {change.mean():+.4f} ± {error:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--types", default="Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS,Q3_K_M")
    parser.add_argument("--texts", type=int, default=14)
    given = parser.parse_args()
    types = given.types.split(",")
    check_types(types, has_imatrix=True)
    run = given.runs_dir / given.run
    bf16 = run / "gguf" / f"{given.run}-bf16.gguf"
    matrix = read_imatrix(run / "gguf" / "imatrix.gguf")
    records = read_records(run / "data" / "valid.jsonl")
    chosen = records[:: max(1, len(records) // given.texts)][: given.texts]
    texts = [render_chatml(record_messages(r), add_generation_prompt=False) for r in chosen]
    reference = read_texts(bf16, texts)
    tokens = sum(len(rows) for rows in reference)
    print(f"{given.run}: matrix of {matrix.tokens:,} tokens; {tokens:,} of {len(texts)} texts\n")
    print("| type | bytes | mean KLD without | mean KLD with | change, by text |")
    print("|---|---|---|---|---|")
    for type in types:
        print(row(reference, bf16, type, matrix, texts), flush=True)


if __name__ == "__main__":
    main()
