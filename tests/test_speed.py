from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from statistics import fmean

import pytest
from gguf import GGUFReader

from kormed_edge.engine import Engine
from kormed_edge.errors import EngineError
from kormed_edge.prompts import END, SYSTEM_MESSAGE
from kormed_edge.speed import (
    Asked,
    Served,
    alone,
    endless,
    ends,
    percentile,
    read_bandwidth,
    serve,
    synthetic_question,
    weights_per_token,
)


@pytest.fixture(scope="module")
def engine(scripted_gguf: Path) -> Iterator[Engine]:
    with Engine(
        scripted_gguf, context=1024, slots=2, threads=1, gpu_layers=0, prefix=[SYSTEM_MESSAGE]
    ) as engine:
        yield engine


def test_every_client_gets_all_its_tokens(engine: Engine) -> None:
    served = serve(engine, 3, 2, 5)
    assert served.clients == 3
    assert [one.completion for one in served.asked] == [5] * 6
    assert len(served.firsts) == 6


def test_the_system_prompt_is_shared_between_clients(engine: Engine) -> None:
    whole = engine.encode_messages([SYSTEM_MESSAGE])
    opening = engine.encode_messages([])
    for one in serve(engine, 2, 2, 3).asked:
        assert len(whole) - len(opening) <= one.cached < one.prompt


def test_alone_every_prompt_is_read_whole(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda one: asked.append(submit(one)) or asked[-1])
    speed = alone(engine, 4)
    assert speed.prefill > 0
    assert speed.decode > 0
    assert [answer.completion_tokens for answer in asked] == [4, 4, 4]
    turn = engine.encode(f"{SYSTEM_MESSAGE['content']}")
    assert all(answer.cached_tokens < len(turn) / 10 for answer in asked)


def test_no_end_token_can_be_chosen(engine: Engine) -> None:
    assert engine.encode(END)[0] in ends(engine)
    bias = endless(engine, 0, 3).sampling.logit_bias
    assert dict(bias) == dict.fromkeys(ends(engine), float("-inf"))


def test_an_error_of_a_client_is_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = endless(engine, 0, 3)
    monkeypatch.setattr(
        "kormed_edge.speed.endless", lambda *_: replace(request, adapter="none such")
    )
    with pytest.raises(EngineError, match="none such"):
        serve(engine, 2, 1, 3)


def test_questions_differ_by_seed_and_are_the_same_for_one() -> None:
    assert synthetic_question(7) == synthetic_question(7)
    assert len({synthetic_question(seed) for seed in range(50)}) == 50
    assert synthetic_question(7).splitlines()[-1].startswith("5) ")


def test_rate_and_shared_part_are_over_all_requests() -> None:
    served = Served(2, 4.0, (Asked(0.1, 10, 5, 8), Asked(0.3, 30, 5, 8)))
    assert served.rate == 4
    assert served.shared == 0.25
    assert fmean(served.firsts) == 0.2


def test_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(list(range(100, 0, -1)), 95) == 95
    assert percentile([3.0, 1.0], 95) == 3
    assert percentile([3.0, 1.0], 0) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_token_leave_out_an_embedding_table(
    scripted_gguf: Path, tmp_path: Path, tied: bool
) -> None:
    sizes = {t.name: int(t.n_bytes) for t in GGUFReader(scripted_gguf).tensors}
    path = Path(copyfile(scripted_gguf, tmp_path / "m.gguf"))
    wanted = sum(sizes.values()) - sizes["token_embd.weight"]
    if tied:
        # As if the table were the output layer: a header of the same length without one.
        path.write_bytes(path.read_bytes().replace(b"output.weight", b"nobody.weight", 1))
        wanted = sum(sizes.values())
    assert 0 <= weights_per_token(path) - wanted < 32 * len(sizes)  # tensors are aligned


def test_bandwidth_is_of_every_thread_together() -> None:
    assert read_bandwidth(2, 2**20, times=1) > 0
