import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from eval.gate import decide
from eval.predictions import file_name
from eval.report import write_report
from eval.scores import score_arm
from kormed_edge.errors import StageError
from kormed_edge.manifest import MANIFEST, BaseModelId, Manifest, write_json

ARMS = ("adapter", "gguf:Q4_K_M")
TRICK = '4) 다<script>alert("x")</script><img src=http://x.invalid>'
HARDWARE = {
    "machine": "x86_64", "system": "Linux", "python": "3.11", "cpu": "가상 CPU", "cores": 2,
    "memory_gb": 16.0, "gpu": [],
}  # fmt: skip


def choice(number, output):
    return {
        "qa_id": f"17{number:03}", "domain": "internal_medicine", "q_type": "multiple_choice",
        "question": f"지어낸 질문 {number}번의 답은?\n1) 가\n2) 나\n3) 라\n4) 다",
        "answer": "2) 나", "output": output, "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1,
    }  # fmt: skip


def essay(number, output):
    shape = {"q_type": "descriptive", "question": f"지어낸 서술 {number}", "answer": "쉬면 낫는다."}
    return {**choice(number, output), **shape}


REFERENCE = [*(choice(i, "2) 나") for i in range(6)), essay(6, "쉬면 낫는다.")]
CANDIDATE = [choice(0, TRICK), *REFERENCE[1:]]


def stage(run, name, settings):
    manifest = Manifest(
        stage=name, run=run.name, kit_version="0.1.0", git_commit=None, seconds=1.0, seed=42,
        created_utc="2026-01-02T03:04:05+00:00", settings=settings, inputs={}, files={},
        libraries={"numpy": "2"}, hardware=HARDWARE,
        base=BaseModelId(id="HuggingFaceTB/SmolLM2-135M-Instruct", path="/secret/base"),
    )  # fmt: skip
    write_json(run / name / MANIFEST, manifest.model_dump())


def make_run(run, source="samples", reference=REFERENCE, candidate=CANDIDATE):
    """A finished run's folders, with what the report reads and nothing else."""
    for name in ("data", "adapter", "gguf", "eval"):
        (run / name).mkdir(parents=True)
    data = {"source": source, "scheme": "paper", "ratios": [0.8, 0.1, 0.1], "seed": 42}
    stage(run, "data", {"data": data})
    stage(run, "adapter", {"train": {"rank": 16}, "plan": dict.fromkeys(PLAN, 10)})
    stage(run, "gguf", {"export": {"types": ["Q4_K_M"]}})
    stage(run, "eval", {"eval": {"limit": None, "gate": {"margin": -0.02}}})
    write_json(run / "data" / "stats.json", STATS)
    write_json(run / "gguf" / "parity.json", PARITY)
    write_json(run / "adapter" / "memory.json", {"peak_rss_bytes": 1, "train_seconds": 2.0})
    (run / "adapter" / "log.jsonl").write_text('{"loss": 2.0, "step": 1}\n')
    for picture in (run / "data" / "distribution.png", run / "adapter" / "loss.png"):
        Figure(figsize=(1, 1)).savefig(picture)
    predictions = dict(zip(ARMS, (reference, candidate), strict=True))
    for arm, rows in predictions.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (run / "eval" / file_name(arm)).write_text("".join(lines), encoding="utf-8")
    scores = {arm: score_arm(rows) for arm, rows in predictions.items() if rows}
    write_json(run / "eval" / "scores.json", scores)
    verdict = decide(reference, candidate).model_dump(mode="json")
    verdict |= {"reference": ARMS[0], "candidate": ARMS[1]}
    write_json(run / "eval" / "verdict.json", verdict)
    return run


PLAN = (
    "trainable_parameters", "total_parameters", "printed_total", "weights_bytes", "samples",
    "cut_samples", "tokens_per_epoch", "steps",
)  # fmt: skip
STATS = {
    "records": 70, "splits": {"test": {"records": 7, "by_domain": {}}}, "skipped": {},
    "options": {"test": {"per_question": {"4": 6}}}, "repaired": [], "overlap": [],
    "dropped": [{"file": "a.json", "key": "answer", "what": "지어낸 내용"}],
}  # fmt: skip
PARITY = {
    "passed": True,
    "checks": [
        {"name": "tokens demo.gguf", "passed": False, "expected": {"prompts": 7},
         "measured": {"differing": 1, "first": ["지어낸 질문 5번"]}},
    ],
    "types": {"Q4_K_M": {"fallbacks": {"token_embd.weight": {"asked": "Q4_K", "used": "Q8_0"}}}},
}  # fmt: skip


def page_of(tmp_path, **changes):
    run = make_run(tmp_path / "demo", **changes)
    return write_report(run, tmp_path / "report").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("report"))


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_verdict_stands_first_with_reasons_and_the_items_it_would_need(page):
    top = page[page.index("<main>") : page.index('id="scores"')]
    assert "판정 보류" in top
    assert "INCONCLUSIVE" in top
    assert "정답·오답이 바뀐 문항: +16.67점, 판정 불가" in top
    assert "n = 7" in top
    assert re.search(r"약</span>.*<strong>[\d,]+</strong>", top)


def test_scores_have_intervals_and_n(page):
    # Wilson for 6 of 6 and for 5 of 6.
    assert "100.0<small>[61.0–100.0]</small>" in page
    assert '83.3<small>[43.6–97.0]</small></td><td class="number">6</td>' in page
    assert "sees no Hangul" in page


def test_model_text_is_never_markup(page):
    assert "4) 다&lt;script&gt;alert(" in page
    assert [tag for tag, _ in Elements(page).found].count("script") == 1


def test_nothing_is_fetched_and_nothing_runs_inline(page):
    attributes = [item for _, found in Elements(page).found for item in found.items()]
    targets = [value for key, value in attributes if key in ("src", "href", "action", "srcset")]
    assert len(targets) > 10
    assert all(value.startswith(("data:", "#")) for value in targets)
    assert not [key for key, _ in attributes if key.startswith("on") or key == "style"]
    assert not re.search(r"url\(|@import", page)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_policy_allows_exactly_the_kits_own_style_and_script(page, tag):
    content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    policy = next(a["content"] for _, a in Elements(page).found if "http-equiv" in a)
    assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_sentence_is_in_both_languages_korean_first(page):
    languages = [a["class"] for tag, a in Elements(page).found if a.get("class") in ("ko", "en")]
    assert '<html lang="ko">' in page
    assert languages.count("en") > 100
    assert "".join(languages).replace("koen", "") == "ko"  # the word FAIL beside 불합격


def test_samples_show_both_answers_of_a_changed_item(page):
    changed = page[page.index('id="flips"') : page.index('id="parity"')]
    assert "지어낸 질문 0번" in changed
    assert "17000" in changed
    assert "지어낸 질문 1번" not in changed


def test_demonstration_material_is_named_as_such(page):
    assert "synthetic" in page
    assert "SmolLM2-135M shows that the machinery works, not medicine" in page


@pytest.mark.parametrize("source", ["/data/aihub", "/data/samples", "sean0042/KorMedMCQA"])
def test_other_sources_show_ids_and_no_text(tmp_path, source):
    page = page_of(tmp_path, source=source)
    assert "<li>17000</li>" in page
    for text in ("지어낸", "쉬면", "alert", "2) 나", "/data/", "/secret"):
        assert text not in page


def test_equal_runs_give_equal_bytes(tmp_path):
    run = make_run(tmp_path / "demo")
    first, second = (write_report(run, tmp_path / name).parent for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 6
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_gate_without_inputs_is_reported_as_a_fail(tmp_path):
    page = page_of(tmp_path, reference=[])
    assert "불합격" in page
    assert "reference arm: no predictions" in page


def test_a_run_without_multiple_choice_has_a_report(tmp_path):
    rows = [essay(i, "쉬면 낫는다.") for i in range(3)]
    page = page_of(tmp_path, reference=rows, candidate=rows)
    assert "no multiple-choice items" in page
    assert not (tmp_path / "report" / "accuracy.png").exists()


def test_a_missing_file_is_named(tmp_path):
    run = make_run(tmp_path / "demo")
    (run / "gguf" / "parity.json").unlink()
    with pytest.raises(StageError, match=r"parity\.json is missing"):
        write_report(run, tmp_path / "report")


def test_cases_are_side_by_side_for_samples_and_ids_elsewhere(tmp_path):
    for source in ("samples", "/data/71875"):
        run = make_run(tmp_path / Path(source).name, source=source)
        before = [row | {"output": "모르겠다"} for row in REFERENCE]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in before)
        (run / "eval" / file_name("base")).write_text("".join(lines), encoding="utf-8")
        scores = json.loads((run / "eval" / "scores.json").read_text())
        write_json(run / "eval" / "scores.json", {"base": score_arm(before), **scores})
        page = write_report(run, tmp_path / "report").read_text(encoding="utf-8")
        cases = page[page.index('id="cases"') : page.index('id="parity"')]
        assert "17000" in cases
        assert ("모르겠다" in cases) is (source == "samples")
