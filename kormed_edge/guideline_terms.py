"""What a text is searched by: its content morphemes, and the letter pairs of its longer nouns.

Kiwi cuts the same compound in two ways, 충수염 here and 충수 + 염 there, and knows few names of
drugs. The pairs of letters of a run of nouns meet all the same. `bench/retrieval.py` has the
numbers.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any
from unicodedata import normalize

TERMS_VERSION = "1"
PAIRED_FROM = 3
"""Letters from which a run of nouns gives its pairs too."""
_NOUNS = {"NNG", "NNP", "XR", "SL", "SH"}
_CONTENT = _NOUNS | {"VV", "VA", "SN", "NR"}
_JOINED = _NOUNS | {"XPN", "XSN"}
_WORD = re.compile(r"[^\W_]+")
_ONE_AT_A_TIME = threading.Lock()


def analysis() -> str:
    """What terms depend on: an index and its questions must have been cut alike."""
    return f"terms {TERMS_VERSION}, kiwipiepy_model {version('kiwipiepy_model')}"


def find_terms(texts: Sequence[str]) -> list[list[str]]:
    """The terms of each text in its order, letters and digits only. From any thread."""
    ready = [normalize("NFKC", text).lower() for text in texts]
    with _ONE_AT_A_TIME:
        # "rule" needs no model of letters, which the edge image leaves out.
        found = [list(tokens) for tokens in _kiwi().tokenize(ready, oov_handling="rule")]
    return [[word for term in _terms(tokens) for word in _WORD.findall(term)] for tokens in found]


def _terms(tokens: Iterable[Any]) -> Iterator[str]:
    run, end = "", -1
    for token in tokens:
        tag = token.tag.partition("-")[0]
        if tag in _CONTENT:
            yield token.form
        if tag not in _JOINED or token.start != end:
            yield from _pairs(run)
            run = ""
        if tag in _JOINED:
            run, end = run + token.form, token.start + token.len
    yield from _pairs(run)


def _pairs(run: str) -> Iterator[str]:
    if len(run) >= PAIRED_FROM:
        yield from (run[i : i + 2] for i in range(len(run) - 1))


@cache
def _kiwi() -> Any:
    """One Kiwi for the process: a second and some 300 MB. The dictionary of names that consist of
    several words would take 180 MB more and finds nothing more."""
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1, load_multi_dict=False)
