"""The choice of the next token: llama.cpp's own chain of samplers, one for each request."""

import ctypes
import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kormed_edge.errors import EngineError
from kormed_edge.ggml import last_line
from kormed_edge.llama_context import LlamaContext
from kormed_edge.llama_log import llama_log
from kormed_edge.llama_model import LlamaModel
from kormed_edge.request import Sampling, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PENALTY_WINDOW = 64
_ANY_SEED = 0xFFFFFFFF


class Sampler:
    """Chooses tokens for one request. Made in any thread, then used in one; `close` frees it.

    The chain is bias, repetition penalty, top-p, min-p, temperature, chance. A grammar stands
    beside it: going through all 152,000 tokens costs it 15 ms, so it is asked about the token that
    the chain chose, and only when it refuses that one does it sort out the others first. The
    distribution is the same.
    """

    def __init__(self, sampling: Sampling, model: LlamaModel) -> None:
        """Raises `EngineError` when a grammar, a JSON schema or a token is not valid."""
        self._model = model
        self._chain: Any = None
        self._grammar: Any = None
        self._bias = _bias(sampling, model)
        self._banned = sampling.banned
        if sampling.grammar is not None or sampling.json_schema is not None:
            self._grammar = _grammar(sampling, model)
        biased = sampling.logit_bias or sampling.banned
        if not _is_greedy(sampling) or (self._grammar and biased):
            self._chain = _chain(sampling, model)

    def sample(self, context: LlamaContext, row: int) -> int:
        """The next token after the given row of logits; it is part of the answer from now on."""
        if self._grammar is not None:
            return self._sample_by_grammar(context.logits(row))
        if self._chain is not None:
            return context.sample(self._chain, row)
        return self._best(context.logits(row))

    def _best(self, logits: "NDArray[np.float32]") -> int:
        """The largest logit with the bias; numpy finds it ten times as fast as a chain.

        Banned tokens are only taken out where one of them would win, which is seldom.
        """
        ids, values = self._bias
        kept = logits[ids]  # a copy: the logits are read again after this
        logits[ids] += values
        token = int(logits.argmax())
        if token in self._banned:
            others = logits.copy()
            others[_as_array(self._banned)] = -float("inf")
            token = int(others.argmax())
        logits[ids] = kept
        return token

    def _sample_by_grammar(self, logits: "NDArray[np.float32]") -> int:
        import llama_cpp

        token = self._choose(Candidates(logits))
        if not Candidates(logits, token).allowed_by(self._grammar):
            candidates = Candidates(logits)
            if not candidates.allowed_by(self._grammar):
                raise EngineError("the grammar allows no token here", "a grammar that can go on")
            token = self._choose(candidates)
        # ggml ends the process when a grammar is given a token that it does not allow.
        if not Candidates(logits, token).allowed_by(self._grammar):
            raise EngineError(
                "no token is both likely and allowed by the grammar",
                "a grammar that the bias leaves possible",
                "change one of them",
            )
        if not self._model.ends(token):
            llama_cpp.llama_sampler_accept(self._grammar, token)
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, candidates: "Candidates") -> int:
        return candidates.best() if self._chain is None else candidates.chosen_by(self._chain)

    def close(self) -> None:
        import llama_cpp

        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None


class Candidates:
    """Tokens with their logits as llama.cpp's samplers take them: all, or a single one."""

    def __init__(self, logits: "NDArray[np.float32]", token: int | None = None) -> None:
        import llama_cpp
        import numpy as np

        ids = np.arange(len(logits)) if token is None else np.array([token])
        fields = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._data = np.zeros(len(ids), fields)
        self._data["id"], self._data["logit"] = ids, logits[ids]
        pointer = ctypes.POINTER(llama_cpp.llama_token_data)
        self._array = llama_cpp.llama_token_data_array(
            ctypes.cast(self._data.ctypes.data, pointer), len(ids), -1, False
        )

    def allowed_by(self, grammar: Any) -> bool:
        """Whether a grammar allows at least one of the tokens; the others become impossible."""
        import llama_cpp
        import numpy as np

        llama_cpp.llama_sampler_apply(grammar, ctypes.byref(self._array))
        return bool(np.isfinite(self._data["logit"]).any())

    def chosen_by(self, chain: Any) -> int:
        import llama_cpp

        llama_cpp.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._array.data[self._array.selected].id)

    def best(self) -> int:
        return int(self._data["id"][self._data["logit"].argmax()])


def log_probabilities(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Natural logarithms of the probabilities of all tokens."""
    import numpy as np

    shifted = logits - logits.max()
    log_probs: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(dtype=np.float64))
    return log_probs


def token_logprob(
    log_probs: "NDArray[np.float32]", token: int, top: int, model: LlamaModel
) -> TokenLogprob:
    """A token's log-probability, and those of the `top` likeliest tokens, likeliest first."""

    def one(id: int, others: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(id, model.bytes_of(id), float(log_probs[id]), others)

    if not top:  # ranking 152,000 tokens takes 40 times as long as looking one up
        return one(token)
    best = log_probs.argpartition(-top)[-top:]
    ranked = best[(-log_probs[best]).argsort(kind="stable")]
    return one(token, tuple(one(int(id)) for id in ranked))


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature == 0 and sampling.repeat_penalty == 1


def _chain(sampling: Sampling, model: LlamaModel) -> Any:
    import llama_cpp

    parts: list[Any] = []
    if sampling.logit_bias or sampling.banned:
        bias = {**sampling.logit_bias, **dict.fromkeys(sampling.banned, -float("inf"))}
        pairs = [llama_cpp.llama_logit_bias(*pair) for pair in bias.items()]
        biases = (llama_cpp.llama_logit_bias * len(pairs))(*pairs)
        parts.append(llama_cpp.llama_sampler_init_logit_bias(model.vocabulary, len(pairs), biases))
    if sampling.repeat_penalty != 1:
        parts.append(
            llama_cpp.llama_sampler_init_penalties(
                model.vocabulary, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0
            )
        )
    if sampling.temperature == 0:
        parts.append(llama_cpp.llama_sampler_init_greedy())
    else:
        seed = _ANY_SEED if sampling.seed is None else sampling.seed
        parts += [
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(seed),
        ]
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in parts:
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain


def _require_known(name: str, ids: Iterable[int], model: LlamaModel) -> None:
    outside = [id for id in ids if not 0 <= id < model.vocabulary]
    if outside:
        raise EngineError(
            f"{name} names token {outside[0]}",
            f"ids below {model.vocabulary}",
            "take the ids from this model's tokenizer",
        )


def _bias(sampling: Sampling, model: LlamaModel) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
    """Biased tokens, and what is added to their logits."""
    import numpy as np

    bias, banned = sampling.logit_bias, sampling.banned
    _require_known("logit_bias", bias, model)
    _require_known("banned", (min(banned), max(banned)) if banned else (), model)
    return np.array([*bias], np.int64), np.array([*bias.values()], np.float32)


@lru_cache(maxsize=8)
def _as_array(tokens: frozenset[int]) -> "NDArray[np.int64]":
    import numpy as np

    return np.fromiter(tokens, np.int64, len(tokens))


def _grammar(sampling: Sampling, model: LlamaModel) -> Any:
    import llama_cpp

    text = sampling.grammar if sampling.grammar is not None else _gbnf(sampling.json_schema)
    log: list[str] = []
    with llama_log(log.append):
        grammar = llama_cpp.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if not grammar:
        raise EngineError(
            f"llama.cpp cannot read the grammar: {last_line(log)}",
            "GBNF with a rule named root",
            "see llama.cpp's grammars/README.md",
        )
    return grammar


def _gbnf(schema: Any) -> str:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text: str = json_schema_to_gbnf(json.dumps(dict(schema)))
    except Exception as error:  # the converter raises what it meets: KeyError, AssertionError, ...
        raise EngineError(
            f"the JSON schema cannot become a grammar: {error!r}",
            "a schema that llama-cpp-python knows, without references to other files",
            "make the schema simpler",
        ) from None
    return text
