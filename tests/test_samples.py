import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import yaml

from kormed_edge.records import DOMAINS, MULTIPLE_CHOICE, Q_TYPES
from train.aihub import read_aihub
from train.splits import Splits, find_overlap

SAMPLES = Path(__file__).parents[1] / "samples"


def load_build():
    spec = importlib.util.spec_from_file_location("samples_build", SAMPLES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


@pytest.fixture(scope="module")
def reading():
    return read_aihub(SAMPLES)


@pytest.fixture
def folder(tmp_path):
    """A samples folder with six small rows in each department."""
    (tmp_path / "facts").mkdir()
    for domain in DOMAINS.values():
        write_rows(tmp_path, domain, [fact(n) for n in range(1, 7)])
    assert build.main(["--folder", str(tmp_path)]) == 0
    return tmp_path


def fact(number, **changes):
    row = {"id": f"XX-{number:03}", "type": MULTIPLE_CHOICE, "question": f"{number}번의 답은?"}
    row |= {"answer": "맞음", "distractors": ["가", "나", "다", "라"], "explanation": "왜냐하면."}
    return row | changes


def write_rows(folder, domain, rows):
    path = folder / "facts" / f"{domain}.yaml"
    path.write_text(yaml.safe_dump(rows, allow_unicode=True), encoding="utf-8")


def check(folder):
    return build.main(["--folder", str(folder), "--check"])


def test_the_samples_are_what_their_tables_give(capsys):
    assert build.main(["--check"]) == 0, capsys.readouterr().out


def test_every_sample_passes_the_loader_without_repair(reading):
    assert len(reading.records) >= 300
    assert (reading.dropped, reading.repaired) == ([], [])


def test_every_department_has_every_type_in_both_parts(reading):
    pairs = zip(reading.records, reading.origins, strict=True)
    found = {(record.domain, record.q_type, origin) for record, origin in pairs}
    assert len(found) == len(DOMAINS) * len(Q_TYPES) * 2
    assert None not in reading.origins


@pytest.mark.parametrize("domain", DOMAINS.values())
def test_right_answers_are_spread_evenly(reading, domain):
    choices = [r for r in reading.records if (r.domain, r.q_type) == (domain, MULTIPLE_CHOICE)]
    positions = Counter(record.answer[:3] for record in choices)
    assert set(positions) == {"1) ", "2) ", "3) ", "4) ", "5) "}
    assert max(positions.values()) - min(positions.values()) <= 1


def test_no_question_is_in_both_parts(reading):
    parts = {"training": [], "validation": []}
    for record, origin in zip(reading.records, reading.origins, strict=True):
        parts[origin].append(record)
    assert find_overlap(Splits(parts["training"], [], parts["validation"])) == []


def test_a_new_row_moves_no_earlier_one(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    write_rows(folder, "obgyn", [fact(n) for n in range(1, 8)])
    build.main(["--folder", str(folder)])
    after = {path: path.read_bytes() for path in folder.rglob("*.json")}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


@pytest.mark.parametrize("damage", ["missing", "changed", "extra"])
def test_check_fails_and_names_the_file_that_differs(folder, capsys, damage):
    path = next(folder.rglob("필수_14001.json"))
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        path.write_text("{}")
    else:
        path = path.with_name("필수_14099.json")
        path.write_text("{}")
    assert check(folder) == 1
    assert path.name in capsys.readouterr().out
    build.main(["--folder", str(folder)])
    assert check(folder) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([fact(1, distractors=["가", "나", "다", "맞음"])], "5 different texts"),
        ([fact(1, distractors=["가", "나", "다"])], "5 different texts"),
        ([fact(1, answer=" ")], "an empty text"),
        ([fact(1, hint="x")], "keys"),
        ([fact(1, type="essay")], "unknown type 'essay'"),
        ([fact(1), fact(1)], "two rows have the same number"),
    ],
)
def test_a_row_that_is_not_in_form_is_refused(folder, rows, message):
    write_rows(folder, "obgyn", rows)
    with pytest.raises(ValueError, match=rf"obgyn\.yaml: .*{message}"):
        check(folder)
