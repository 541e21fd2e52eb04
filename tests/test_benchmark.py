"""KorMedMCQA by lm-eval's rules, on made-up questions.

With KORMED_LM_EVAL naming a folder that holds the unpacked package lm_eval (0.4.13), the last
tests compare with lm-eval itself.
"""

import os
import random
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import yaml

from eval.benchmark import (
    LETTERS,
    MAX_TOKENS,
    STOPS,
    TASK,
    cut_at_stop,
    extract_letter,
    lm_eval_prompt,
    read_lm_eval,
    sample,
    score_benchmark,
)
from eval.predictions import Prediction, make_prediction
from kormed_edge.errors import EvalError
from kormed_edge.records import Record, format_question

OPTIONS = ["수액을 준다.", "세균성 폐렴", "메타콜린 검사", "A형 간염", "C. fictus"]
STEM = "기침이 난다.\n1) 야간\n2) 새벽\n진단은?"


def question(qa_id: str = "q", subject: str = "nurse", right: int = 3) -> Record:
    answer = f"{right}) {OPTIONS[right - 1]}"
    return Record(qa_id, subject, "multiple_choice", format_question(STEM, OPTIONS), answer)


def predicted(output: str, subject: str = "nurse", right: int = 3, qa_id: str = "q") -> Prediction:
    return make_prediction(question(qa_id, subject, right), output, "stop", 3, 0.1)


def test_the_prompt_is_letters_and_a_full_width_colon() -> None:
    assert lm_eval_prompt(question()) == (
        "기침이 난다.\n1) 야간\n2) 새벽\n진단은?\nA. 수액을 준다.\nB. 세균성 폐렴\n"
        "C. 메타콜린 검사\nD. A형 간염\nE. C. fictus\n정답："
    )


def test_the_stem_keeps_its_own_line_breaks() -> None:
    record = replace(question(), question=format_question("가\r\n나\u2028 다\x0b라", OPTIONS))
    assert lm_eval_prompt(record).startswith("가\r\n나\u2028 다\x0b라\nA. 수액")


def test_options_in_another_layout_are_found_all_the_same() -> None:
    record = replace(question(), question="답은?  \n1)가  \n2) 나\n 3) 다\n4) 라\n5) 마 ")
    assert lm_eval_prompt(record) == "답은?\nA. 가\nB. 나\nC. 다\nD. 라\nE. 마\n정답："


def test_a_question_without_five_options_is_refused() -> None:
    record = replace(question(), question=format_question("답은?", OPTIONS[:4]))
    with pytest.raises(EvalError, match="q: 4 options"):
        lm_eval_prompt(record)
    with pytest.raises(EvalError, match="q: 4 options"):
        score_benchmark([make_prediction(record, "C", "stop", 1, 0.1)])


READ = [
    ("C", "C"),
    (" c\n", "C"),
    ("(C)", "C"),
    ("**C**", "C"),
    ("정답：C", "C"),
    ("정답: C입니다", "C"),
    ("정답\n : C", "C"),
    ("정답B", "B"),
    ("정답은 C입니다", "C"),
    ("정답은 c 입니다", "C"),
    ("답: D", "D"),
    ("정답: A, 정답: B", "B"),
    ("A or B", "B"),
    ("정답: A\nC", "A"),
    ("A 정답은 B입니다", "B"),
    # what it misses
    ("", None),
    ("F", None),
    ("B입니다", None),
    ("B번", None),
    ("정답은 B번입니다", None),
    ("답: ③", None),
    ("3", None),
    ("세균성 폐렴", None),
    ("Ｃ", None),
    ("_C_", None),
    # what it makes up
    ("환자는 a 형 간염", "A"),
    ("정답: Cefatest", "C"),
    ("3) vitamin A", "A"),
]


@pytest.mark.parametrize(("text", "letter"), READ)
def test_reads_as_lm_eval(text: str, letter: str | None) -> None:
    assert (extract_letter(text), read_lm_eval(text)) == (letter, letter)


@pytest.mark.parametrize(
    ("output", "seen", "letter"),
    [
        ("C. 메타콜린 검사", "C", "C"),
        ("발열이 있다. 정답: B", "발열이 있다", None),
        ("B\n\nQ: 다음", "B", "B"),
        ("\n\nB", "", None),
        ("B\n정답: D", "B\n정답: D", "D"),
        ("D Q: A", "D ", "D"),
        ("D</s>A", "D", "D"),
        ("D<|im_end|>A", "D", "D"),
    ],
)
def test_reads_only_what_stands_before_a_stop(output: str, seen: str, letter: str | None) -> None:
    assert (cut_at_stop(output), read_lm_eval(output)) == (seen, letter)


def test_the_filter_alone_prefers_a_letter_with_a_full_stop() -> None:
    assert extract_letter("C. 메타콜린\nA 아님") == "C"
    assert extract_letter("C. 이유\nD. 이유\nA") == "D"


@pytest.mark.parametrize(
    ("output", "right"), [("c", True), ("C. x", True), ("B", False), ("3", False), ("", False)]
)
def test_an_item_is_right_if_the_letter_is(output: str, right: bool) -> None:
    scores = score_benchmark([make_prediction(question(right=3), output, "stop", 1, 0.1)])
    assert scores["overall"]["lm_eval"]["value"] == right


def test_a_record_without_a_right_option_has_no_score() -> None:
    record = replace(question(), answer="메타콜린 검사")
    with pytest.raises(EvalError, match="q: the reference answer names none"):
        score_benchmark([make_prediction(record, "C", "stop", 1, 0.1)])


def test_a_sample_depends_on_ids_and_seed_only() -> None:
    records = [question(f"q{i}") for i in range(9)]
    chosen = [record.qa_id for record in sample(records, 4)]
    assert chosen == ["q1", "q5", "q6", "q8"]
    assert [r.qa_id for r in sample(records[::-1], 4)] == chosen[::-1]
    assert [r.qa_id for r in sample(records, 4, seed=1)] != chosen
    assert sample(records, 9) == records


@pytest.mark.parametrize("count", [0, 10])
def test_a_sample_of_impossible_size_is_refused(count: int) -> None:
    with pytest.raises(EvalError, match=f"{count} records wanted of 9"):
        sample([question(f"q{i}") for i in range(9)], count)


def test_both_readings_stand_side_by_side_by_subject() -> None:
    scores = score_benchmark(
        [
            predicted("C", qa_id="a"),
            predicted("C입니다", qa_id="b"),
            predicted("B", "doctor", qa_id="c"),
            predicted("모르겠습니다", "doctor", qa_id="d"),
        ]
    )
    assert (scores["task"], scores["n"]) == ("kormedmcqa 3.0 (lm-eval 0.4.13)", 4)
    assert list(scores["by_subject"]) == ["doctor", "nurse"]
    nurse, overall = scores["by_subject"]["nurse"], scores["overall"]
    assert (nurse["lm_eval"]["value"], nurse["tolerant"]["value"]) == (0.5, 1.0)
    assert (nurse["lm_eval"]["n"], nurse["lm_eval"]["unread"]) == (2, 1)
    assert (overall["lm_eval"]["value"], overall["tolerant"]["value"]) == (0.25, 0.5)
    assert (overall["lm_eval"]["unread"], overall["tolerant"]["unread"]) == (2, 1)
    assert overall["tolerant"]["low"] == pytest.approx(0.150, abs=5e-4)
    assert overall["tolerant"]["high"] == pytest.approx(0.850, abs=5e-4)
    assert (overall["differ"], overall["differences"]) == (1, {"beside_hangul": 1})
    assert scores["by_subject"]["doctor"]["differences"] == {}


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("발열이 있다. 정답: B", "after_stop"),
        ("B입니다", "beside_hangul"),
        ("정답은 B번입니다.", "beside_hangul"),
        ("3", "number"),
        ("답: ③", "number"),
        ("3입니다", "number"),
        ("4) A형 간염", "number"),
        ("세균성 폐렴", "words"),
        ("수액을 준다.", "words"),
        ("정답은 세균성폐렴입니다.", "words"),
        ("Ｃ", "other_form"),
        ("환자는 a 형 간염", "stray_letter"),
        ("A or B", "last_of_several"),
        ("2) E 소견", "other_letter"),
    ],
)
def test_a_difference_between_the_readings_has_a_kind(output: str, kind: str) -> None:
    assert score_benchmark([predicted(output)])["overall"]["differences"] == {kind: 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_type": "short_answer"}, "q: is short_answer"),
        ({"answer": "폐렴"}, "names none of the question's options"),
        ({"question": format_question(STEM, OPTIONS[:4])}, "q: 4 options"),
    ],
)
def test_what_is_no_benchmark_prediction_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        score_benchmark([predicted("C") | changes])
    with pytest.raises(EvalError, match="no predictions"):
        score_benchmark([])


PIECES = [*"ABCDEFabcde１3③ .:：\n_()", "정답", "정답은", "입니다", "번", "형 간염", "\n\n", *STOPS]


def outputs(count: int) -> list[str]:
    rng = random.Random(42)
    made = ["".join(rng.choices(PIECES, k=rng.randint(0, 8))) for _ in range(count)]
    return [*made, *(text for text, _ in READ)]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Path:
    """lm-eval's folder of the task; what its filters import is replaced by as little as can be."""
    folder = os.environ.get("KORMED_LM_EVAL")
    if folder is None:
        pytest.skip("KORMED_LM_EVAL names no unpacked lm-eval")
    registry = SimpleNamespace(register_filter=lambda _: lambda kind: kind)
    monkeypatch.setitem(sys.modules, "lm_eval.api.filter", SimpleNamespace(Filter=object))
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", registry)
    return Path(folder) / "lm_eval" / "tasks" / "kormedmcqa"


def test_lm_evals_filters_extract_the_same_letters(task: Path) -> None:
    texts = outputs(2000)
    choice = runpy.run_path(str(task / "utils.py"))["ExtractChoiceFilter"]()
    first = runpy.run_path(str(task.parents[1] / "filters/selection.py"))["TakeFirstFilter"]()
    theirs = list(first.apply(choice.apply([[text] for text in texts], []), []))
    assert [extract_letter(text) or "" for text in texts] == theirs
    assert set(theirs) == {"", *LETTERS}


def test_lm_evals_task_file_states_the_same_prompt_and_limits(task: Path) -> None:
    text = (task / "_template_yaml").read_text(encoding="utf-8").replace("!function", "")
    stated = yaml.safe_load(text)
    row = {"question": f"{STEM}\n", **dict(zip(LETTERS, OPTIONS, strict=True))}
    prompt = jinja2.Template(stated["doc_to_text"], keep_trailing_newline=True).render(row)
    limits = stated["generation_kwargs"]
    assert lm_eval_prompt(question()) == prompt
    assert (tuple(limits["until"]), limits["max_gen_toks"]) == (STOPS, MAX_TOKENS)
    assert f"kormedmcqa {stated['metadata']['version']}" in TASK
    assert {"num_fewshot", "description", "gen_prefix"}.isdisjoint(stated)


def test_likeliest_option_is_scored_where_probabilities_are() -> None:
    rows = [
        make_prediction(question(f"q{i}", right=3), "", "stop", 1, 0.1, [0.1, 0.1, p, 0.1, 0.3])
        for i, p in enumerate((0.4, 0.4, 0.2))
    ]
    likelihood = score_benchmark(rows)["overall"]["likelihood"]
    assert (likelihood["value"], likelihood["n"], likelihood["unread"]) == (2 / 3, 3, 0)
    assert "likelihood" not in score_benchmark([rows[0] | {"option_probabilities": []}])["overall"]
