"""Time and memory of a merge at the shape of Qwen2.5-7B, held against a copy of the same bytes.

    python bench/export_7b.py build FOLDER [--layers 28]   a random base and adapter (15 GB)
    python bench/export_7b.py measure FOLDER [--times 3] [--onto original|nf4] [--keep-hf]

Copy and merge alternate, each in a process of its own, libraries loaded, each ended by an fsync;
the medians and the largest resident set of the merging process are printed. Needs twice the
base's size on disk.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
RANK = 16
SHARD_BYTES = 4 << 30


def build(folder: Path, layers: int) -> None:
    import torch
    from safetensors.torch import save_file

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in shapes(layers).items():
        if sum(t.nbytes for t in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        shards[-1][name] = tensor.normal_(0, 0.02).cpu()
    owners = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, base / file, metadata={"format": "pt"})
        owners |= dict.fromkeys(shard, file)
    write_json(base / "model.safetensors.index.json", {"metadata": {}, "weight_map": owners})
    write_json(base / "config.json", config(layers))
    write_tokenizer(base)
    factors = {}
    for name, shape in shapes(layers).items():
        if name.endswith("_proj.weight"):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{key}.lora_A.weight"] = torch.randn(RANK, shape[1]).mul_(0.01).bfloat16()
            factors[f"{key}.lora_B.weight"] = torch.randn(shape[0], RANK).mul_(0.01).bfloat16()
    save_file(factors, adapter / "adapter_model.safetensors")
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "bias": "none",
        "target_modules": sorted({key.split(".")[-3] for key in factors}),
    }
    write_json(adapter / "adapter_config.json", lora)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    hidden, wide, words = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    key = hidden // SIZES["num_attention_heads"] * SIZES["num_key_value_heads"]
    block = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.k_proj.bias": (key,),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.v_proj.bias": (key,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    ends = {"model.embed_tokens.weight": (words, hidden), "lm_head.weight": (words, hidden)}
    blocks = {
        f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()
    }
    return {**ends, **blocks, "model.norm.weight": (hidden,)}


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **SIZES,
    }


def write_tokenizer(folder: Path) -> None:
    """Bytes and ChatML's tokens, cut like Qwen2.5; the rest of the rows stays unused."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from export.tokenizer import PATTERNS

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS["qwen2"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", special)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def measure(folder: Path, times: int, onto: str, keep_hf: bool) -> None:
    base = folder / "base"
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    found: dict[str, list[tuple[float, float]]] = {"copy": [], "merge": []}
    for _ in range(times):
        for job in found:
            command = [sys.executable, __file__, job, str(folder), "--onto", onto]
            answer = subprocess.run(
                command + (["--keep-hf"] if keep_hf else []), stdout=subprocess.PIPE, check=True
            )
            seconds, resident = map(float, answer.stdout.split())
            found[job].append((seconds, resident))
    medians = {job: statistics.median(s for s, _ in runs) for job, runs in found.items()}
    resident = max(r for _, r in found["merge"])
    print(
        f"{size / 1e9:.2f} GB of weights, {times} times each, {os.cpu_count()} cores, onto {onto}"
    )
    for job, runs in found.items():
        print(f"{job}: median {medians[job]:.1f} s of {', '.join(f'{s:.1f}' for s, _ in runs)}")
    print(f"merge / copy: {medians['merge'] / medians['copy']:.2f}")
    print(f"largest resident set of the merge: {resident / 1e9:.2f} GB")


def copy(folder: Path) -> float:
    target = folder / "copy"
    target.mkdir()
    started = time.monotonic()
    for path in (folder / "base").glob("*.safetensors"):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.monotonic() - started
    shutil.rmtree(target)
    return seconds


def merge(folder: Path, onto: str, keep_hf: bool) -> float:
    import torch  # noqa: F401  (libraries are loaded before the clock starts)
    from transformers import AutoConfig  # noqa: F401

    from export.convert import Provenance, write_gguf

    target = folder / "merged"
    target.mkdir()
    nobody = Provenance(name="random", run="bench", version="0", prompt="")
    started = time.monotonic()
    hf = target / "hf" if keep_hf else None
    written = write_gguf(
        folder / "base", folder / "adapter", target / "m.gguf", nobody, onto=onto, keep_hf=hf
    )
    seconds = time.monotonic() - started
    if not written.merged:
        raise SystemExit("nothing was merged")
    shutil.rmtree(target)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["build", "measure", "copy", "merge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--onto", default="original")
    parser.add_argument("--keep-hf", action="store_true")
    given = parser.parse_args()
    if given.job == "build":
        build(given.folder, given.layers)
    elif given.job == "measure":
        measure(given.folder, given.times, given.onto, given.keep_hf)
    else:
        seconds = (
            copy(given.folder)
            if given.job == "copy"
            else merge(given.folder, given.onto, given.keep_hf)
        )
        # Linux counts in KiB.
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
