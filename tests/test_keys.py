import json
from pathlib import Path
from typing import Any

import pytest
from test_convert import MODELS
from tiny_models import CHAT_TEMPLATE, edit_json, make_base

from export.convert import Provenance, write_gguf
from export.keys import check_keys
from export.readback import Check

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


@pytest.fixture
def path(base: Path, tmp_path: Path) -> Path:
    return write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path


def differing(check: Check) -> set[str]:
    assert not check.passed
    return {key for key, value in check.expected.items() if check.measured[key] != value}


@pytest.mark.parametrize("name", MODELS)
def test_file_s_own_base_passes(name: str, tmp_path: Path) -> None:
    family, settings = MODELS[name]
    base = make_base(tmp_path / "base", family, **settings)
    check = check_keys(base, write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path)
    assert check.measured == check.expected
    assert check.passed
    assert json.loads(json.dumps(check.measured)) == check.measured


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"max_position_embeddings": 512}, {"context_length"}),
        ({"rms_norm_eps": 1e-5}, {"attention.layer_norm_rms_epsilon"}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope.freq_base"}),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            {"rope.scaling.type", "rope.scaling.factor"},
        ),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 4},
            {"attention.head_count", "attention.head_count_kv"}
            | {"attention.key_length", "attention.value_length", "rope.dimension_count"},
        ),
        ({"intermediate_size": 97}, {"feed_forward_length"}),
        ({"vocab_size": 449}, {"vocab_size", "embedding rows", "tokens"}),
    ],
)
def test_other_constant_of_the_base_is_named(
    base: Path, path: Path, changes: dict[str, Any], keys: set[str]
) -> None:
    edit_json(base / "config.json", **changes)
    plain = {"embedding rows", "tokens"}
    assert differing(check_keys(base, path)) == {k if k in plain else f"qwen2.{k}" for k in keys}


@pytest.mark.parametrize(
    ("template", "passed"), [(CHAT_TEMPLATE, True), (CHAT_TEMPLATE + " ", False), (None, False)]
)
def test_chat_template_is_compared_to_the_last_byte(
    base: Path, path: Path, template: str | None, passed: bool
) -> None:
    (base / "chat_template.jinja").unlink()
    edit_json(base / "tokenizer_config.json", chat_template=template)
    check = check_keys(base, path)
    assert check.passed is passed
    assert passed or differing(check) == {"tokenizer.chat_template"}


def test_named_templates_have_a_default(base: Path, path: Path) -> None:
    (base / "chat_template.jinja").unlink()
    templates = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    edit_json(base / "tokenizer_config.json", chat_template=templates)
    assert check_keys(base, path).passed


def test_template_file_goes_before_the_older_key(base: Path, path: Path) -> None:
    edit_json(base / "tokenizer_config.json", chat_template="older")
    assert check_keys(base, path).passed


def test_other_tokens_and_merges_are_counted(base: Path, path: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    a, b = list(model["vocab"])[300:302]
    model["vocab"] |= {a: model["vocab"][b], b: model["vocab"][a]}
    model["merges"][:2] = model["merges"][1::-1]
    edit_json(base / "tokenizer.json", model=model)
    check = check_keys(base, path)
    assert differing(check) == {"other tokens", "other merges"}
    assert (check.measured["other tokens"], check.measured["other merges"]) == (2, 2)


def test_file_of_another_family_fails(path: Path, tmp_path: Path) -> None:
    check = check_keys(make_base(tmp_path / "other", "qwen3"), path)
    assert {"general.architecture", "qwen3.block_count", "unknown"} <= differing(check)


def test_file_that_is_no_gguf_fails(base: Path, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a GGUF file at all")
    check = check_keys(base, tmp_path / "no.gguf")
    assert not check.passed
    assert check.measured["problems"][0].startswith("unreadable")
