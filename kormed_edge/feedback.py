"""What clinicians say of answers: 맞음, 틀림 or 위험, with a comment and what was right."""

from dataclasses import dataclass
from typing import Literal

from kormed_edge.audit import AuditLog
from kormed_edge.errors import KormedError
from kormed_edge.phi import mask

Verdict = Literal["correct", "wrong", "dangerous"]
VERDICTS: dict[Verdict, str] = {"correct": "맞음", "wrong": "틀림", "dangerous": "위험"}
MAX_COMMENT = 4_000
MAX_CORRECTION = 16_000
"""Characters."""


class FeedbackError(KormedError):
    """Feedback is about no request of this log, or says what cannot be kept."""


class UnknownRequestError(FeedbackError):
    """No request of this log has the id."""


@dataclass(frozen=True)
class Feedback:
    """`correction` is the answer that would have been right."""

    request_id: str
    verdict: Verdict
    principal: str
    comment: str = ""
    correction: str = ""


def parse_verdict(text: str) -> Verdict:
    """A verdict in English or Korean."""
    for verdict, korean in VERDICTS.items():
        if text.strip() in (verdict, korean):
            return verdict
    known = ", ".join(f"{korean} ({verdict})" for verdict, korean in VERDICTS.items())
    raise FeedbackError(f"{text!r} is no verdict", known)


def give(log: AuditLog, feedback: Feedback) -> int | None:
    """Append feedback to a log; the row's id, None where a log that may lose rows lost it.

    With a content key, comment and correction are sealed. Without one the comment is kept as it is
    but for what looks personal, since a warning of danger must not be lost, and a correction is
    refused. Raises `FeedbackError`.
    """
    _check(log, feedback)
    comment, correction = (_clean(text) for text in (feedback.comment, feedback.correction))
    row = {
        "request_id": feedback.request_id,
        "principal": feedback.principal,
        "verdict": feedback.verdict,
        "comment": None if log.keeps_content else comment,
    }
    return log.feedback(row, {"comment": comment, "correction": correction or None})


def _check(log: AuditLog, feedback: Feedback) -> None:
    for name, text, most in (
        ("comment", feedback.comment, MAX_COMMENT),
        ("correction", feedback.correction, MAX_CORRECTION),
    ):
        if len(text) > most:
            raise FeedbackError(f"a {name} of {len(text):,} characters", f"at most {most:,}")
    if feedback.correction and feedback.verdict == "correct":
        raise FeedbackError("a correction of an answer that is correct", "verdict wrong (틀림)")
    if feedback.correction and not log.keeps_content:
        raise FeedbackError(
            "a correction, and this log keeps no questions that it could belong to",
            "a verdict and a comment", "kormed serve --audit FILE --audit-content KEYFILE",
        )  # fmt: skip
    if not log.knows(feedback.request_id):
        raise UnknownRequestError(
            f"no request {feedback.request_id[:64]!r} in the audit log",
            "the request_id that came with the answer",
        )


def _clean(text: str) -> str:
    # Half of a surrogate pair cannot be stored.
    return mask(text.strip().encode(errors="replace").decode())
