"""Proof that a GGUF is the model it was made from: its tokens, its probabilities, its text.

Every check gives a `Check` that goes into `parity.json` as it is; a check that cannot be made
has not passed. Source of the limits: llama.cpp's published drift of Llama-3-8B, with headroom.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from export.logits import Answer, LoadedGguf, Rows, hf_rows, load_hf, write_answers
from export.readback import Check
from kormed_edge.errors import ExportError
from kormed_edge.prompts import END, question_prompt

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
# The prompt whose greedy text must be Hugging Face's own.
FIXED_PROMPT = question_prompt("급성 심근경색이 의심될 때 가장 먼저 할 검사는?")
# Two tokens this close count as equally likely. llama.cpp rounds the input of every product to
# bf16, which puts the difference between two likely tokens off by 0.05 nats (standard deviation;
# 160 positions, SmolLM2-135M with a LoRA adapter): three of those.
TIE_NATS = 0.15


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
class GreedyText:
    """The greedy text of `FIXED_PROMPT`, and how far the reference was from writing the same.

    `tokens` in all, `agreed` of them before the first that the reference would not write.
    `reference` ends with the reference's own token there. `gap`: the largest difference in nats,
    over all tokens, between the reference's likeliest token and the one written.
    """

    written: str
    reference: str
    tokens: int
    agreed: int
    gap: float


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """How far a candidate's next-token probabilities are from a reference's, over answers.

    KLD in nats, reference first; `same_top` the share of positions with the same likeliest token.
    `greedy` is there when the reference is a Hugging Face model.
    """

    prompts: int
    positions: int
    mean_kld: float
    p99_kld: float
    same_top: float
    greedy: GreedyText | None = None


def parity_report(checks: Sequence[Check]) -> dict[str, Any]:
    """All checks as one JSON object; without any check nothing has passed."""
    passed = bool(checks) and all(check.passed for check in checks)
    return {"passed": passed, "checks": [asdict(check) for check in checks]}


def check_tokens(folder: Path, path: Path, prompts: Iterable[str]) -> Check:
    """Whether llama.cpp cuts every prompt, and `PROBES`, into the ids that training saw.

    Also that a client which asks for the file's own beginning and end tokens gets none, since
    prompts carry theirs; that the end token is the one that ends a ChatML turn; and that the pad
    token is the folder's. Text that is not in NFC differs where the tokenizer normalizes:
    llama.cpp does not.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*PROBES, *prompts]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with LoadedGguf(path, vocab_only=True) as model:
        found = [model.tokenize(text) for text in texts]
        framed = [model.tokenize(text, add_special=True) for text in texts]
        ends = {"end": model.end_token, "pad": model.pad_token}
    differing = [i for i, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]]
    expected = {
        "end": tokenizer.convert_tokens_to_ids(END),
        "pad": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else -1,
        "differing": 0,
        "doubled": 0,
    }
    measured = {
        **ends,
        "differing": len(differing),
        "doubled": sum(pair[0] != pair[1] for pair in zip(found, framed, strict=True)),
    }
    first = [_shorten(texts[i]) for i in differing[:_SHOWN]]
    return Check(
        f"tokens {path.name}",
        measured == expected,
        {**measured, "first": first},
        {**expected, "prompts": len(texts)},
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"


def check_logits(name: str, comparison: LogitComparison, limits: Limits | None) -> Check:
    """Judge a comparison; a value that is not a number has not passed. Without limits, any number.

    The share of equal top tokens is an estimate: it has failed when as many differing positions
    would come up less than once in a hundred at the limit, so that a short comparison does not
    fail on two near ties, and a long one fails at the limit itself.
    """
    measured = {key: value for key, value in asdict(comparison).items() if key != "greedy"}
    if limits is None:
        passed = comparison.positions > 0 and math.isfinite(comparison.mean_kld)
        return Check(f"logits {name}", passed, measured, {})
    passed = comparison.positions > 0 and (
        comparison.mean_kld <= limits.mean_kld
        and comparison.same_top >= 1 - _allowed(comparison.positions, 1 - limits.same_top)
    )
    return Check(f"logits {name}", passed, measured, asdict(limits))


def _allowed(positions: int, share: float) -> float:
    """Largest share of differing positions that a true share of `share` explains at 99 %."""
    from scipy.stats import binom

    return float(binom.ppf(0.99, positions, share)) / positions


def limits_of(type: str, max_kld: Mapping[str, float] = {}) -> Limits | None:
    """The limits for a GGUF type, or the caller's own; None for a type that has neither."""
    known = LIMITS.get(type)
    if type in max_kld:
        return replace(known or Limits(0.0), mean_kld=max_kld[type])
    return known


def check_generation(name: str, comparison: LogitComparison) -> Check:
    """Whether Hugging Face writes the GGUF's greedy text of `FIXED_PROMPT`, near ties aside.

    No second text need be written: if the likeliest next token is the same after the prompt and
    after each token of the answer, then by induction both write the same answer. Where it is not,
    the reference must have held the other token for as likely, within `TIE_NATS`.
    """
    greedy = comparison.greedy
    passed = greedy is not None and greedy.tokens > 0 and greedy.gap <= TIE_NATS
    return Check(f"text {name}", passed, asdict(greedy) if greedy else {}, {"gap": TIE_NATS})


@contextmanager
def written_answers(
    path: Path, prompts: Sequence[str], max_tokens: int = 32
) -> Iterator[list[Answer]]:
    """The greedy answers of a GGUF, up to `max_tokens` each, as others are compared over them.

    Their log-probabilities wait on disk, 4 bytes a token of the vocabulary for every position.
    """
    with TemporaryDirectory(prefix="kormed-parity-") as folder:
        yield write_answers(path, prompts, max_tokens, Path(folder))


def compare_answers(answers: Sequence[Answer], candidate: Path) -> LogitComparison:
    """Compare a GGUF with the one that wrote `answers`, the reference.

    Both read the same tokens one at a time, so that batching adds no difference of its own.
    """
    with LoadedGguf(candidate, n_ctx=_longest(answers)) as model:
        return _compare(answers, lambda answer: (answer.rows(), model.forced(answer)))


def compare_answers_with_hf(
    base: Path, adapter: Path | None, answers: Sequence[Answer], *, onto: str = "original"
) -> LogitComparison:
    """Compare the GGUF that wrote `answers` with the Hugging Face model in torch, the reference.

    The first answer is that of `FIXED_PROMPT`. The adapter is applied, not merged, so that the
    merge is checked too. torch computes in fp32: in bf16 it adds rounding of its own, and on
    SmolLM2-135M the mean KLD rose from 0.00006 to 0.00097.
    """
    model = load_hf(base, adapter, onto)
    fixed, rows = answers[0], hf_rows(model, answers[0])
    comparison = _compare(
        answers,
        lambda answer: (rows if answer is fixed else hf_rows(model, answer), answer.rows()),
    )
    return replace(comparison, greedy=_greedy_text(base, fixed, rows))


def _greedy_text(base: Path, answer: Answer, reference: Rows) -> GreedyText:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    own = reference.argmax(1)
    same = [*(own == answer.tokens), False]
    agreed = same.index(False)
    return GreedyText(
        written=tokenizer.decode(answer.tokens),
        reference=tokenizer.decode(own[: agreed + 1].tolist()),
        tokens=len(answer.tokens),
        agreed=agreed,
        gap=float((reference.max(1) - reference[range(len(own)), answer.tokens]).max()),
    )


def _longest(answers: Sequence[Answer]) -> int:
    return max(len(answer.prompt) + len(answer.tokens) for answer in answers)


def _compare(
    answers: Sequence[Answer], rows_of: Callable[[Answer], tuple[Rows, Rows]]
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
