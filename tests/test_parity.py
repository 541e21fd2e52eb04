import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from drift import compare_logits, compare_with_hf
from tiny_models import edit_json, load, make_base, rewrite_gguf
from transformers import AutoTokenizer

from export.convert import Provenance, WrittenGguf, write_gguf
from export.parity import (
    FIXED_PROMPT,
    LIMITS,
    TIE_NATS,
    GreedyText,
    Limits,
    LogitComparison,
    check_generation,
    check_logits,
    check_tokens,
    limits_of,
    parity_report,
)
from export.readback import Check
from kormed_edge.errors import ExportError

NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")
PROMPTS = ["심전도에서 ", "The patient"]
GOOD = Check("good", True, {}, {})
BAD = Check("bad", False, {}, {})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def written(base: Path, tmp_path: Path) -> WrittenGguf:
    return write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY)


def test_tokens_of_the_folder_and_of_the_file_are_equal(base: Path, written: WrittenGguf) -> None:
    check = check_tokens(base, written.path, ["통증이  있다.\n", "감기(感氣) 🤧"])
    assert check.passed
    assert check.measured == {"end": 2, "pad": 0, "differing": 0, "doubled": 0, "first": []}
    assert check.expected["prompts"] == 10


def test_other_tokens_are_noticed(base: Path, written: WrittenGguf) -> None:
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    edit_json(base / "tokenizer.json", model=model | {"merges": []})
    check = check_tokens(base, written.path, ["심전도", "%"])
    assert not check.passed
    assert check.measured["differing"] < check.expected["prompts"] == 10
    assert check.measured["first"]


def test_text_that_is_not_in_nfc_is_noticed(base: Path, written: WrittenGguf) -> None:
    check = check_tokens(base, written.path, [unicodedata.normalize("NFD", "통증")])
    assert not check.passed
    assert check.measured["differing"] == 1


def test_end_token_that_does_not_end_a_turn_fails(base: Path, tmp_path: Path) -> None:
    edit_json(base / "tokenizer_config.json", eos_token="<|endoftext|>")
    path = write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path
    check = check_tokens(base, path, [])
    assert not check.passed
    assert (check.measured["end"], check.expected["end"]) == (0, 2)


def test_token_that_the_file_adds_before_every_text_fails(
    base: Path, written: WrittenGguf, tmp_path: Path
) -> None:
    keys = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}
    path = rewrite_gguf(written.path, tmp_path / "bos.gguf", keys=keys)
    check = check_tokens(base, path, PROMPTS)
    assert not check.passed
    assert (check.measured["differing"], check.measured["doubled"]) == (0, 10)


def test_model_does_not_differ_from_itself(written: WrittenGguf) -> None:
    assert compare_logits(written.path, written.path, PROMPTS, 6) == LogitComparison(
        prompts=2, positions=12, mean_kld=0.0, p99_kld=0.0, same_top=1.0
    )


def test_another_model_differs(written: WrittenGguf, tmp_path: Path) -> None:
    other = write_gguf(make_base(tmp_path / "b", seed=7), None, tmp_path / "o.gguf", NOBODY)
    comparison = compare_logits(written.path, other.path, PROMPTS, 6)
    assert comparison.mean_kld > 0.5
    assert comparison.p99_kld >= comparison.mean_kld
    assert comparison.same_top < 0.5


def test_other_vocabulary_is_refused(written: WrittenGguf, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "b", vocab_size=512)
    other = write_gguf(wide, None, tmp_path / "o.gguf", NOBODY)
    with pytest.raises(ExportError, match="vocabularies of 448 and 512"):
        compare_logits(written.path, other.path, PROMPTS, 2)


def test_nothing_to_compare_is_an_error(written: WrittenGguf) -> None:
    with pytest.raises(ExportError, match="nothing to compare"):
        compare_logits(written.path, written.path, [], 6)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"cannot load .*no\.gguf"):
        compare_logits(tmp_path / "no.gguf", tmp_path / "no.gguf", PROMPTS, 6)


@pytest.mark.parametrize(
    ("mean_kld", "same_top", "positions", "passed"),
    [
        (0.001, 0.995, 10_000, True),
        (0.0011, 1.0, 10_000, False),
        (0.0, 0.99, 10_000, False),
        (0.0, 0.99, 200, True),
        (0.0, 0.96, 200, False),
        (math.nan, 1.0, 9, False),
        (0.0, 1.0, 0, False),
    ],
)
def test_limits_decide(mean_kld: float, same_top: float, positions: int, passed: bool) -> None:
    comparison = LogitComparison(1, positions, mean_kld, mean_kld, same_top)
    assert check_logits("BF16", comparison, Limits(0.001, 0.995)).passed is passed


def test_limit_of_a_type_is_the_kit_s_or_the_caller_s() -> None:
    assert limits_of("Q4_K_M") == LIMITS["Q4_K_M"]
    assert limits_of("BF16", {"BF16": 0.1}) == Limits(0.1, 0.995)
    assert limits_of("IQ4_XS", {"IQ4_XS": 0.2}) == Limits(0.2)
    assert limits_of("IQ4_XS") is None


def test_type_without_a_limit_is_measured() -> None:
    assert check_logits("IQ4_XS", LogitComparison(1, 9, 2.0, 3.0, 0.5), None).passed
    assert not check_logits("IQ4_XS", LogitComparison(1, 9, math.nan, 3.0, 0.5), None).passed


def test_report_passes_only_when_every_check_did() -> None:
    assert parity_report([GOOD])["passed"]
    assert not parity_report([GOOD, BAD])["passed"]
    assert not parity_report([])["passed"]


def test_report_is_json(base: Path, written: WrittenGguf) -> None:
    comparison = compare_with_hf(base, None, written.path, PROMPTS, 2)
    checks = [
        check_logits("BF16", comparison, limits_of("BF16")),
        check_generation("BF16", comparison),
    ]
    assert json.loads(json.dumps(parity_report(checks))) == parity_report(checks)


def greedily(base: Path, prompt: str, tokens: int) -> list[int]:
    """What Hugging Face's own greedy search writes after a prompt."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = load(base).generate(**asked, max_new_tokens=tokens, do_sample=False)
    written: list[int] = answer[0, asked["input_ids"].shape[1] :].tolist()
    return written


def test_fixed_prompt_is_answered_with_hugging_face_s_text(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", seed=2)
    path = write_gguf(base, None, tmp_path / "tiny.gguf", NOBODY).path
    comparison = compare_with_hf(base, None, path, PROMPTS, 8)
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    text = tokenizer.decode(greedily(base, FIXED_PROMPT, 8))
    assert comparison.prompts == len(PROMPTS) + 1
    assert comparison.greedy == GreedyText(text, text, tokens=8, agreed=8, gap=0.0)
    assert check_generation("BF16", comparison).passed


def test_other_text_fails_and_shows_where_the_reference_left(
    written: WrittenGguf, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", seed=7)
    check = check_generation("BF16", compare_with_hf(other, None, written.path, PROMPTS, 8))
    assert not check.passed
    assert check.measured["gap"] > 10 * TIE_NATS
    assert check.measured["agreed"] < 8
    assert check.measured["reference"] != check.measured["written"]


@pytest.mark.parametrize(
    ("greedy", "passed"),
    [
        (GreedyText("a", "a", 8, 8, 0.0), True),
        (GreedyText("a", "b", 8, 3, TIE_NATS), True),
        (GreedyText("a", "b", 8, 3, 2 * TIE_NATS), False),
        (GreedyText("a", "b", 8, 3, math.nan), False),
        (GreedyText("", "", 0, 0, 0.0), False),
        (None, False),
    ],
)
def test_only_a_near_tie_excuses_another_token(greedy: GreedyText | None, passed: bool) -> None:
    assert check_generation("BF16", LogitComparison(1, 8, 0.0, 0.0, 1.0, greedy)).passed is passed
