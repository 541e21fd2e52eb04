"""Judged answers as what training reads: records of AI Hub's form, and preferences for DPO."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kormed_edge.answers import read_tolerant
from kormed_edge.audit_file import AuditError
from kormed_edge.audit_reader import AuditReader, Row
from kormed_edge.records import (
    DESCRIPTIVE,
    DOMAINS,
    MULTIPLE_CHOICE,
    Q_TYPES,
    SHORT_ANSWER,
    split_options,
)

MAX_SHORT = 60
"""Characters of a short answer; a longer one, or a sentence, is descriptive."""
_CODES = {name: code for code, name in (DOMAINS | Q_TYPES).items()}
_ID_DIGITS = 13


@dataclass
class Exported:
    """Rows to write as JSONL, and how many judged requests were left out, by reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def training_records(reader: AuditReader, domain: str) -> Exported:
    """Answers that were called correct, in the form that `kormed data` reads.

    The service does not know a question's domain, so all get the one given. Raises `AuditError`
    without the key of the texts, or if none were kept.
    """
    exported = Exported()
    for request, verdicts in _judged(reader, exported.skipped):
        if {verdict["verdict"] for verdict in verdicts} == {"correct"}:
            row = _record(request, domain)
            if row is None:
                exported.skipped["chose no option"] += 1
            else:
                exported.rows.append(row)
    return exported


def preferences(reader: AuditReader) -> Exported:
    """{prompt, chosen, rejected} of every answer that was corrected."""
    exported = Exported()
    for request, verdicts in _judged(reader, exported.skipped):
        exported.rows += [
            {
                "prompt": request["prompt"],
                "chosen": verdict["correction"],
                "rejected": request["answer"],
            }
            for verdict in verdicts
            if verdict.get("correction")
        ]
    return exported


def _judged(reader: AuditReader, skipped: Counter[str]) -> Iterator[tuple[Row, list[Row]]]:
    """Requests whose judges agree, with the last word of each judge."""
    if not reader.has_key:
        raise AuditError(
            "questions and answers are sealed", "the key that the service had",
            "--content-key KEYFILE",
        )  # fmt: skip
    last: dict[str, dict[str, Row]] = {}
    for row in reader.feedback():
        last.setdefault(row["request_id"], {})[row["principal"]] = row
    requests = {id: reader.request(id) for id in last}
    if last and not any(request and "prompt" in request for request in requests.values()):
        raise AuditError(
            f"{reader.path} holds verdicts, and no texts that they are about",
            "requests that were served with --audit-content",
            "kormed serve --audit FILE --audit-content KEYFILE, for answers to come",
        )
    for id, verdicts in last.items():
        request, words = requests[id], list(verdicts.values())
        if reason := _unfit(request, words):
            skipped[reason] += 1
        elif request is not None:
            yield request, words


def _unfit(request: Row | None, verdicts: list[Row]) -> str:
    """Why a judged request cannot be learned from, or ""."""
    if request is None:
        return "pruned"
    if "prompt" not in request or "answer" not in request:
        return "no texts"
    if request["endpoint"] == "/v1/completions" or not isinstance(request["prompt"], str):
        return "not one question"
    if len({verdict["verdict"] == "correct" for verdict in verdicts}) > 1:
        return "judged differently"
    return "" if request["finish_reason"] == "stop" else "unfinished"


def _record(request: Row, domain: str) -> dict[str, Any] | None:
    question, answer = request["prompt"].strip(), request["answer"].strip()
    _, options = split_options(question)
    q_type = MULTIPLE_CHOICE if options else _written(answer)
    if options:
        option = read_tolerant(answer, options).option
        if option is None:
            return None
        answer = f"{option}) {options[option - 1]}"
    return {
        # Of the request, so that exports of several sites can be joined; 52 bits stay exact in
        # programs that take every number for a double.
        "qa_id": int(request["request_id"][:_ID_DIGITS], 16),
        "domain": _CODES[domain],
        "q_type": _CODES[q_type],
        "question": question,
        "answer": answer,
    }


def _written(answer: str) -> str:
    is_phrase = len(answer) <= MAX_SHORT and "\n" not in answer and not answer.endswith(".")
    return SHORT_ANSWER if is_phrase else DESCRIPTIVE
