"""Good exports broken on purpose: what each fault is, and which checks catch it.

`SABOTAGES` is the whole story, one line a fault. "manifest" is named only where the file changed
after its export: a manifest that is made of a wrong file agrees with it.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from drift import compare_with_hf
from tiny_models import edit_json, make_adapter, make_base, rewrite_gguf

from export import architectures, logits, parity
from export.convert import Provenance, write_gguf
from export.keys import check_keys
from export.merge import LoraDelta
from export.parity import check_generation, check_logits, check_tokens, limits_of
from export.readback import Check, check_file, check_weights
from kormed_edge.errors import ExportError
from kormed_edge.manifest import Manifest, check_files, new_manifest

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="당신은 의학 어시스턴트입니다.")
PROMPTS = ["심전도에서 ", "The patient"]
# Seeds whose random models hold no near tie on these prompts.
SEEDS = {"qwen2": 2, "llama": 1}
# Checks that say the same on every machine; the other two compute, and only have to notice.
EXACT = {"file", "keys", "weights", "tokens"}

Tensors = dict[str, torch.Tensor]
Sabotage = Callable[["Export", Path, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Export:
    """A base, its adapter, and a good bf16 GGUF of both."""

    base: Path
    adapter: Path
    path: Path
    shapes: dict[str, tuple[int, ...]]

    def caught_by(self, path: Path) -> set[str]:
        """Names of the checks that a file does not pass; an `ExportError` ends an export too."""
        compare = cache(lambda: compare_with_hf(self.base, self.adapter, path, PROMPTS, 16))
        checks: dict[str, Callable[[], Check]] = {
            "file": lambda: check_file(path, self.shapes),
            "keys": lambda: check_keys(self.base, path),
            "weights": lambda: check_weights(self.base, self.adapter, "original", path),
            "tokens": lambda: check_tokens(self.base, path, PROMPTS),
            "logits": lambda: check_logits("bf16", compare(), limits_of("BF16")),
            "text": lambda: check_generation("bf16", compare()),
        }
        return {name for name, check in checks.items() if not passes(check)}


def passes(check: Callable[[], Check]) -> bool:
    try:
        return check().passed
    except ExportError:
        return False


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Export]]:
    """A good export of each family; its Hugging Face model is loaded once."""
    good = {}
    for family, seed in SEEDS.items():
        folder = tmp_path_factory.mktemp(family)
        base = make_base(folder / "base", family, seed=seed)
        adapter = make_adapter(base, folder / "adapter")
        written = write_gguf(base, adapter, folder / "gguf" / "tiny.gguf", NOBODY)
        good[family] = Export(base, adapter, written.path, written.shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "load_hf", cache(logits.load_hf))
        yield good


def manifest_of(good: Export) -> Manifest:
    nothing: dict[str, Any] = {"settings": {}, "inputs": {}, "base": None, "seed": None}
    return new_manifest(good.path.parent, stage="gguf", run="r", seconds=0.0, **nothing)


def caught_by_manifest(good: Export, path: Path) -> set[str]:
    """Whether the good export's manifest notices that another file lies in its place."""
    manifest = manifest_of(good)
    stage = shutil.copytree(good.path.parent, path.parent / "gguf")
    assert check_files(stage, manifest) == []
    shutil.copy(path, stage / good.path.name)
    return {"manifest"} if check_files(stage, manifest) else set()


def edited(change: Callable[[Tensors], object] = dict, **keys: Any) -> Sabotage:
    """The good file with other tensors or keys; in a key, two underscores stand for a dot."""
    dotted = {name.replace("__", "."): value for name, value in keys.items()}
    return lambda good, target, _patch: rewrite_gguf(good.path, target, change, dotted)


def exported(owner: Any = None, name: str = "", other: Any = None, **settings: Any) -> Sabotage:
    """Another export, with one function replaced or other settings in adapter_config.json."""

    def sabotage(good: Export, target: Path, patch: pytest.MonkeyPatch) -> None:
        adapter = shutil.copytree(good.adapter, target.parent / "adapter")
        edit_json(adapter / "adapter_config.json", **settings)
        if owner:
            patch.setattr(owner, name, other)
        write_gguf(good.base, adapter, target, NOBODY)

    return sabotage


def damaged(change: Callable[[bytes], bytes]) -> Sabotage:
    """The good file with other bytes, as a bad disk or a bad copy leaves it."""
    return lambda good, target, _patch: target.write_bytes(change(good.path.read_bytes()))


def swap(first: str, second: str) -> Callable[[Tensors], object]:
    return lambda t: t.update({first: t[second], second: t[first]})


def alter(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda t: t.update({name: change(t[name])})


def scale(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: (t.float() * share).to(t.dtype)


def cut(rows: int) -> Callable[[Tensors], object]:
    words = ("token_embd.weight", "output.weight")
    return lambda t: t.update({name: t[name][:rows] for name in words})


def one_byte(place: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def in_name(content: bytes) -> bytes:
    return one_byte(content.index(NOBODY.name.encode()))(content)


def twice(delta: LoraDelta, name: str, weight: torch.Tensor) -> torch.Tensor:
    return merged(delta, name, merged(delta, name, weight))


def once_less(delta: LoraDelta, name: str, weight: torch.Tensor) -> torch.Tensor:
    """All but one weight, which is counted as merged."""
    changed = merged(delta, name, weight)
    return weight if name == "model.layers.1.mlp.up_proj.weight" else changed


def onto_nf4(good: Export, target: Path, _patch: pytest.MonkeyPatch) -> None:
    """Merged into 4-bit weights, and recorded as merged into the original ones."""
    written = write_gguf(good.base, good.adapter, target.with_name("nf4"), NOBODY, onto="nf4")
    rewrite_gguf(written.path, target, keys={"kormed.onto": "original"})


def without_adapter(good: Export, target: Path, _patch: pytest.MonkeyPatch) -> None:
    write_gguf(good.base, None, target, NOBODY)


merged = LoraDelta.merged
NUMBERS = {"weights", "logits", "text"}
ALL = EXACT | NUMBERS
# What is broken, in an export of which family, and who notices.
SABOTAGES: dict[str, tuple[str, Sabotage, set[str]]] = {
    "two tensors swapped": (
        "qwen2",
        edited(swap("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")),
        NUMBERS,
    ),
    "one tensor transposed": (
        "qwen2",
        edited(alter("blk.0.attn_output.weight", torch.t)),
        NUMBERS,
    ),
    "one layer times 1.02": (
        "qwen2",
        edited(alter("blk.1.ffn_down.weight", scale(1.02))),
        {"weights"},
    ),
    "two rows of the embedding swapped": (
        "qwen2",
        edited(alter("token_embd.weight", lambda t: t[[*range(40), 41, 40, *range(42, len(t))]])),
        {"weights"},
    ),
    "a bias dropped": (
        "qwen2",
        edited(lambda t: t.pop("blk.1.attn_v.bias")),
        {"file", "weights"},
    ),
    "a bias zero": (
        "qwen2",
        edited(alter("blk.1.attn_v.bias", torch.zeros_like)),
        {"weights"},
    ),
    "the head dropped, so that the embedding serves as one": (
        "qwen2",
        edited(lambda t: t.pop("output.weight")),
        {"file"} | NUMBERS,
    ),
    "a head for a model whose embedding serves as one": (
        "llama",
        edited(lambda t: t.update({"output.weight": t["token_embd.weight"].flip(0)})),
        {"file"} | NUMBERS,
    ),
    "rope base wrong": (
        "qwen2",
        edited(qwen2__rope__freq_base=1e6),
        {"keys", "logits", "text"},
    ),
    "rope scaled": (
        "qwen2",
        edited(qwen2__rope__scaling__type="linear", qwen2__rope__scaling__factor=2.0),
        {"keys", "logits", "text"},
    ),
    "head count wrong": (
        "qwen2",
        edited(qwen2__attention__head_count=8, qwen2__attention__head_count_kv=4),
        {"keys", "logits", "text"},
    ),
    "norm's epsilon wrong": (
        "qwen2",
        edited(qwen2__attention__layer_norm_rms_epsilon=1e-5),
        {"keys"},
    ),
    "end token wrong": (
        "qwen2",
        edited(tokenizer__ggml__eos_token_id=0),
        {"tokens"},
    ),
    "pad token is the end token": (
        "qwen2",
        edited(tokenizer__ggml__padding_token_id=2),
        {"tokens"},
    ),
    "a beginning token before every text": (
        "qwen2",
        edited(tokenizer__ggml__bos_token_id=1, tokenizer__ggml__add_bos_token=True),
        {"keys", "tokens"},
    ),
    "text cut by another tokenizer's rule": (
        "qwen2",
        edited(tokenizer__ggml__pre="gpt-2"),
        {"keys"},  # and "tokens" with a vocabulary of real size, which has merges across the cuts
    ),
    "two tokens swapped": (
        "qwen2",
        edited(tokenizer__ggml__tokens=lambda t: [*t[:40], t[41], t[40], *t[42:]]),
        {"keys", "tokens"},
    ),
    "merges dropped": (
        "qwen2",
        edited(tokenizer__ggml__merges=lambda merges: merges[:50]),
        {"keys", "tokens"},
    ),
    "vocabulary shortened": (
        "qwen2",
        edited(
            cut(400),
            tokenizer__ggml__tokens=lambda tokens: tokens[:400],
            tokenizer__ggml__token_type=lambda types: types[:400],
        ),
        ALL,
    ),
    "chat template with one more space": (
        "qwen2",
        edited(tokenizer__chat_template=lambda template: template + " "),
        {"keys"},
    ),
    "permutation of q and k skipped": (
        "llama",
        exported(architectures, "reorder", lambda _architecture, _name, tensor: tensor),
        NUMBERS,
    ),
    "adapter merged twice": ("qwen2", exported(LoraDelta, "merged", twice), NUMBERS),
    "adapter left out": ("qwen2", without_adapter, NUMBERS),
    "adapter left out of one weight": (
        "qwen2",
        exported(LoraDelta, "merged", once_less),
        {"weights"},
    ),
    "alpha/r wrong": ("qwen2", exported(lora_alpha=16), NUMBERS),
    "merged into 4-bit weights": ("qwen2", onto_nf4, NUMBERS),
    "file truncated": ("qwen2", damaged(lambda content: content[:-3000]), ALL | {"manifest"}),
    "one byte flipped in a weight": ("qwen2", damaged(one_byte(-4000)), {"weights", "manifest"}),
    "one byte flipped in a name": ("qwen2", damaged(in_name), {"manifest"}),
}


@pytest.mark.parametrize("family", SEEDS)
def test_good_export_passes_every_check(exports: dict[str, Export], family: str) -> None:
    assert exports[family].caught_by(exports[family].path) == set()


@pytest.mark.parametrize("fault", SABOTAGES)
def test_sabotage_is_caught(
    exports: dict[str, Export], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, sabotage, expected = SABOTAGES[fault]
    good, target = exports[family], tmp_path / "tiny.gguf"
    with monkeypatch.context() as patch:
        sabotage(good, target, patch)
    caught = good.caught_by(target)
    assert caught & EXACT == expected & EXACT
    assert expected <= caught | caught_by_manifest(good, target)


def test_every_fault_is_one_that_some_check_must_catch() -> None:
    assert all(expected for _, _, expected in SABOTAGES.values())
    assert set().union(*(expected for _, _, expected in SABOTAGES.values())) == ALL | {"manifest"}
