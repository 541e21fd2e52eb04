import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_run import REFERENCE, choice, essay, make_run, phrase

from eval.calibrating import calibrate, measure
from eval.report import write_report
from eval.report_confidence import reliability_lines
from kormed_edge.errors import StageError
from kormed_edge.manifest import write_json


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
    assert "<li>17000 <small>" in page
    for text in ("지어낸", "쉬면", "alert", "2) 나", "/data/", "/secret"):
        assert text not in page


def test_equal_runs_give_equal_bytes(tmp_path):
    run = make_run(tmp_path / "demo")
    first, second = (write_report(run, tmp_path / name).parent for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 7
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


@pytest.mark.parametrize("source", ["samples", "/data/71875"])
def test_cases_are_side_by_side_for_samples_and_ids_elsewhere(tmp_path, source):
    before = [row | {"output": "모르겠다"} for row in REFERENCE]
    page = page_of(tmp_path, source=source, base=before)
    cases = page[page.index('id="cases"') : page.index('id="parity"')]
    assert "17000" in cases
    assert ("모르겠다" in cases) is (source == "samples")


def test_types_stand_one_below_the_other_and_then_their_mean(tmp_path):
    rows = [*REFERENCE, phrase(7, "모르겠다")]
    page = page_of(tmp_path, reference=rows, candidate=rows)
    types = page[page.index('id="types"') : page.index("<details>", page.index('id="types"'))]
    headings = re.findall(r'scope="rowgroup"><span class="ko" lang="ko">(.*?)</span>', types)
    assert headings == ["객관식", "단답형", "서술형", "전체 (세 유형의 단순 평균)"]
    assert "66.7<small>" in types  # (100 + 0 + 100) / 3, where the mean of all items is 87.5


def test_a_set_without_all_three_types_has_no_mean_of_types(page):
    assert "단순 평균)</span>" not in page


def test_figures_bear_the_papers_numbers(page):
    captions = re.findall(r"<figcaption><b>.*?lang=\"en\">(.*?)</span>", page)
    assert captions == [*(f"Fig. 3({letter})" for letter in "abcd"), "Fig. 1", "Fig. 2"]


def test_what_was_left_out_is_counted_by_key_without_the_text(page):
    data = page[page.index('id="data"') : page.index('id="training"')]
    assert "1 (<code>answer</code> 1)" in data
    assert '다른 파일</span><span class="en" lang="en">other files</span> 3' in data
    assert "지어낸 내용" not in data
    assert '<td class="number">6</td><td class="number">6</td>' in data


def test_the_judged_file_is_named_with_its_hash(page):
    assert f'demo-Q4_K_M.gguf (0.01 GB)<small class="hash">SHA-256 {"ab" * 32}' in page


def test_a_changed_item_says_which_options_were_read(page):
    changed = page[page.index('id="flips"') : page.index('id="parity"')]
    assert [int(n) for n in re.findall(r"chose</span> (\d)", changed)] == [2, 4]


def test_a_partial_run_says_so_instead_of_claiming_a_loss(tmp_path):
    run = make_run(tmp_path / "demo", reference=[])
    manifest = json.loads((run / "eval" / "manifest.json").read_text())
    manifest["settings"]["eval"] |= {"sample": "paper"}
    (run / "eval" / "manifest.json").write_text(json.dumps(manifest))
    page = write_report(run, tmp_path / "report").read_text(encoding="utf-8")
    assert "일부 문항만 평가했으므로 비교하지 않고 불합격" in page
    assert "(eval.sample = paper)" in page


def test_confidence_is_measured_in_a_table_and_a_figure(tmp_path):
    run = make_run(tmp_path / "demo")
    scores = json.loads((run / "eval" / "scores.json").read_text(encoding="utf-8"))
    rows = [{**row, "option_probabilities": [0.1, 0.7, 0.1, 0.1]} for row in REFERENCE[:-1]]
    rows[0]["output"] = "1) 가"
    known = calibrate(rows, "ab" * 32, 0.5)
    scores["gguf:Q4_K_M"]["calibration"] = measure(rows, known)
    write_json(run / "eval" / "scores.json", scores)
    page = write_report(run, tmp_path / "report").read_text(encoding="utf-8")
    section = page[page.index('<section id="confidence">') : page.index('<section id="checks">')]
    assert "gguf:Q4_K_M" in section
    assert "경고 기준" in section
    for label in ("separation (AUROC)", "coverage at 5 % error", "calibration error, after"):
        assert label in section
    assert "100.0<small>[" in section  # the one wrong answer is the least sure
    assert (tmp_path / "report" / "calibration_multiple_choice.png").is_file()


def test_answers_that_nobody_can_read_have_no_reliability_figure():
    row = {**choice(1, "모르겠습니다"), "option_probabilities": [0.1, 0.7, 0.1, 0.1]}
    measured = measure([row], calibrate([row], "ab" * 32, 0.5))
    assert measured["multiple_choice"]["warned"]["value"] == 1
    assert reliability_lines({"gguf:Q4_K_M": {"calibration": measured}}, "gguf:Q4_K_M") == {}


def test_run_without_a_calibration_has_no_section_on_it(page):
    assert 'id="confidence"' not in page
    assert 'href="#confidence"' not in page
