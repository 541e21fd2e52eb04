from pathlib import Path
from typing import Any

import pytest
from scripted_model import ANSWER
from tiny_models import edit_json, make_adapter

from eval.arms import (
    NF4_ARMS,
    HuggingFaceArms,
    _batches,
    answer_with_gguf,
    choose_arms,
    gguf_files,
    lora_files,
    merged_folder,
)
from eval.protocol import Protocol, kit
from kormed_edge.errors import EvalError
from kormed_edge.manifest import MANIFEST, new_manifest, write_json
from kormed_edge.prompts import question_prompt
from kormed_edge.records import Record
from kormed_edge.runs import ADAPTER_GGUF

RECORDS = [
    Record(f"q{i}", "obgyn", "short_answer", "가장 먼저 할 검사는? " * i, "모의병")
    for i in (1, 3, 2)
]


@pytest.fixture(scope="module")
def arms(scripted_base: Path, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceArms:
    folder = tmp_path_factory.mktemp("arms") / "adapter"
    make_adapter(scripted_base, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((scripted_base / name).read_bytes())
    return HuggingFaceArms.nf4(scripted_base, folder)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_base_answers_every_item_whole_in_batches_of_any_size(
    arms: HuggingFaceArms, batch_size: int
) -> None:
    answers = list(arms.answer("base", RECORDS, kit(32), batch_size))
    assert [p["qa_id"] for p in answers] == ["q3", "q2", "q1"]
    assert {(p["output"], p["finish_reason"]) for p in answers} == {(ANSWER, "stop")}


def test_adapter_arm_is_another_model_than_the_base_arm(arms: HuggingFaceArms) -> None:
    tuned = [p["output"] for p in arms.answer("adapter", RECORDS, kit(32), 3)]
    again = [p["output"] for p in arms.answer("base", RECORDS, kit(32), 3)]
    assert tuned != again
    assert set(again) == {ANSWER}


def test_base_with_an_end_token_of_its_own_stops_at_chatml_s(
    scripted_base: Path, tmp_path: Path
) -> None:
    make_adapter(scripted_base, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((scripted_base / "tokenizer.json").read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_bytes((scripted_base / settings.name).read_bytes())
    edit_json(settings, eos_token="<|endoftext|>")
    [answer] = HuggingFaceArms.nf4(scripted_base, tmp_path).answer("base", RECORDS[:1], kit(32), 1)
    assert (answer["output"], answer["finish_reason"]) == (ANSWER, "stop")


CHOICE = Record("c", "obgyn", "multiple_choice", "무엇인가?\n1) 가\n2) 나\n3) 다", "2) 나")


def test_multiple_choice_has_the_probability_of_every_option(
    arms: HuggingFaceArms, scripted_gguf: Path
) -> None:
    short, *_ = RECORDS
    torch, mixed = (
        arms.answer("base", [CHOICE], kit(4), 1),
        arms.answer("base", [short, CHOICE], kit(4), 2),
    )
    llama = answer_with_gguf(scripted_gguf, [short, CHOICE], kit(4), 2)
    [alone], [padded, without], [without_too, engine] = list(torch), list(mixed), list(llama)
    assert "option_probabilities" not in without | without_too
    for row in (alone, padded, engine):
        assert sum(row["option_probabilities"]) == pytest.approx(1, abs=1e-5)
    close = pytest.approx(alone["option_probabilities"], abs=0.02)
    assert padded["option_probabilities"] == close
    assert engine["option_probabilities"] == close


def test_free_text_of_a_gguf_has_the_mean_log_probability_of_its_tokens(
    arms: HuggingFaceArms, scripted_gguf: Path
) -> None:
    free, chosen = answer_with_gguf(scripted_gguf, [RECORDS[0], CHOICE], kit(4), 2)
    assert -0.01 < free["mean_logprob"] <= 0  # it says what it was made to say
    assert "mean_logprob" not in chosen
    [torch] = arms.answer("base", RECORDS[:1], kit(4), 1)
    assert "mean_logprob" not in torch


def test_answer_that_reaches_the_maximum_is_marked(arms: HuggingFaceArms) -> None:
    answers = list(arms.answer("base", RECORDS, kit(2), 3))
    assert {(p["n_tokens"], p["finish_reason"]) for p in answers} == {(2, "length")}


def test_gguf_of_the_base_answers_like_the_base(scripted_gguf: Path) -> None:
    answers = list(answer_with_gguf(scripted_gguf, RECORDS, kit(32), 2))
    assert [p["qa_id"] for p in answers] == ["q1", "q3", "q2"]
    assert {(p["output"], p["finish_reason"]) for p in answers} == {(ANSWER, "stop")}


def test_merged_folder_answers_like_the_model_in_it(scripted_base: Path) -> None:
    merged = HuggingFaceArms.merged(scripted_base)
    assert {p["output"] for p in merged.answer("merged", RECORDS, kit(32), 3)} == {ANSWER}


def export_to(run: Path, **settings: str | None) -> Path:
    note(run, "gguf", models={"bf16": "r-bf16.gguf", "Q8_0": "r-Q8_0.gguf"}, **settings)
    return run


def note(run: Path, stage: str, **settings: Any) -> None:
    """A stage of which there is the manifest alone."""
    folder = run / stage
    folder.mkdir(parents=True)
    manifest = new_manifest(
        folder, stage=stage, run="r", seconds=0, inputs={}, base=None, seed=None, settings=settings
    )
    write_json(folder / MANIFEST, manifest.model_dump())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_to(tmp_path / "r", merged=None)


def test_arms_of_a_run_are_the_models_of_its_manifest(exported: Path) -> None:
    folder = exported / "gguf"
    files = {"gguf:bf16": folder / "r-bf16.gguf", "gguf:Q8_0": folder / "r-Q8_0.gguf"}
    assert gguf_files(folder) == files
    assert choose_arms(None, exported) == ["base", "adapter", "gguf:bf16", "gguf:Q8_0"]
    assert choose_arms(["gguf:Q8_0"], exported) == ["gguf:Q8_0"]


def test_merged_folder_is_an_arm_where_the_export_kept_it(tmp_path: Path) -> None:
    exported = export_to(tmp_path / "r", merged="hf")
    assert merged_folder(exported / "gguf") == exported / "gguf" / "hf"
    assert choose_arms(None, exported) == [*NF4_ARMS, "merged", "gguf:bf16", "gguf:Q8_0"]


def test_arm_that_the_run_lacks_is_named(exported: Path) -> None:
    with pytest.raises(EvalError, match="gguf:Q9, merged not in this run"):
        choose_arms(["base", "gguf:Q9", "merged"], exported)


@pytest.fixture
def successor(exported: Path, tmp_path: Path) -> Path:
    """A run whose adapter was trained on a GGUF of the first one."""
    run = export_to(tmp_path / "after", merged=None)
    (run / "gguf" / ADAPTER_GGUF).touch()
    note(run, "adapter", base=str(exported / "gguf" / "r-bf16.gguf"))
    return run


def test_adapter_over_the_export_that_it_was_trained_on_is_an_arm_by_name(
    successor: Path, exported: Path
) -> None:
    under = {f"lora:{type_}": exported / f"gguf/r-{type_}.gguf" for type_ in ("bf16", "Q8_0")}
    assert lora_files(successor) == under
    assert choose_arms(["adapter", "lora:Q8_0"], successor) == ["adapter", "lora:Q8_0"]
    assert "lora:Q8_0" not in choose_arms(None, successor)


@pytest.mark.parametrize("base", ["maker/base", "somewhere/alone.gguf"])
def test_adapter_of_another_base_goes_over_nothing(exported: Path, base: str) -> None:
    (exported / "gguf" / ADAPTER_GGUF).touch()
    note(exported, "adapter", base=base)
    assert lora_files(exported) == {}
    with pytest.raises(EvalError, match="lora:Q8_0 not in this run"):
        choose_arms(["lora:Q8_0"], exported)


def test_adapter_over_a_gguf_is_another_model(scripted_gguf: Path, scripted_lora: Path) -> None:
    alone = [p["output"] for p in answer_with_gguf(scripted_gguf, RECORDS, kit(8), 2)]
    over = [p["output"] for p in answer_with_gguf(scripted_gguf, RECORDS, kit(8), 2, scripted_lora)]
    assert set(alone) == {ANSWER}
    assert over != alone


BARE = Protocol("bare", lambda r: question_prompt(r.question), 32, stop=("x", " "))


def test_stop_string_ends_an_answer_in_both_engines(
    arms: HuggingFaceArms, scripted_gguf: Path
) -> None:
    for answers in (
        arms.answer("base", RECORDS, BARE, 3),
        answer_with_gguf(scripted_gguf, RECORDS, BARE, 2),
    ):
        for answer in answers:
            assert answer["output"] == ANSWER.partition(" ")[0]
            assert answer["finish_reason"] == "stop"
            assert "option_probabilities" not in answer


def test_batches_are_of_one_type_and_the_same_after_a_stop() -> None:
    records = [
        Record(f"{q_type}{i}", "obgyn", q_type, "가" * length, "나")
        for q_type, lengths in (("multiple_choice", (9, 5, 7)), ("descriptive", (6, 8, 4)))
        for i, length in enumerate(lengths)
    ]
    batches = list(_batches(records, 2))
    assert [[len(r.question) for r in batch] for batch in batches] == [[9, 7], [5], [8, 6], [4]]
    left = [record for record in records if record not in batches[0]]
    assert sorted(map(str, _batches(left, 2))) == sorted(map(str, batches[1:]))
