from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from scripted_model import ANSWER
from tiny_models import make_adapter, make_base

from export.adapter import write_adapter_gguf
from export.convert import Provenance, write_gguf
from kormed_edge.engine import Engine, verify_model
from kormed_edge.errors import EngineError
from kormed_edge.manifest import MANIFEST, new_manifest, write_json
from kormed_edge.nf4 import load_tokenizer
from kormed_edge.prompts import question_prompt

PROMPT = question_prompt("가장 먼저 할 검사는?")
NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


@pytest.fixture(scope="module")
def engine(scripted_gguf: Path) -> Engine:
    return Engine(scripted_gguf, context=512)


@pytest.fixture
def model(scripted_gguf: Path, tmp_path: Path) -> Path:
    """A copy of the model with a manifest beside it."""
    copy = tmp_path / "tiny.gguf"
    copyfile(scripted_gguf, copy)
    manifest = new_manifest(
        tmp_path, stage="gguf", run="r", seconds=0, settings={}, inputs={}, base=None, seed=None
    )
    write_json(tmp_path / MANIFEST, manifest.model_dump())
    return copy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model, base.gguf, and two LoRA adapters, one.gguf and two.gguf."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder / "hf", max_position_embeddings=512)
    write_gguf(folder / "hf", None, folder / "base.gguf", NOBODY)
    for seed, name in enumerate(("one", "two"), 1):
        adapter = make_adapter(folder / "hf", folder / name, seed=seed)
        write_adapter_gguf(folder / "hf", adapter, folder / f"{name}.gguf", NOBODY)
    return folder


def load_base(folder: Path) -> Engine:
    adapters = {name: folder / f"{name}.gguf" for name in ("one", "two")}
    return Engine(folder / "base.gguf", context=512, threads=1, adapters=adapters)


def test_answer_is_whole_and_ends_at_the_end_token(engine: Engine) -> None:
    answer = engine.answer(PROMPT, max_tokens=64)
    assert (answer.text, answer.finish_reason) == (ANSWER, "stop")


def test_answer_is_cut_at_the_maximum(engine: Engine) -> None:
    answer = engine.answer(PROMPT, max_tokens=2)
    assert answer.finish_reason == "length"
    assert ANSWER.startswith(answer.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_no_piece_splits_a_syllable(engine: Engine) -> None:
    pieces = [p.text for p in engine.stream(engine.encode(PROMPT), max_tokens=64)]
    assert "".join(pieces) == ANSWER
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_second_answer_does_not_depend_on_the_first(engine: Engine) -> None:
    engine.answer(question_prompt("다른 질문"), max_tokens=3)
    assert engine.answer(PROMPT, max_tokens=64).text == ANSWER


def test_prompt_begins_with_its_own_start_token_only(engine: Engine) -> None:
    start = engine.encode("<|im_start|>")
    assert len(start) == 1
    assert engine.encode(PROMPT)[:1] == start
    assert engine.encode(PROMPT)[1:2] != start


def test_ids_are_those_of_the_hugging_face_tokenizer(engine: Engine, scripted_base: Path) -> None:
    tokenizer = load_tokenizer(scripted_base)
    for text in (PROMPT, question_prompt("1.5) 두 줄\n  90/60 mmHg, she'd\n\n")):
        assert engine.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_prompt_longer_than_the_context_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"the prompt has \d+ tokens[\s\S]*512"):
        engine.encode("가" * 2000)


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(EngineError, match="cannot load"):
        Engine(path)


def test_each_request_is_answered_as_by_a_fresh_engine(base: Path) -> None:
    names = (None, "one", "two")
    fresh = {name: load_base(base).answer(PROMPT, max_tokens=12, adapter=name) for name in names}
    assert len({answer.text for answer in fresh.values()}) == 3
    alone = Engine(base / "base.gguf", context=512, threads=1)
    assert alone.answer(PROMPT, max_tokens=12) == fresh[None]
    engine = load_base(base)
    for name in ("one", None, "one", "two", "two", "one", None, None):
        assert engine.answer(PROMPT, max_tokens=12, adapter=name) == fresh[name]


def test_adapter_given_up_in_the_middle_does_not_stay(base: Path) -> None:
    engine = load_base(base)
    expected = engine.answer(PROMPT, max_tokens=12)
    next(engine.stream(engine.encode(PROMPT), max_tokens=12, adapter="one"))
    assert engine.answer(PROMPT, max_tokens=12) == expected


def test_unknown_adapter_is_refused_before_the_answer_begins(base: Path, engine: Engine) -> None:
    assert load_base(base).adapters == ("one", "two")
    with pytest.raises(EngineError, match=r"'three' is not loaded[\s\S]*one of one, two"):
        load_base(base).stream([1], max_tokens=1, adapter="three")
    with pytest.raises(EngineError, match=r"'one' is not loaded[\s\S]*no adapter"):
        engine.stream([1], max_tokens=1, adapter="one")


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("llama", {}, "model arch and LoRA arch mismatch"),
        ("qwen2", {"intermediate_size": 128}, "incorrect shape"),
        ("qwen2", {"num_hidden_layers": 1}, "does not exist in base model"),
    ],
)
def test_adapter_of_another_base_is_refused(
    family: str, settings: dict[str, Any], reason: str, base: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "hf", family, **settings)
    model = write_gguf(other, None, tmp_path / "other.gguf", NOBODY).path
    with pytest.raises(EngineError, match=rf"one\.gguf: .* beside .*other\.gguf: .*{reason}"):
        Engine(model, adapters={"one": base / "one.gguf"})


def test_file_that_is_no_whole_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    whole = (base / "one.gguf").read_bytes()
    broken = {
        "empty.gguf": (b"", "failed to load lora adapter"),
        "text.gguf": (b"GGUF but not really", "failed to load lora adapter"),
        "cut.gguf": (whole[:-100], "not within the file bounds"),
        "model.gguf": ((base / "base.gguf").read_bytes(), "to be 'adapter', but got: model"),
    }
    for name, (content, reason) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineError, match=rf"{name}: llama\.cpp cannot load it.*{reason}"):
            Engine(base / "base.gguf", adapters={"one": tmp_path / name})


def test_missing_adapter_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.gguf does not exist"):
        Engine(base / "base.gguf", adapters={"one": tmp_path / "nowhere.gguf"})


def test_verified_model_gives_its_hash(model: Path) -> None:
    assert len(verify_model(model)) == 64


def test_model_with_one_changed_byte_is_refused_even_if_unverified_is_allowed(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(EngineError, match="do not use this file"):
        verify_model(model, allow_unverified=True)


def test_model_without_a_manifest_needs_the_flag(scripted_gguf: Path) -> None:
    with pytest.raises(EngineError, match="--allow-unverified"):
        verify_model(scripted_gguf)
    assert verify_model(scripted_gguf, allow_unverified=True)
