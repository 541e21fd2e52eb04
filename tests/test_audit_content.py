import stat
from pathlib import Path

import pytest
from audit_rows import ANSWER, KEY, QUESTION, ask, request_id

from kormed_edge.audit import AuditLog
from kormed_edge.audit_content import ContentError, key_id, make_key, read_key, seal, unseal
from kormed_edge.audit_reader import AuditReader

PLACE = ("entries", 7, request_id(1))
OTHER = bytes(32)


def test_key_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    assert make_key(path) == key_id(read_key(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_key(path)) == 32
    with pytest.raises(ContentError, match="cannot be made: File exists"):
        make_key(path)


@pytest.mark.parametrize(
    ("text", "mode", "found"),
    [
        ("", 0o600, "is no key"),
        ("AAAA\n", 0o600, "is no key"),
        ("열쇠", 0o600, "is no key"),
        ("A" * 43 + "=", 0o640, "has mode 640"),
        (None, 0o600, "cannot be read: No such file"),
    ],
)
def test_file_that_is_no_key_is_refused(
    tmp_path: Path, text: str | None, mode: int, found: str
) -> None:
    path = tmp_path / "audit.key"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(ContentError, match=found):
        read_key(path)


def test_sealed_text_opens_with_its_key_in_its_place() -> None:
    sealed = seal(KEY, {"prompt": "질문 \ud800"}, PLACE)
    assert "질문".encode() not in sealed
    assert seal(KEY, {"prompt": "질문 \ud800"}, PLACE) != sealed
    assert unseal(KEY, sealed, PLACE) == {"prompt": "질문 \ud800"}


@pytest.mark.parametrize(
    "place",
    [("entries", 8, request_id(1)), ("feedback", 7, request_id(1)), ("entries", 7, request_id(2))],
)
def test_sealed_text_does_not_open_in_another_row(place: tuple[str, int, str]) -> None:
    with pytest.raises(ContentError, match="it was changed, or comes from another row"):
        unseal(KEY, seal(KEY, {}, PLACE), place)


def test_changed_byte_is_seen() -> None:
    sealed = seal(KEY, {"prompt": "질문"}, PLACE)
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(ContentError):
            unseal(KEY, changed, PLACE)
    for short in (b"", sealed[:21]):
        with pytest.raises(ContentError, match="row 7 of entries holds no sealed text"):
            unseal(KEY, short, PLACE)


def test_other_key_is_named() -> None:
    found = f"sealed with key {key_id(KEY)}, and this is {key_id(OTHER)}"
    with pytest.raises(ContentError, match=found):
        unseal(OTHER, seal(KEY, {}, PLACE), PLACE)


def test_log_with_a_key_keeps_texts_that_only_the_key_tells(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    log = AuditLog(path, content_key=KEY)
    ask(log, 1)
    ask(log, 2, prompt=[{"role": "system", "content": "짧게."}, {"role": "user", "content": "왜?"}])
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert "심전도".encode() not in files
    with AuditReader(path) as reader:
        reader.verify()
        assert all("prompt" not in request for request in reader.requests())
    with AuditReader(path, KEY) as reader:
        first, second = reader.requests()
    assert (first["prompt"], first["answer"]) == (QUESTION, ANSWER)
    assert second["prompt"][1] == {"role": "user", "content": "왜?"}
    with AuditReader(path, OTHER) as reader, pytest.raises(ContentError):
        list(reader.requests())
    log.close()


def test_personal_numbers_are_not_even_sealed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", content_key=KEY)
    text = "김 환자 900101-1234567 의 치료는?"
    id = ask(log, 1, prompt=text, answer=f"{text} 안정")
    ask(log, 2, prompt=[{"role": "user", "content": text}, {"role": "assistant", "content": text}])
    with AuditReader(tmp_path / "audit.db", KEY) as reader:
        first, second = reader.requests()
    masked = "김 환자 [주민등록번호] 의 치료는?"
    assert (first["request_id"], first["prompt"], first["answer"]) == (id, masked, f"{masked} 안정")
    assert [message["content"] for message in second["prompt"]] == [masked, masked]
    assert first["personal_data"] == second["personal_data"] == ["resident_number"]
    log.close()
