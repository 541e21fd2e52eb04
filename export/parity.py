"""Proof that a GGUF is the model it was made from: its file, its tokens, its probabilities.

Every check gives a `Check` that goes into `parity.json` as it is; a check that cannot be made
has not passed. Source of the limits: llama.cpp's published drift of Llama-3-8B, with headroom.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import gguf
import numpy as np
import numpy.typing as npt

from export.merge import is_nf4, through_nf4
from export.quantize import llama_log
from kormed_edge.errors import ExportError
from kormed_edge.prompts import END, question_prompt

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.float32]
_CHECKED_ROWS = 4096
_SHOWN = 8

# Text on which tokenizers part ways, all of it in NFC: Hangul and jamo, Han, full-width signs,
# joined emoji, odd whitespace, digits, contractions, special tokens in the middle.
PROBES = (
    question_prompt("65세 남자가 2시간 전부터 가슴이 아프다. 혈압 90/60 mmHg.\n1) 심전도\n2) 뇌파"),
    "ㄱㄴㄷ ㅏㅑ 갂꿻뷁 힣 ①②③ 정답：４번，（가）～［나］",
    "大韓民國 醫學 感冒藥 漢字 한자(漢字) 日本語カナ",
    "👩‍⚕️🏥 😶‍🌫️ 🇰🇷 ❤️‍🩹 é x\N{ZERO WIDTH JOINER}y",
    " \n\n\n \t\t a  b   c\r\n\r\n  \N{NO-BREAK SPACE}d\N{IDEOGRAPHIC SPACE}e\u2028f  ",
    "3.5mg 1,234.56 μg/dL 10^3/µL 2/3 5'-GGATCC-3' 37.5℃ ≥120 ±2SD",
    "I'm you'RE he'd WE'LL it's--''\"\"``...!!!???",
    "<|im_start|>assistant\n4)<|im_end|>\n<|endoftext|><|im_end|",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One result. `measured` and `expected` are plain JSON values."""

    name: str
    passed: bool
    measured: dict[str, Any]
    expected: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest mean KL divergence (nats), smallest share of equal top tokens."""

    mean_kld: float
    same_top: float = 0.0


LIMITS = {
    "BF16": Limits(0.001, 0.995),
    "Q8_0": Limits(0.005),
    "Q6_K": Limits(0.01),
    "Q5_K_M": Limits(0.02),
    "Q4_K_M": Limits(0.05),
}


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """How far a candidate's next-token probabilities are from a reference's, over answers.

    KLD in nats, reference first; `same_top` the share of positions with the same likeliest token.
    """

    prompts: int
    positions: int
    mean_kld: float
    p99_kld: float
    same_top: float


def parity_report(checks: Sequence[Check]) -> dict[str, Any]:
    """All checks as one JSON object; without any check nothing has passed."""
    passed = bool(checks) and all(check.passed for check in checks)
    return {"passed": passed, "checks": [asdict(check) for check in checks]}


def check_file(path: Path, expected: Mapping[str, tuple[int, ...]]) -> Check:
    """Read a GGUF back: the expected tensors and shapes (rows first), whole, nothing infinite."""
    wanted = {"tensors": len(expected)}
    try:
        tensors = gguf.GGUFReader(path).tensors
        problems = _file_problems(path, tensors, expected)
    except (OSError, ValueError, IndexError) as error:
        return Check(f"file {path.name}", False, {"problems": [f"unreadable: {error}"]}, wanted)
    measured = {"tensors": len(tensors), "problems": problems[:_SHOWN]}
    return Check(f"file {path.name}", not problems, measured, wanted)


def _file_problems(
    path: Path, tensors: list[gguf.ReaderTensor], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    found = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in tensors}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {list(shape)}, not {list(expected[name])}"
        for name, shape in found.items()
        if shape != expected.get(name, shape)
    ]
    problems += [f"{tensor.name} is not finite" for tensor in tensors if not _finite(tensor)]
    end = max((int(t.data_offset + t.n_bytes) for t in tensors), default=0)
    if not end <= path.stat().st_size < end + gguf.GGUF_DEFAULT_ALIGNMENT:
        problems.append(f"{path.stat().st_size} bytes, tensors end at {end}")
    return problems


def _finite(tensor: gguf.ReaderTensor) -> bool:
    """Whether no value is infinite or NaN; quantized blocks are not looked into."""
    exponent = np.uint16(0x7F80)
    for start in range(0, len(tensor.data), _CHECKED_ROWS):
        part = tensor.data[start : start + _CHECKED_ROWS]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32 and not np.isfinite(part).all():
            return False
        is_half = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        if is_half and ((part.view(np.uint16) & exponent) == exponent).any():
            return False
    return True


def check_tokens(folder: Path, path: Path, prompts: Iterable[str]) -> Check:
    """Whether llama.cpp cuts every prompt, and `PROBES`, into the ids that training saw.

    Also that the GGUF's end token is the one that ends a ChatML turn, and its pad token the
    folder's. Text that is not in NFC differs where the tokenizer normalizes: llama.cpp does not.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*PROBES, *prompts]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with _Llama(path, vocab_only=True) as model:
        found = [model.tokenize(text) for text in texts]
        ends = {"end": model.end_token, "pad": model.pad_token}
    differing = [i for i, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]]
    expected_ends = {
        "end": tokenizer.convert_tokens_to_ids(END),
        "pad": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else -1,
    }
    measured = {
        **ends,
        "differing": len(differing),
        "first": [_shorten(texts[i]) for i in differing[:_SHOWN]],
    }
    passed = not differing and ends == expected_ends
    expected = {**expected_ends, "differing": 0, "prompts": len(texts)}
    return Check(f"tokens {path.name}", passed, measured, expected)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"


def check_logits(name: str, comparison: LogitComparison, limits: Limits) -> Check:
    """Judge a comparison; a value that is not a number has not passed.

    The share of equal top tokens is an estimate: it has failed when as many differing positions
    would come up less than once in a hundred at the limit, so that a short comparison does not
    fail on two near ties, and a long one fails at the limit itself.
    """
    passed = comparison.positions > 0 and (
        comparison.mean_kld <= limits.mean_kld
        and comparison.same_top >= 1 - _allowed(comparison.positions, 1 - limits.same_top)
    )
    return Check(f"logits {name}", passed, asdict(comparison), asdict(limits))


def _allowed(positions: int, share: float) -> float:
    """Largest share of differing positions that a true share of `share` explains at 99 %."""
    from scipy.stats import binom

    return float(binom.ppf(0.99, positions, share)) / positions


def limits_of(type: str) -> Limits:
    """The limits for a GGUF type; raises `ExportError` for a type that has none."""
    if type not in LIMITS:
        raise ExportError(
            f"no drift limit for {type}", "one of " + ", ".join(LIMITS), "give `Limits` of your own"
        )
    return LIMITS[type]


def compare_logits(
    reference: Path, candidate: Path, prompts: Sequence[str], max_tokens: int = 32
) -> LogitComparison:
    """Compare two GGUFs over the greedy answers of `reference`, up to `max_tokens` each.

    Both read the same tokens one at a time, so that batching adds no difference of its own. One
    model is loaded at a time; the reference's log-probabilities wait on disk, 4 bytes a token
    of the vocabulary for every position.
    """
    with TemporaryDirectory(prefix="kormed-parity-") as folder:
        answers = _write_answers(reference, prompts, max_tokens, Path(folder))
        with _Llama(candidate, n_ctx=_longest(answers)) as model:
            return _compare(answers, lambda answer: (answer.rows(), model.forced(answer)))


def compare_with_hf(
    base: Path,
    adapter: Path | None,
    path: Path,
    prompts: Sequence[str],
    max_tokens: int = 32,
    *,
    dtype: str = "float32",
    onto: str = "original",
) -> LogitComparison:
    """Compare a GGUF with the Hugging Face model in torch, the reference, over the GGUF's answers.

    `adapter` is applied, not merged, so that the merge is checked too. torch in bfloat16 halves
    the memory (15 instead of 30 GB for 7B) and adds rounding of its own: on SmolLM2-135M the mean
    KLD rose from 0.00006 to 0.00097.
    """
    import torch

    with TemporaryDirectory(prefix="kormed-parity-") as folder:
        answers = _write_answers(path, prompts, max_tokens, Path(folder))
        model = _load_hf(base, adapter, getattr(torch, dtype), onto)
        return _compare(answers, lambda answer: (_hf_rows(model, answer), answer.rows()))


@dataclass(frozen=True, slots=True)
class _Answer:
    """A prompt's tokens, the greedy answer's, and the file of the answer's log-probabilities."""

    prompt: list[int]
    tokens: list[int]
    file: Path

    def rows(self) -> Rows:
        rows: Rows = np.load(self.file)
        return rows


class _Llama:
    """One loaded GGUF that gives next-token log-probabilities, without keeping any."""

    def __init__(self, path: Path, *, n_ctx: int = 32, vocab_only: bool = False) -> None:
        import llama_cpp

        lines: list[str] = []
        # Two hardware threads share a core's arithmetic, and llama.cpp waits for the slowest.
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        try:
            with llama_log(lines.append):
                self._llama: Any = llama_cpp.Llama(
                    str(path),
                    n_ctx=n_ctx,
                    n_threads=threads,
                    n_threads_batch=threads,
                    vocab_only=vocab_only,
                    verbose=False,
                )
        except ValueError as error:
            last = "".join(lines).strip().splitlines()[-1:]
            raise ExportError(f"llama.cpp cannot load {path}: {error} {last}") from error
        self._api = llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.words = self._llama.n_vocab()
        self.end_token = llama_cpp.llama_vocab_eos(self._vocab)
        self.pad_token = llama_cpp.llama_vocab_pad(self._vocab)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=False, special=True)
        return tokens

    def _next(self, tokens: Sequence[int]) -> Rows:
        self._llama.eval(tokens)
        logits = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return _log_softmax(np.ctypeslib.as_array(logits, shape=(self.words,)))

    def greedy(self, prompt: list[int], max_tokens: int) -> tuple[list[int], Rows]:
        """The likeliest answer, its end token included, and a row for each of its tokens."""
        self._llama.reset()
        rows = [self._next(prompt)]
        tokens = [int(rows[0].argmax())]
        while len(tokens) < max_tokens and not self._ends(tokens[-1]):
            rows.append(self._next(tokens[-1:]))
            tokens.append(int(rows[-1].argmax()))
        return tokens, np.stack(rows)

    def _ends(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def forced(self, answer: _Answer) -> Rows:
        """A row for each token of an answer that was written by another model."""
        self._llama.reset()
        steps = [answer.prompt, *([token] for token in answer.tokens[:-1])]
        return np.stack([self._next(step) for step in steps])


def _write_answers(
    path: Path, prompts: Sequence[str], max_tokens: int, folder: Path
) -> list[_Answer]:
    if not prompts or max_tokens < 1:
        raise ExportError("nothing to compare", "at least one prompt and one token")
    with _Llama(path, vocab_only=True) as tokenizer:
        tokens = [tokenizer.tokenize(prompt) for prompt in prompts]
    answers = []
    with _Llama(path, n_ctx=max(map(len, tokens)) + max_tokens) as model:
        for i, prompt in enumerate(tokens):
            answer, rows = model.greedy(prompt, max_tokens)
            answers.append(_Answer(prompt, answer, folder / f"{i}.npy"))
            np.save(answers[-1].file, rows)
    return answers


def _longest(answers: Sequence[_Answer]) -> int:
    return max(len(answer.prompt) + len(answer.tokens) for answer in answers)


def _compare(
    answers: Sequence[_Answer], rows_of: Callable[[_Answer], tuple[Rows, Rows]]
) -> LogitComparison:
    """`rows_of` gives an answer's rows of the reference and of the candidate."""
    divergences: list[float] = []
    same = 0
    for answer in answers:
        reference, candidate = rows_of(answer)
        if reference.shape != candidate.shape:
            raise ExportError(
                f"vocabularies of {reference.shape[1]} and {candidate.shape[1]} tokens",
                "two forms of one model",
            )
        divergences += [_kld(p, q) for p, q in zip(reference, candidate, strict=True)]
        same += int((reference.argmax(1) == candidate.argmax(1)).sum())
    return LogitComparison(
        prompts=len(answers),
        positions=len(divergences),
        mean_kld=math.fsum(divergences) / len(divergences),
        p99_kld=float(np.quantile(divergences, 0.99)),
        same_top=same / len(divergences),
    )


def _kld(reference: Rows, candidate: Rows) -> float:
    p = reference.astype(np.float64)
    return float(np.sum(np.exp(p) * (p - candidate)))


def _log_softmax(logits: Rows) -> Rows:
    shifted = logits.astype(np.float64) - logits.max()
    log_probabilities: Rows = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    return log_probabilities


def _load_hf(base: Path, adapter: Path | None, dtype: "torch.dtype", onto: str) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    if onto == "nf4":
        for name, parameter in model.named_parameters():
            if is_nf4(name):
                parameter.data = through_nf4(parameter.data).to(dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def _hf_rows(model: Any, answer: _Answer) -> Rows:
    import torch

    tokens = torch.tensor([answer.prompt + answer.tokens[:-1]])
    with torch.inference_mode():
        logits = model(tokens, logits_to_keep=len(answer.tokens)).logits[0].float().numpy()
    return np.stack([_log_softmax(row) for row in logits])
