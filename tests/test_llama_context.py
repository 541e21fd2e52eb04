from collections.abc import Iterator

import numpy as np
import pytest
from random_model import make_random_gguf

from kormed_edge.llama_context import Batch, LlamaContext, Run
from kormed_edge.llama_model import LlamaModel

IDS = list(range(3, 43))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    loaded = LlamaModel(make_random_gguf(tmp_path_factory.mktemp("random")), {})
    yield loaded
    loaded.close()


@pytest.fixture
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    made = LlamaContext(model, cells=512, sequences=3, batch=64, threads=1)
    yield made
    made.close()


def last_logits(context: LlamaContext, *runs: Run) -> list[np.ndarray]:
    status, rows = context.decode(runs)
    assert status == 0
    return [context.logits(row).copy() for row, run in zip(rows, runs, strict=True) if run.output]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, atol=0.05)) and a.argmax() == b.argmax()


def test_prompt_in_parts_gives_the_logits_of_the_whole(context: LlamaContext) -> None:
    [whole] = last_logits(context, Run(0, 0, IDS, True))
    last_logits(context, Run(1, 0, IDS[:30], False))
    [parts] = last_logits(context, Run(1, 30, IDS[30:], True))
    assert close(parts, whole)


def test_sequences_of_one_step_do_not_see_one_another(context: LlamaContext) -> None:
    [alone] = last_logits(context, Run(0, 0, IDS, True))
    first, second = last_logits(context, Run(1, 0, IDS[::-1][:20], True), Run(2, 0, IDS, True))
    assert close(second, alone)
    assert not close(first, alone)


def test_shared_beginning_counts_as_if_it_were_computed(context: LlamaContext) -> None:
    [whole] = last_logits(context, Run(0, 0, IDS, True))
    context.share(0, 1, 30)
    context.forget(0)
    [shared] = last_logits(context, Run(1, 30, IDS[30:], True))
    assert close(shared, whole)


def test_what_is_forgotten_is_not_seen(context: LlamaContext) -> None:
    [whole] = last_logits(context, Run(0, 0, IDS, True))
    context.forget(0, 30)
    last_logits(context, Run(0, 30, IDS[::-1][:10], True))
    context.forget(0, 30)
    [again] = last_logits(context, Run(0, 30, IDS[30:], True))
    assert close(again, whole)


def test_more_tokens_than_the_cache_has_is_a_status_and_no_crash(context: LlamaContext) -> None:
    for start in range(0, 512, 64):
        assert context.decode([Run(0, start, [5] * 64, False)])[0] == 0
    assert context.decode([Run(1, 0, [5], True)])[0] != 0


def test_batch_gives_the_row_of_every_run_s_last_token() -> None:
    batch = Batch(8)
    assert batch.fill([Run(2, 5, [7, 8, 9], True), Run(0, 3, [4], False)]) == [2, 3]
    struct = batch.struct
    assert struct.n_tokens == 4
    assert [struct.token[i] for i in range(4)] == [7, 8, 9, 4]
    assert [struct.pos[i] for i in range(4)] == [5, 6, 7, 3]
    assert [struct.seq_id[i][0] for i in range(4)] == [2, 2, 2, 0]
    assert [struct.logits[i] for i in range(4)] == [0, 0, 1, 0]
