import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from audit_rows import ANSWER, KEY, QUESTION, Clock, ask, request_id, tamper

from kormed_edge.audit import AuditLog
from kormed_edge.audit_file import AuditError
from kormed_edge.audit_reader import AuditReader
from kormed_edge.feedback import (
    MAX_COMMENT,
    MAX_CORRECTION,
    Feedback,
    FeedbackError,
    UnknownRequestError,
    give,
    parse_verdict,
)
from kormed_edge.feedback_export import Exported, preferences, training_records
from train.source import read_source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    """A log that keeps texts, with one answer."""
    log = AuditLog(path, content_key=KEY)
    ask(log, 1)
    yield log
    log.close()


def judge(log: AuditLog, number: int, verdict: Any, who: str = "kim", **other: str) -> None:
    give(log, Feedback(request_id(number), verdict, who, **other))


def exported(path: Path, kind: str) -> Exported:
    with AuditReader(path, KEY) as reader:
        return preferences(reader) if kind == "dpo" else training_records(reader, "emergency")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("맞음", "correct"), ("틀림", "wrong"), ("위험 ", "dangerous"), ("wrong", "wrong")],
)
def test_verdict_has_two_names(text: str, verdict: str) -> None:
    assert parse_verdict(text) == verdict


def test_other_verdict_names_those_there_are() -> None:
    with pytest.raises(FeedbackError, match=r"맞음 \(correct\), 틀림 \(wrong\), 위험"):
        parse_verdict("좋음")


def test_feedback_is_sealed_and_told_with_the_key(log: AuditLog, path: Path) -> None:
    judge(log, 1, "dangerous", comment=" 용량이 열 배, 010-1234-5678 ", correction="1) 심초음파")
    for key, told in (
        (None, {"comment": None}),
        (KEY, {"comment": "용량이 열 배, [전화번호]", "correction": "1) 심초음파"}),
    ):
        with AuditReader(path, key) as reader:
            assert reader.verify()["feedback"].id == 1
            [row] = reader.feedback()
        row.pop("time")
        rest = {"request_id": request_id(1), "principal": "kim", "verdict": "dangerous", "id": 1}
        assert row == rest | told


def test_comment_is_kept_without_a_key_and_a_correction_is_not(path: Path) -> None:
    log = AuditLog(path)
    ask(log, 1)
    judge(log, 1, "wrong", comment="\ud800 a@b.co")
    with AuditReader(path) as reader:
        assert [row["comment"] for row in reader.feedback()] == ["? [이메일]"]
    with pytest.raises(FeedbackError, match="keeps no questions") as refused:
        judge(log, 1, "wrong", correction="1) 심초음파")
    assert "--audit-content" in str(refused.value)
    log.close()
    judged = AuditLog(path, content_key=KEY)
    judge(judged, 1, "correct")
    judged.close()
    with pytest.raises(AuditError, match="no texts that they are about"):
        exported(path, "sft")


@pytest.mark.parametrize(
    ("feedback", "kind", "found"),
    [
        (Feedback(request_id(9), "wrong", "k"), UnknownRequestError, "no request '0000"),
        (Feedback(request_id(1), "wrong", "k", "가" * (MAX_COMMENT + 1)), FeedbackError, "4,001"),
        (
            Feedback(request_id(1), "wrong", "k", "", "가" * (MAX_CORRECTION + 1)),
            FeedbackError, "a correction of 16,001 characters",
        ),
        (Feedback(request_id(1), "correct", "k", "", "x"), FeedbackError, "that is correct"),
    ],
)  # fmt: skip
def test_feedback_that_cannot_be_kept_is_refused(
    log: AuditLog, feedback: Feedback, kind: type[Exception], found: str
) -> None:
    with pytest.raises(kind, match=found):
        give(log, feedback)


def test_feedback_has_a_chain_of_its_own(log: AuditLog, path: Path) -> None:
    for verdict in ("correct", "wrong"):
        judge(log, 1, verdict)
    tamper(path, "UPDATE feedback SET verdict = 'correct' WHERE id = 2")
    with (
        AuditReader(path) as reader,
        pytest.raises(AuditError, match="feedback: row 2 was"),
    ):
        reader.verify()


def test_pruned_feedback_leaves_an_anchor(path: Path) -> None:
    clock = Clock()
    log = AuditLog(path, content_key=KEY, now=clock)
    for number in (1, 2):
        ask(log, number)
        judge(log, number, "correct")
        clock.time += timedelta(days=10)
        log.prune(5)
    judge_late = Feedback(request_id(2), "correct", "kim")
    with pytest.raises(UnknownRequestError):
        give(log, judge_late)
    ask(log, 3)
    judge(log, 3, "wrong")
    clock.time += timedelta(days=10)
    log.prune(5)
    ask(log, 4)
    clock.time += timedelta(days=10)
    log.prune(5)  # no feedback is older: its anchor is told again
    with AuditReader(path) as reader:
        assert reader.verify()["feedback"].id == 3
        assert list(reader.feedback()) == []
    log.close()


def test_training_reads_what_was_called_correct(log: AuditLog, path: Path) -> None:
    ask(log, 2**120, prompt="패혈증의 초기 항생제 투여 시한은?", answer="1시간 이내")
    ask(log, 2**121, prompt="패혈증을 설명하라.", answer="감염에 대한 조절되지 않은 반응이다.")
    for number in (1, 2**120, 2**121):
        judge(log, number, "wrong")
        judge(log, number, "correct")  # the last word counts
    rows = exported(path, "sft").rows
    assert rows[0] == {
        "qa_id": 0, "domain": 16, "q_type": 1, "question": QUESTION, "answer": ANSWER
    }  # fmt: skip
    source = path.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read_source(source)
    types = ["multiple_choice", "short_answer", "descriptive"]
    assert [record.q_type for record in reading.records] == types
    assert {record.domain for record in reading.records} == {"emergency"}
    assert not reading.repaired


def test_correction_is_preferred_to_the_answer(log: AuditLog, path: Path) -> None:
    judge(log, 1, "wrong", comment="확실하다", correction="1) 심초음파")
    assert exported(path, "dpo").rows == [
        {"prompt": QUESTION, "chosen": "1) 심초음파", "rejected": ANSWER}
    ]
    assert exported(path, "sft").rows == []


@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [
        ({"prompt": [{"role": "user", "content": "왜?"}] * 2}, "not one question"),
        ({"endpoint": "/v1/completions"}, "not one question"),
        ({"finish_reason": "length"}, "unfinished"),
        ({"answer": "모르겠습니다"}, "chose no option"),
    ],
)
def test_what_cannot_be_learned_from_is_left_out_and_counted(
    log: AuditLog, path: Path, request_fields: Any, reason: str
) -> None:
    ask(log, 2, **request_fields)
    judge(log, 2, "correct")
    found = exported(path, "sft")
    assert (found.rows, dict(found.skipped)) == ([], {reason: 1})


def test_judges_who_do_not_agree_teach_nothing(log: AuditLog, path: Path) -> None:
    judge(log, 1, "correct", "kim")
    judge(log, 1, "dangerous", "lee", correction="1) 심초음파")
    for kind in ("sft", "dpo"):
        assert exported(path, kind).skipped == {"judged differently": 1}


def test_texts_need_their_key(log: AuditLog, path: Path) -> None:
    judge(log, 1, "correct")
    with AuditReader(path) as reader, pytest.raises(AuditError, match="--content-key KEYFILE"):
        preferences(reader)
