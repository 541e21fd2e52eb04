"""Two forms of a model compared over the greedy answers of one, in a call."""

from collections.abc import Sequence
from pathlib import Path

from export.parity import (
    FIXED_PROMPT,
    LogitComparison,
    compare_answers,
    compare_answers_with_hf,
    written_answers,
)


def compare_logits(
    reference: Path, candidate: Path, prompts: Sequence[str], max_tokens: int
) -> LogitComparison:
    with written_answers(reference, prompts, max_tokens) as answers:
        return compare_answers(answers, candidate)


def compare_with_hf(
    base: Path,
    adapter: Path | None,
    path: Path,
    prompts: Sequence[str],
    max_tokens: int,
    onto: str = "original",
) -> LogitComparison:
    """A GGUF against its Hugging Face model, asked `FIXED_PROMPT` first, as an export does."""
    with written_answers(path, [FIXED_PROMPT, *prompts], max_tokens) as answers:
        return compare_answers_with_hf(base, adapter, answers, onto=onto)
