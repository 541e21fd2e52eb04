from typing import Any

import pytest

from kormed_edge.errors import EngineError
from kormed_edge.request import Request, Sampling


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"min_p": -0.1}, r"min_p is -0\.1"),
        ({"repeat_penalty": 0.0}, r"repeat_penalty is 0\.0"),
        ({"seed": 2**32 - 1}, "seed is 4294967295"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "both a grammar and a JSON schema"),
    ],
)
def test_sampling_out_of_range_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ids": ()}, "the prompt is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": 101}, "logprobs is 101"),
        ({"stop": ("끝", "")}, "a stop string is empty"),
    ],
)
def test_request_that_makes_no_sense_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        Request(**{"ids": (1,), "max_tokens": 1, **settings})


def test_sampling_is_greedy_by_default() -> None:
    assert Request((1,), 1).sampling == Sampling(temperature=0.0, repeat_penalty=1.0)
