import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from bundle_run import PASSED, UNDECIDED, item, jsonl, make_run, stage

from kormed_edge.bundle_evidence import acceptance_sets, decide_gate, hash_record, require_pass
from kormed_edge.errors import BundleError
from kormed_edge.records import Record

ARM = "gguf:Q4_K_M"


def sealed(run: Path, **options: bool) -> list[tuple[Any, list[dict[str, Any]]]]:
    settings = {"benchmark": False, "include_restricted": False, **options}
    sets = acceptance_sets(run, ARM, **settings)
    return [(s, [json.loads(line) for line in text.splitlines()]) for s, text in sets.items()]


def test_samples_travel_whole_with_their_answers(tmp_path: Path) -> None:
    [(described, items)] = sealed(make_run(tmp_path / "r"))
    expected = item(0)
    del expected["seconds"]
    assert items[0] == expected
    assert (described.n, described.texts, described.restricted) == (3, True, False)
    assert (described.source, described.licence) == ("samples", "Apache-2.0")


@pytest.mark.parametrize("source", ["/data/aihub", "KoMedQA.jsonl", "./samples"])
def test_of_other_items_only_hashes_travel(source: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", source)
    [(described, items)] = sealed(run)
    assert (described.n, described.texts, described.restricted) == (3, False, True)
    assert described.source == "restricted"
    fields = {key: item(0)[key] for key in ("qa_id", "domain", "q_type", "question", "answer")}
    assert items[0] == {
        "qa_id_sha256": sha256(b"17000").hexdigest(),
        "record_sha256": hash_record(Record(**fields)),
        "output_sha256": sha256("1) 휴식".encode()).hexdigest(),
    }
    [text] = acceptance_sets(run, ARM, benchmark=False, include_restricted=False).values()
    assert "휴식" not in text.decode()


def test_restricted_items_travel_only_when_asked(tmp_path: Path) -> None:
    [(described, items)] = sealed(make_run(tmp_path / "r", "/data/aihub"), include_restricted=True)
    assert items[0]["question"] == item(0)["question"]
    assert described.restricted
    assert described.licence == "not to be redistributed"


def test_kormedmcqa_is_marked_with_its_licence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "/data/aihub")
    rows = jsonl([item(0, "doctor"), item(1, "nurse")])
    stage(run, "benchmark", {"kormed-gguf-Q4_K_M.jsonl": rows}, ("gguf",))
    (test, _), (described, items) = sealed(run, benchmark=True)
    assert not test.texts
    assert (described.file, described.n) == ("acceptance/kormedmcqa.jsonl", 2)
    assert described.licence == "CC-BY-NC-2.0"
    assert items[0]["domain"] == "doctor"


def test_one_item_of_another_kind_makes_a_set_restricted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "/data/mixed")
    rows = jsonl([item(0, "doctor"), item(1)])
    stage(run, "benchmark", {"kormed-gguf-Q4_K_M.jsonl": rows}, ("gguf",))
    assert [described.texts for described, _ in sealed(run, benchmark=True)] == [False, False]


def test_arm_without_predictions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no predictions"):
        acceptance_sets(make_run(tmp_path / "r"), "gguf:Q8_0", benchmark=False,
                        include_restricted=False)  # fmt: skip


def test_gate_is_decided_anew(tmp_path: Path) -> None:
    gate = decide_gate(make_run(tmp_path / "r"), "gguf:Q4_K_M")
    assert gate.outcome == "INCONCLUSIVE"  # three items prove nothing
    assert any("accuracy" in reason for reason in gate.reasons)


def test_gate_on_another_file_says_nothing_about_this_one(tmp_path: Path) -> None:
    gate = decide_gate(make_run(tmp_path / "r"), "gguf:Q8_0")
    assert gate.outcome == "INCONCLUSIVE"
    assert "judged gguf:Q4_K_M, not gguf:Q8_0" in gate.reasons[0]


def test_damaged_run_has_no_gate(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    (run / "gguf" / "r-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(BundleError, match=r"1 difference\(s\) from its manifests"):
        decide_gate(run, "gguf:Q4_K_M")


def test_only_pass_passes() -> None:
    require_pass(PASSED, "demo")
    with pytest.raises(BundleError, match="INCONCLUSIVE for gguf:Q4_K_M\n  too few"):
        require_pass(UNDECIDED, "demo")
