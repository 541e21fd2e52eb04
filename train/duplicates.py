"""Texts that say the same: normalised text, and an exact search for near duplicates.

Near is a Jaccard similarity of character 5-grams. Two sets that are that similar must share one
of their few rarest members (prefix filtering, Bayardo et al. 2007), so an inverted index of those
finds every pair without comparing all; unlike MinHash it misses none.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

_GRAM = 5
# A decimal point and the signs of comparison stay: 1.5 is not 15, and HBsAg(+) is not HBsAg.
_NOISE = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w.<>=+±≤≥%°↑↓]|_")


def normalised(text: str) -> str:
    """The text without case, width, whitespace and punctuation."""
    return _NOISE.sub("", unicodedata.normalize("NFKC", text).lower())


def near_pairs(texts: Sequence[str], threshold: float = 0.9) -> Iterator[tuple[int, int, float]]:
    """Every pair of texts whose similarity is at least `threshold`, as (index, index, similarity).

    The indices of a pair are in rising order. Texts are compared as they are: normalise first.
    """
    sets = [_grams(text) for text in texts]
    counts = Counter(gram for grams in sets for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(texts)), key=lambda i: (len(sets[i]), i)):
        least = threshold * len(sets[i]) - 1e-9  # so that 0.9 × 70 is not more than 63
        prefix = _prefix(sets[i], counts, math.ceil(least))
        for j in sorted({j for gram in prefix for j in index[gram] if len(sets[j]) >= least}):
            similarity = _jaccard(sets[i], sets[j])
            if similarity >= threshold - 1e-9:
                yield min(i, j), max(i, j), similarity
        for gram in prefix:
            index[gram].append(i)


def _grams(text: str) -> set[str]:
    """A text's set of grams; a text shorter than a gram is one gram."""
    return {text[k : k + _GRAM] for k in range(max(1, len(text) - _GRAM + 1))}


def _prefix(grams: set[str], counts: Counter[str], needed: int) -> list[str]:
    """The rarest grams, so many that a text sharing `needed` grams shares one of these."""
    shared = [gram for gram in grams if counts[gram] > 1]
    alone = len(grams) - len(shared)  # they are the rarest and lead to no other text
    length = max(0, len(grams) - needed + 1 - alone)
    return sorted(shared, key=lambda gram: (counts[gram], gram))[:length] if length else []


def _jaccard(a: set[str], b: set[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
