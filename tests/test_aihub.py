import unicodedata
import zipfile

import pytest
from aihub_tree import encoded, row, short_row, write_json, write_jsonl, write_tree, write_zip

from kormed_edge.errors import DataError
from train.aihub import SISTER_SET, read_aihub
from train.label_files import OTHER_FILES, SOURCE_TEXTS
from train.reading import Problem


def problem_of(tmp_path, value):
    """What reading one file says about it; its other half is a good record."""
    write_json(tmp_path / "bad.json", value)
    write_json(tmp_path / "good.json", short_row(999))
    reading = read_aihub(tmp_path, "drop")
    assert [record.qa_id for record in reading.records] == ["999"]
    return [(problem.key, problem.what) for problem in reading.dropped]


def answer_of(tmp_path, **changes):
    write_json(tmp_path / "a.json", row(**changes))
    reading = read_aihub(tmp_path)
    return reading.records[0].answer, [problem.what for problem in reading.repaired]


@pytest.mark.parametrize("space", [" ", "_"])
def test_a_tree_of_zips_is_read_and_source_texts_are_counted(tmp_path, space):
    write_tree(tmp_path, training=16, validation=4, space=space)
    reading = read_aihub(tmp_path)
    assert len(reading.records) == 20
    assert reading.origins.count("training") == 16
    assert reading.origins.count("validation") == 4
    assert reading.skipped == {SOURCE_TEXTS: 8}
    assert (reading.dropped, reading.repaired) == ([], [])


def test_codes_become_names_and_ids_text(tmp_path):
    write_json(tmp_path / "a.json", short_row(7, domain=16, q_type=3, answer="서술 문단이다.\n"))
    record = read_aihub(tmp_path / "a.json").records[0]
    assert (record.qa_id, record.domain, record.q_type) == ("7", "emergency", "descriptive")
    assert record.answer == "서술 문단이다."


@pytest.mark.parametrize(
    ("folder", "origin"),
    [
        ("Training/02.라벨링데이터/TL_내과", "training"),
        ("Validation/02.라벨링데이터", "validation"),
        ("VL_내과", "validation"),
        ("Training/VL_내과", "validation"),
        ("1.Training", "training"),
        ("TLC", None),
        ("some/flat/folder", None),
    ],
)
def test_the_innermost_name_tells_the_origin(tmp_path, folder, origin):
    write_json(tmp_path / folder / "a.json", short_row())
    assert read_aihub(tmp_path).origins == [origin]
    assert read_aihub(tmp_path / folder).origins == [origin]


def test_unzipped_source_texts_are_skipped_in_macos_spelling_too(tmp_path):
    folder = unicodedata.normalize("NFD", "01.원천데이터")
    write_json(tmp_path / folder / "a.json", {"text": "x"})
    write_json(tmp_path / "TS_내과" / "b.json", {"text": "x"})
    write_json(tmp_path / "c.json", short_row())
    (tmp_path / "readme.txt").write_text("x")
    assert read_aihub(tmp_path).skipped == {SOURCE_TEXTS: 2, OTHER_FILES: 1}


def test_zip_names_without_the_utf8_flag_are_read_and_shown_readably(tmp_path):
    write_zip(tmp_path / "TL_a.zip", {"/필수_1.json": short_row(1), "/필수_2.json": {}})
    with zipfile.ZipFile(tmp_path / "TL_a.zip") as archive:
        assert "필수" not in archive.namelist()[0]
    with pytest.raises(DataError, match=r"TL_a\.zip/필수_2\.json: qa_id: is missing"):
        read_aihub(tmp_path / "TL_a.zip")


def test_one_zip_of_the_whole_tree_is_read(tmp_path):
    members = {
        "01.원천데이터/a.json": {},
        "Validation/02.라벨링데이터/b.json": short_row(),
        "__MACOSX/._b.json": 1,
    }
    write_zip(tmp_path / "all.zip", members, zipfile.ZIP_DEFLATED)
    reading = read_aihub(tmp_path / "all.zip")
    assert reading.origins == ["validation"]
    assert reading.skipped == {SOURCE_TEXTS: 1, OTHER_FILES: 1}


UNSAFE = [
    "../x.json",
    "a/../../x.json",
    "a\\..\\x.json",
    "C:/x.json",
    "C:\\x.json",
    "\\\\host\\x.json",
    "//host/x.json",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_zip_with_an_unsafe_name_is_refused(tmp_path, name):
    write_zip(tmp_path / "TL_a.zip", {"ok.json": short_row(), name: short_row(2)})
    with pytest.raises(DataError, match=r"TL_a\.zip holds the unsafe name"):
        read_aihub(tmp_path, "drop")


def test_a_truncated_zip_is_refused_by_name(tmp_path):
    write_zip(tmp_path / "TL_a.zip", {"a.json": short_row()})
    data = (tmp_path / "TL_a.zip").read_bytes()
    (tmp_path / "TL_a.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"^TL_a\.zip cannot be read"):
        read_aihub(tmp_path, "drop")


def test_a_zip_with_a_flipped_byte_is_refused_by_name(tmp_path):
    write_zip(tmp_path / "TL_a.zip", {"a.json": short_row()})
    data = bytearray((tmp_path / "TL_a.zip").read_bytes())
    data[data.index("모의병".encode())] ^= 1
    (tmp_path / "TL_a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"^TL_a\.zip cannot be read: Bad CRC-32"):
        read_aihub(tmp_path, "drop")


def test_an_oversized_member_is_refused(tmp_path):
    members = {"a.json": short_row(answer="가" * 2_000_000)}
    write_zip(tmp_path / "TL_a.zip", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="at most 4,000,000 bytes"):
        read_aihub(tmp_path)


@pytest.mark.parametrize(
    ("value", "key", "what"),
    [
        (short_row(qa_id=None), "qa_id", "is missing"),
        (short_row("1"), "qa_id", "is '1', not an integer"),
        (short_row(domain=True), "domain", "is True, not an integer"),
        (short_row(question=3), "question", "is 3, not a string"),
        (short_row(domain=4), "domain", "4 belongs to the sister set 71874; 14 to 17 are known"),
        (short_row(domain=18), "domain", "18 is unknown; 14 to 17 are known"),
        (short_row(q_type=4), "q_type", "4 is unknown; 1 to 3 are known"),
        (short_row(question=" \n"), "question", "is empty"),
        (short_row(answer=""), "answer", "is empty"),
        (short_row(source="x"), "source", "is not a key of AI Hub 71875"),
        ([short_row()], "", "holds a list where one object is expected"),
        (row(question="답은? 1) 가 2) 나"), "question",
         'has no readable options "1) …", each on its own line'),
        (row(question="1) 가\n2) 나"), "question", "has options but no stem"),
        (row(question="답은?\n1) 가\n2)\n3) 다"), "question", "has an empty option 2"),
        (row(answer="4) 가상열"), "answer", "'4) 가상열' is not option 4"),
        (row(answer="6) 가정통"), "answer", "'6) 가정통' is not option 6"),
        (row(answer="없는답"), "answer", "'없는답' is not among the options"),
        (row(answer="7"), "answer", "'7' is not among the options"),
    ],
)  # fmt: skip
def test_what_breaks_the_format_is_named(tmp_path, value, key, what):
    assert problem_of(tmp_path, value) == [(key, what)]


@pytest.mark.parametrize(
    "data", [b"{", b"", encoded("가")[:-2], "가".encode("cp949"), b"[" * 200_000]
)
def test_what_is_not_json_in_utf8_is_named(tmp_path, data):
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.json: not JSON in UTF-8"):
        read_aihub(tmp_path)


def test_half_a_surrogate_pair_is_named(tmp_path):
    (tmp_path / "bad.json").write_text(
        '{"qa_id": 1, "domain": 17, "q_type": 2, "question": "\\ud83d", "answer": "a"}'
    )
    with pytest.raises(DataError, match="question: holds half of a surrogate pair"):
        read_aihub(tmp_path)


@pytest.mark.parametrize(
    ("answer", "repairs"),
    [
        ("4) 가정통", []),
        ("4)가정통", ["one space set after the option number"]),
        ("4)  가정통", ["one space set after the option number"]),
        ("가정통", ["option number added"]),
        ("4", ["option text added"]),
        ("4)", ["option text added"]),
    ],
)
def test_the_answers_format_is_repaired_and_listed(tmp_path, answer, repairs):
    assert answer_of(tmp_path, answer=answer) == ("4) 가정통", repairs)


def test_an_explanation_after_the_option_is_kept(tmp_path):
    answer = "4) 가정통\n가정통은 예시이다."
    assert answer_of(tmp_path, answer=answer) == (answer, [])


def test_a_number_that_is_also_another_options_text_is_not_guessed(tmp_path):
    question = "몇 개인가?\n1) 4\n2) 3\n3) 2\n4) 1"
    value = row(question=question, answer="4")
    assert problem_of(tmp_path, value) == [("answer", "'4' could be option [1, 4]")]


def test_a_longer_option_is_not_taken_for_a_shorter_one_with_an_explanation(tmp_path):
    value = row(question="답은?\n1) 철분\n2) 철분제", answer="1) 철분제")
    assert problem_of(tmp_path, value) == [("answer", "'1) 철분제' is not option 1")]


def test_exact_duplicates_are_dropped_and_listed(tmp_path):
    write_json(tmp_path / "TL_a" / "a.json", short_row())
    write_json(tmp_path / "VL_a" / "b.json", short_row())
    reading = read_aihub(tmp_path)
    what = "1 is an exact duplicate of TL_a/a.json"
    assert len(reading.records) == 1
    assert reading.dropped == [Problem("VL_a/b.json", "qa_id", what)]


def test_one_id_with_two_contents_keeps_neither(tmp_path):
    write_zip(tmp_path / "TL_a.zip", {"a.json": short_row(), "b.json": short_row(2)})
    write_zip(tmp_path / "TL_b.zip", {"a.json": short_row(answer="예시증")})
    with pytest.raises(DataError, match=r"TL_b\.zip/a\.json: qa_id: 1 has other content in TL_a"):
        read_aihub(tmp_path)
    reading = read_aihub(tmp_path, "drop")
    assert [record.qa_id for record in reading.records] == ["2"]
    assert [problem.file for problem in reading.dropped] == ["TL_a.zip/a.json", "TL_b.zip/a.json"]


def test_twenty_problems_are_shown_and_the_rest_counted(tmp_path):
    for number in range(23):
        write_json(tmp_path / f"{number:02}.json", short_row(number, answer=""))
    with pytest.raises(DataError) as caught:
        read_aihub(tmp_path)
    lines = caught.value.found.splitlines()
    assert lines[0] == f"{tmp_path}: 23 problems beside 0 good records"
    assert lines[1:3] == ["  00.json: answer: is empty", "  01.json: answer: is empty"]
    assert (len(lines), lines[-1]) == (22, "  … and 3 more")
    assert "data.on_invalid=drop" in str(caught.value)


def test_a_folder_without_records_says_what_was_skipped(tmp_path):
    write_zip(tmp_path / "TS_a.zip", {})
    with pytest.raises(DataError, match="no records\n  1 source text files skipped"):
        read_aihub(tmp_path)


def test_dropping_everything_is_an_error(tmp_path):
    write_json(tmp_path / "a.json", {})
    with pytest.raises(DataError, match=r"no records\n  a\.json: qa_id: is missing"):
        read_aihub(tmp_path, "drop")


def test_komedqas_jsonl_may_have_more_keys_and_skips_the_sister_set(tmp_path):
    rows = [short_row(1, domain_name="내과"), row(2, q_type_name="x"), short_row(3, domain=4)]
    write_jsonl(tmp_path / "k.jsonl", rows)
    reading = read_aihub(tmp_path / "k.jsonl")
    assert [record.qa_id for record in reading.records] == ["1", "2"]
    assert (reading.origins, reading.skipped) == ([None, None], {SISTER_SET: 1})


def test_a_jsonl_problem_names_its_line(tmp_path):
    write_jsonl(
        tmp_path / "k.jsonl", [short_row(1, question="줄\u2028바꿈?"), short_row(2, answer="")]
    )
    assert read_aihub(tmp_path, "drop").dropped == [Problem("k.jsonl:2", "answer", "is empty")]
