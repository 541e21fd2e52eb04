import json
from collections.abc import Callable, Iterator
from math import log
from typing import Any

import numpy as np
import pytest
from random_model import make_random_gguf

from kormed_edge.errors import EngineError
from kormed_edge.llama_context import LlamaContext, Run
from kormed_edge.llama_model import LlamaModel
from kormed_edge.request import Sampling
from kormed_edge.sampling import Candidates, Sampler, log_probabilities, token_logprob

PROMPT = list(range(3, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    loaded = LlamaModel(make_random_gguf(tmp_path_factory.mktemp("random")), {})
    yield loaded
    loaded.close()


@pytest.fixture
def say(model: LlamaModel) -> Iterator[Callable[..., list[int]]]:
    """The tokens that a sampler chooses after the prompt, until the end token."""
    context = LlamaContext(model, cells=256, sequences=1, batch=64, threads=1)

    def generate(length: int = 12, **settings: Any) -> list[int]:
        sampler, said = Sampler(Sampling(**settings), model), list[int]()
        context.forget(0)
        while len(said) < length:
            tokens = [said[-1]] if said else PROMPT
            start = len(PROMPT) + len(said) - 1 if said else 0
            _, [row] = context.decode([Run(0, start, tokens, True)])
            said.append(sampler.sample(context, row))
            if model.ends(said[-1]):
                break
        sampler.close()
        return said

    yield generate
    context.close()


Say = Callable[..., list[int]]


def text(model: LlamaModel, tokens: list[int]) -> str:
    return b"".join(map(model.bytes_of, tokens)).decode("utf-8", "replace")


def test_greedy_of_numpy_and_of_llama_cpp_are_the_same(say: Say) -> None:
    assert say() == say(logit_bias={3: 0.0}) == say(temperature=1.0, top_p=0.0)


def test_biased_token_is_chosen_and_banned_token_is_not(say: Say) -> None:
    assert set(say(logit_bias={77: 1000.0})) == {77}
    plain = say()
    assert plain[0] not in say(logit_bias={plain[0]: float("-inf")})


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "seed": 1}, {"repeat_penalty": 1.5}])
def test_banned_set_is_never_chosen_and_else_changes_nothing(
    say: Say, settings: dict[str, Any]
) -> None:
    plain = say(**settings)
    assert not {*plain[:4]} & {*say(banned=frozenset(plain[:4]), **settings)}
    never = frozenset(range(448)) - {*plain} - {*say(banned=frozenset(plain), **settings)}
    assert settings or say(banned=never) == plain


def test_ban_is_stronger_than_a_bias_and_holds_beside_a_grammar(say: Say) -> None:
    assert 77 not in say(logit_bias={77: 1000.0}, banned=frozenset({77}))
    told = say(1, grammar='root ::= "1" | "2"')
    other = say(1, grammar='root ::= "1" | "2"', banned=frozenset(told))
    assert other != told


def test_repetition_penalty_ends_repetition(say: Say) -> None:
    assert len(set(say(logit_bias={77: 1000.0, 78: 900.0}, repeat_penalty=2.0))) > 1


def test_same_seed_gives_the_same_answer_and_another_seed_another(say: Say) -> None:
    hot = {"temperature": 3.0}
    assert say(seed=1, **hot) == say(seed=1, **hot)
    assert say(seed=1, **hot) != say(seed=2, **hot)
    assert say(**hot) != say(**hot)


def test_min_p_of_one_leaves_the_likeliest_only(say: Say) -> None:
    assert say(temperature=3.0, min_p=1.0) == say()


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "seed": 1}, {"repeat_penalty": 1.5}])
def test_grammar_is_followed_to_its_end(
    say: Say, model: LlamaModel, settings: dict[str, Any]
) -> None:
    said = say(40, grammar='root ::= ("심전도" | "뇌파") "." [1-5]', **settings)
    assert model.ends(said[-1])
    assert text(model, said)[:-1] in ("심전도.", "뇌파.")
    assert text(model, said)[-1] in "12345"


def test_json_schema_gives_json(say: Say, model: LlamaModel) -> None:
    schema = {"type": "object", "properties": {"answer": {"enum": [1, 2]}}, "required": ["answer"]}
    answer = json.loads(text(model, say(60, json_schema=schema, logit_bias={223: -1000.0})))
    assert answer["answer"] in (1, 2)


def test_grammar_leaves_a_choice_that_it_allows(say: Say, model: LlamaModel) -> None:
    [letter] = model.tokenize("k", special=False)
    assert set(say(grammar="root ::= [a-z]+", logit_bias={letter: 1000.0})) == {letter}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"grammar": "root ::= ("}, "cannot read the grammar"),
        ({"grammar": 'other ::= "a"'}, "cannot read the grammar"),
        ({"json_schema": {"$ref": "https://example.org/a"}}, "the JSON schema cannot become"),
        ({"logit_bias": {99_999: 1.0}}, "logit_bias names token 99999"),
        ({"banned": frozenset({1, 99_999})}, "banned names token 99999"),
    ],
)
def test_what_llama_cpp_cannot_use_is_refused(
    model: LlamaModel, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        Sampler(Sampling(**settings), model)


def test_grammar_that_a_bias_makes_impossible_is_an_error_and_no_crash(
    say: Say, model: LlamaModel
) -> None:
    banned = dict.fromkeys(range(model.vocabulary), float("-inf"))
    with pytest.raises(EngineError, match="no token is both likely and allowed"):
        say(grammar='root ::= "a"', logit_bias=banned)


def test_log_probabilities_sum_to_one() -> None:
    log_probs = log_probabilities(np.array([1e4, 1e4, -1e4], np.float32))
    assert log_probs[:2] == pytest.approx([log(0.5)] * 2)
    assert np.exp(log_probs).sum() == pytest.approx(1)


def test_likeliest_tokens_come_first(model: LlamaModel) -> None:
    log_probs = np.full(model.vocabulary, -9.0, np.float32)
    log_probs[[300, 301, 302]] = -1, -3, -2
    entry = token_logprob(log_probs, 301, 2, model)
    assert (entry.id, entry.logprob, entry.piece) == (301, -3.0, model.bytes_of(301))
    assert [(other.id, other.logprob) for other in entry.top] == [(300, -1.0), (302, -2.0)]
    assert token_logprob(log_probs, 301, 0, model).top == ()


def test_candidates_are_all_tokens_or_one() -> None:
    logits = np.array([0.5, 2.0, 1.0], np.float32)
    assert (Candidates(logits).best(), Candidates(logits, 2).best()) == (1, 2)


def test_bias_does_not_stay_in_the_logits(model: LlamaModel) -> None:
    context = LlamaContext(model, cells=64, sequences=1, batch=64, threads=1)
    _, [row] = context.decode([Run(0, 0, PROMPT, True)])
    before = context.logits(row).copy()
    sampler = Sampler(Sampling(logit_bias={5: 1000.0}), model)
    assert sampler.sample(context, row) == 5
    assert (context.logits(row) == before).all()
    sampler.close()
    context.close()


def test_bias_counts_with_a_grammar_too(say: Say, model: LlamaModel) -> None:
    digits = "root ::= [0-9]+"
    [seven] = model.tokenize("7", special=False)
    assert set(say(grammar=digits, logit_bias={seven: 1000.0})) == {seven}
