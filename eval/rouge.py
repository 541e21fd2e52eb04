"""ROUGE-1, ROUGE-2 and ROUGE-L (F1) under three tokenizers.

- `rouge_ko`, Kiwi's morphemes: the score to trust. Particles and endings are tokens of their own,
  so 폐렴이 and 폐렴을 share 폐렴.
- `rouge_char`, characters without whitespace: needs no dictionary, blind to spacing.
- `rouge_paper`, rouge-score's default tokenizer: for comparison with the paper only. It keeps
  [a-z0-9] and no Hangul at all, so "4) 메타콜린 기관지유발검사" against "4) 폐 확산능 검사" scores
  ROUGE-1 = ROUGE-L = 1 and ROUGE-2 = 0 (the one token "4"), and two equal Hangul texts score 0.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_VERSION = "1"

Family = Literal["ko", "char", "paper"]
Tokens = list[str]

# Kiwi takes "4)" for one bullet symbol, which would never meet "4." or "4".
_MARKER = re.compile(r"(?m)^\s*([1-9])[).](?!\d)")
_PUNCTUATION = {"SF", "SP", "SS", "SSO", "SSC", "SE", "SO", "SW", "SB"}


def rouge_ko(prediction: str, reference: str) -> dict[str, float]:
    """F1 over Kiwi's morphemes, punctuation left out; keys rouge1, rouge2, rougeL."""
    return rouge_batch("ko", [(prediction, reference)])[0]


def rouge_char(prediction: str, reference: str) -> dict[str, float]:
    """F1 over characters without whitespace; keys rouge1, rouge2, rougeL."""
    return rouge_batch("char", [(prediction, reference)])[0]


def rouge_paper(prediction: str, reference: str) -> dict[str, float]:
    """The paper's ROUGE, which sees no Hangul: for comparison only, never as the result."""
    return rouge_batch("paper", [(prediction, reference)])[0]


def rouge_batch(family: Family, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    """Scores of (prediction, reference) pairs; each distinct text is tokenized once."""
    from rouge_score.rouge_scorer import RougeScorer

    tokens = _tokenized(family, [text for pair in pairs for text in pair])
    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=_Looked(tokens))
    return [_scores(scorer, tokens, *pair) for pair in pairs]


def rouge_versions() -> dict[str, str]:
    """What a ROUGE score depends on; morphemes change with Kiwi's model."""
    packages = ("rouge-score", "kiwipiepy", "kiwipiepy_model")
    return {"rouge": ROUGE_VERSION, **{name: version(name) for name in packages}}


class _Looked:
    """A rouge-score tokenizer that looks up what was tokenized before."""

    def __init__(self, tokens: Mapping[str, Tokens]) -> None:
        self._tokens = tokens

    def tokenize(self, text: str) -> Tokens:
        return self._tokens[text]


def _scores(
    scorer: "RougeScorer", tokens: Mapping[str, Tokens], prediction: str, reference: str
) -> dict[str, float]:
    grams = scorer.score(target=reference, prediction=prediction)
    values = {name: float(score.fmeasure) for name, score in grams.items()}
    return {**values, "rougeL": _lcs_f1(tokens[prediction], tokens[reference])}


def _lcs_f1(prediction: Tokens, reference: Tokens) -> float:
    from rouge_score.scoring import fmeasure

    if not prediction or not reference:
        return 0.0
    length = _lcs_length(prediction, reference)
    return float(fmeasure(length / len(prediction), length / len(reference)))


def _lcs_length(a: Tokens, b: Tokens) -> int:
    """Longest common subsequence, bit-parallel (Hyyrö 2004).

    rouge-score fills the table cell by cell in Python, which takes most of a scoring run on
    characters; this gives the same number from one addition per token.
    """
    masks: dict[str, int] = {}
    for i, token in enumerate(a):
        masks[token] = masks.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        hit = row & masks.get(token, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


def _tokenized(family: Family, texts: Iterable[str]) -> dict[str, Tokens]:
    distinct = list(dict.fromkeys(texts))
    if family == "ko":
        return dict(zip(distinct, _morphemes(distinct), strict=True))
    split: Callable[[str], Tokens] = _characters if family == "char" else _default
    return {text: split(text) for text in distinct}


def _default(text: str) -> Tokens:
    from rouge_score.tokenizers import DefaultTokenizer

    return list(DefaultTokenizer().tokenize(text))


def _characters(text: str) -> Tokens:
    return list(re.sub(r"\s", "", unicodedata.normalize("NFKC", text).lower()))


def _morphemes(texts: Sequence[str]) -> Iterable[Tokens]:
    ready = [_MARKER.sub(r"\1 ", unicodedata.normalize("NFKC", text).lower()) for text in texts]
    for found in _kiwi().tokenize(ready):
        yield [token.form for token in found if token.tag not in _PUNCTUATION]


@cache
def _kiwi() -> Any:
    """One Kiwi for the process: its model takes a second and some 500 MB to load."""
    from kiwipiepy import Kiwi

    return Kiwi()
