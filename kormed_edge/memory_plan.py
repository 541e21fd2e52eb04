"""How much memory a model takes, reckoned before it is loaded, and how much of it a GPU can hold.

Sizes are bytes. The buffers are an estimate, made for a little more than llama.cpp reports.
"""

from dataclasses import dataclass
from pathlib import Path

from kormed_edge.errors import EngineError
from kormed_edge.ggml import GgufHeader, Gpu, gpus

GPU_OVERHEAD = 512 * 2**20
"""What a driver's context and llama.cpp's own pools take of a GPU besides."""
_F16 = 2
_F32 = 4


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much memory it takes."""

    weights: int
    layers: int
    kv_per_token: int
    embedding: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def read(cls, path: Path) -> "ModelShape":
        """From a GGUF's header and size; `EngineError` when the header lacks a key."""
        with GgufHeader(path) as header:
            family = header.text("general.architecture")
            kind = header.text("general.type") or "model"
            if family is None or kind != "model":
                raise EngineError(
                    f"{path}: llama.cpp cannot load it: it holds no model, but type {kind}",
                    "the GGUF of a model",
                    "name one of the models beside it",
                )

            def number(key: str, default: int | None = None) -> int:
                value = header.number(f"{family}.{key}")
                if value is None and default is None:
                    raise EngineError(
                        f"{path}: llama.cpp cannot load it: its header has no {family}.{key}",
                        "the GGUF of a model",
                        "make export",
                    )
                return value if value is not None else default or 0

            layers, width = number("block_count"), number("embedding_length")
            heads = number("attention.head_count", 1)
            kv_heads = header.numbers(f"{family}.attention.head_count_kv")
            if kv_heads is None:
                kv_heads = [number("attention.head_count_kv", heads)] * layers
            key = number("attention.key_length", width // heads)
            value = number("attention.value_length", width // heads)
            return cls(
                weights=path.stat().st_size,
                layers=layers,
                kv_per_token=_F16 * sum(kv_heads) * (key + value),
                embedding=width,
                feed_forward=number("feed_forward_length", 4 * width),
                vocabulary=header.length("tokenizer.ggml.tokens") or 0,
            )


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes with its adapters, and how many of its layers go to GPUs."""

    weights: int
    kv: int
    buffers: int
    layers: int
    gpu_layers: int
    """As llama.cpp counts them: the output layer is one more."""

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.buffers

    @property
    def on_gpus(self) -> int:
        if not self.gpu_layers:
            return 0
        layers = min(self.gpu_layers, self.layers + 1)
        return (self.weights + self.kv) * layers // (self.layers + 1) + self.buffers + GPU_OVERHEAD

    @property
    def in_ram(self) -> int:
        left = max(0, self.layers + 1 - self.gpu_layers)
        return (self.weights + self.kv) * left // (self.layers + 1) + self.buffers


def plan_memory(
    shape: ModelShape,
    *,
    context: int,
    slots: int,
    batch: int,
    shared: int = 0,
    adapters: int = 0,
    gpu_layers: int | None = None,
) -> MemoryPlan:
    """Reckon and check; `EngineError` with numbers when the model cannot fit.

    `shared` are tokens that are held beside those of the slots, once for all. `adapters` is the
    size of their files; `gpu_layers` None takes as many as fit.
    """
    cards = gpus()
    plan = _plan(shape, context * slots + shared, slots, batch, adapters, gpu_layers, cards)
    free = sum(card.free for card in cards)
    what = f"{slots} {'slots' if slots > 1 else 'slot'} of {context:,} tokens"
    if cards and plan.on_gpus > free:
        raise _too_large(plan, plan.on_gpus, free, "GPU memory", what)
    if plan.in_ram > (ram := free_ram()):
        raise _too_large(plan, plan.in_ram, ram, "memory", what)
    return plan


def _plan(
    shape: ModelShape, tokens: int, slots: int, batch: int, adapters: int,
    gpu_layers: int | None, cards: list[Gpu],
) -> MemoryPlan:  # fmt: skip
    cells = -(-tokens // 256) * 256  # llama.cpp rounds up
    activations = batch * _F32 * (2 * shape.feed_forward + 10 * shape.embedding)
    mask = batch * cells * _F16
    logits = 2 * slots * shape.vocabulary * _F32
    sizes = (shape.weights + adapters, cells * shape.kv_per_token, activations + mask + logits)
    if gpu_layers is None:
        room = sum(card.free - GPU_OVERHEAD for card in cards) - sizes[2]
        a_layer = max(1, (sizes[0] + sizes[1]) // (shape.layers + 1))
        gpu_layers = max(0, min(shape.layers + 1, room // a_layer)) if cards else 0
    return MemoryPlan(*sizes, shape.layers, gpu_layers if cards else 0)


def _too_large(plan: MemoryPlan, needed: int, free: int, kind: str, what: str) -> EngineError:
    return EngineError(
        f"the model needs {_gib(needed)} of {kind}: of {_gib(plan.total)} in all, weights are "
        f"{_gib(plan.weights)}, keys and values for {what} {_gib(plan.kv)}, "
        f"buffers {_gib(plan.buffers)}",
        f"at most the {_gib(free)} that are free",
        "fewer slots, a smaller --context, or a smaller quantization",
    )


def free_ram() -> int:
    """Memory that this process may still take: the machine's, or less in a container."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _container_room())
    raise EngineError("/proc/meminfo has no MemAvailable", "Linux 3.14 or newer", "update Linux")


def _container_room(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; its page cache can be dropped, so it counts as free."""
    unlimited = 2**63
    limit = root / "memory.max"
    if not limit.is_file() or (text := limit.read_text().strip()) == "max":
        return unlimited
    used = int((root / "memory.current").read_text())
    stats = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    return int(text) - used + int(stats.get("inactive_file", 0)) + int(stats.get("active_file", 0))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
