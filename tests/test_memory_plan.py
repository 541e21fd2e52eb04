from pathlib import Path
from typing import Any

import pytest
from tiny_models import rewrite_gguf

from kormed_edge import memory_plan
from kormed_edge.errors import EngineError
from kormed_edge.ggml import Gpu
from kormed_edge.llama_log import llama_log
from kormed_edge.llama_model import LlamaModel
from kormed_edge.memory_plan import GPU_OVERHEAD, ModelShape, free_ram, plan_memory

GIB = 2**30
SEVEN_B = ModelShape(
    weights=4 * GIB, layers=28, kv_per_token=57_344, embedding=3584, feed_forward=18_944,
    vocabulary=152_064,
)  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the free memory of this machine and of its GPUs, in GiB."""

    def set_free(ram: float, *cards: float) -> None:
        monkeypatch.setattr(memory_plan, "free_ram", lambda: int(ram * GIB))
        found = [Gpu("card", int(card * GIB), int(card * GIB)) for card in cards]
        monkeypatch.setattr(memory_plan, "gpus", lambda: found)

    return set_free


def plan(**settings: Any) -> memory_plan.MemoryPlan:
    return plan_memory(SEVEN_B, **{"context": 4096, "slots": 4, "batch": 512, **settings})


def test_keys_and_values_take_what_llama_cpp_says_they_take(scripted_gguf: Path) -> None:
    shape = ModelShape.read(scripted_gguf)
    planned = plan_memory(shape, context=1950, slots=2, batch=64)
    model, log = LlamaModel(scripted_gguf, {}), list[str]()
    with llama_log(log.append):
        import llama_cpp

        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = 3900
        context = llama_cpp.llama_init_from_model(model.pointer, parameters)
    llama_cpp.llama_free(context)
    model.close()
    [line] = [line for line in log if "KV buffer size" in line]
    assert float(line.split("=")[1].split()[0]) == planned.kv / 2**20 == 1.0


def test_size_is_told_before_loading(machine: Any) -> None:
    machine(8)
    assert plan().kv == 16_384 * 57_344
    assert plan().total == plan().in_ram == plan().weights + plan().kv + plan().buffers
    assert (plan().gpu_layers, plan().on_gpus) == (0, 0)


def test_shared_beginning_takes_its_own_tokens_and_no_slot(machine: Any) -> None:
    machine(8)
    assert plan(shared=256).kv - plan().kv == 256 * 57_344


def test_model_that_cannot_fit_is_refused_with_numbers(machine: Any) -> None:
    machine(4.5)
    with pytest.raises(EngineError) as refusal:
        plan()
    message = str(refusal.value)
    assert "needs 5.04 GiB of memory" in message
    assert "weights are 4.00 GiB, keys and values for 4 slots of 4,096 tokens 0.88 GiB" in message
    assert "at most the 4.50 GiB that are free" in message
    assert "fewer slots, a smaller --context" in message
    assert plan(slots=1, context=1024).in_ram < 4.5 * GIB


def test_gpu_takes_the_whole_model_when_it_fits(machine: Any) -> None:
    machine(4, 16)
    assert plan().gpu_layers == 29
    assert plan().on_gpus == plan().total + GPU_OVERHEAD
    assert plan().in_ram == plan().buffers


def test_gpu_takes_as_many_layers_as_fit_and_memory_the_rest(machine: Any) -> None:
    machine(8, 3)
    half = plan()
    assert 0 < half.gpu_layers < 29
    assert half.on_gpus <= 3 * GIB < half.on_gpus + half.total // 29
    machine(8, 0.25)
    assert plan().gpu_layers == 0


def test_layers_that_the_gpu_cannot_hold_are_refused(machine: Any) -> None:
    machine(8, 3)
    with pytest.raises(EngineError, match=r"GiB of GPU memory[\s\S]*the 3\.00 GiB"):
        plan(gpu_layers=29)


def test_file_without_a_model_s_keys_is_refused(scripted_gguf: Path, tmp_path: Path) -> None:
    keys = {"qwen2.block_count": None}
    broken = rewrite_gguf(scripted_gguf, tmp_path / "broken.gguf", keys=keys)
    with pytest.raises(EngineError, match=r"its header has no qwen2\.block_count"):
        ModelShape.read(broken)


@pytest.mark.parametrize("kind", ["imatrix", "adapter"])
def test_file_that_holds_something_else_is_refused_by_its_type(
    kind: str, scripted_gguf: Path, tmp_path: Path
) -> None:
    rewrite_gguf(scripted_gguf, tmp_path / "other.gguf", keys={"general.type": kind})
    with pytest.raises(EngineError, match=f"it holds no model, but type {kind}"):
        ModelShape.read(tmp_path / "other.gguf")


def test_container_s_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert memory_plan._container_room(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_plan._container_room(tmp_path) > free_ram() > 0
