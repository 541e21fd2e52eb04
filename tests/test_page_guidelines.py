"""The hospital's guidelines and answers written anew, on the clinician's page in Chromium."""

from types import SimpleNamespace

import pytest
from playwright.sync_api import expect
from test_ask_api import SUPPRESSION, Drifting
from test_page import Idle
from test_page_browser import PHONE, TRICK, ask, chromium, visit  # noqa: F401
from test_page_feedback import AXE, axe_findings, load_axe
from test_server import serve

from kormed_edge.guidelines import Passage
from kormed_edge.guidelines_file import GuidelinesError
from kormed_edge.loading import LoadingApp

FIRST = Passage(3, "소생.pdf", 12, "약물 › 용량", "에피네프린 1 mg을 3~5분마다 준다.")
SECOND = Passage(4, f"{TRICK}.txt", None, "", TRICK)
ANSWER = "1 mg이다 [1]. 반복한다 [1, 2] [7]."


class Cited(Drifting, Idle):
    def close(self): ...


class Index:
    """Guidelines that find the same for every question, but for those about parking."""

    def search(self, question):
        return [] if "주차" in question else [FIRST, SECOND]


@pytest.fixture
def grounded(visit):  # noqa: F811
    """Opens the page of a service with guidelines."""

    def open_page(engine=None, fragment="", index=None, **options):
        app = LoadingApp(lambda: serve(engine or Cited(ANSWER), guidelines=index or Index()))
        return visit(None, fragment, app=app, **options)

    return open_page


def test_cited_number_opens_its_passage(grounded):
    page = grounded()
    turn = ask(page, "용량은?")
    expect(turn.locator(".citation")).to_have_count(3)
    shown = turn.locator(".answer .text").inner_text().replace("구절 열기", "")
    assert "".join(shown.split()) == "1mg이다[1].반복한다[1][2][7]."
    turn.get_by_role("button", name="[1] 구절 열기").first.click()
    dialog = page.get_by_role("dialog", name="지침 구절 [1]")
    expect(dialog.locator("#passage-place .ko")).to_have_text("소생.pdf · 12쪽 · 약물 › 용량")
    expect(dialog.locator("#passage-text")).to_have_text(FIRST.text)
    expect(dialog.locator("#passage-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(turn.locator(".citation").first).to_be_focused()
    assert page.heard == []


def test_passages_are_listed_and_those_cited_are_marked(grounded):
    turn = ask(grounded(Cited("1 mg이다 [1].")), "용량은?")
    items = turn.get_by_role("list", name="지침 구절").get_by_role("listitem")
    expect(items).to_have_count(2)
    expect(items.first).to_contain_text("인용됨")
    expect(items.last).not_to_contain_text("인용됨")


def test_text_of_a_document_is_only_text(grounded):
    page = grounded()
    turn = ask(page, "용량은?")
    turn.locator(".source").last.click()
    expect(page.locator("#passage-text")).to_have_text(TRICK)
    assert page.locator("#passage img, #passage b, .sources img, .sources b").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#passage")).to_be_hidden()
    assert page.heard == []


def test_keyboard_reaches_switch_citations_and_list(grounded):
    page = grounded()
    expect(ask(page, "용량은?").locator(".source")).to_have_count(2)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    switch = page.get_by_role("switch", name="지침 근거로 답하기")
    expect(switch).to_be_focused()
    page.keyboard.press("Space")
    expect(switch).not_to_be_checked()
    page.locator(".citation").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#passage")).to_be_visible()


def test_switch_decides_what_is_asked(grounded):
    page = grounded(Cited("1 mg이다 [1]."))
    page.get_by_text("지침 근거로 답하기").click()
    turn = ask(page, "용량은?")
    expect(turn.get_by_role("button", name="복사")).to_be_visible()
    assert turn.locator(".source, .citation, .note").count() == 0


def test_nothing_relevant_and_nothing_cited_are_said(grounded):
    page = grounded(Cited("밤 열 시"))
    expect(ask(page, "주차장은?").locator(".note .ko")).to_contain_text("지침 없이 답했습니다")
    expect(ask(page, "용량은?").locator(".note .ko")).to_contain_text("하나도 인용하지")


def test_there_is_no_switch_where_there_are_no_guidelines(visit):  # noqa: F811
    page = visit(Cited("가"))
    expect(ask(page, "질문").get_by_role("button", name="복사")).to_be_visible()
    expect(page.locator("#grounds")).to_be_hidden()
    page.get_by_role("button", name="모델 정보").click()
    expect(page.locator("#about-guidelines .ko")).to_have_text("아니요")
    expect(page.locator("#about-calibrated .ko")).to_have_text("보정되지 않음")


def test_index_that_cannot_be_read_says_what_to_do(grounded):
    def fail(_question):
        raise GuidelinesError("guidelines.db: malformed")

    turn = ask(grounded(index=SimpleNamespace(search=fail)), "용량은?")
    expect(turn.locator(".error .ko")).to_contain_text("지침 근거를 끄면 지침 없이 답합니다")


def test_copy_takes_the_passages_along(grounded):
    page = grounded(permissions=["clipboard-read", "clipboard-write"])
    turn = ask(page, "용량은?")
    turn.get_by_role("button", name="복사").click()
    expect(turn.get_by_role("button", name="복사했습니다")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert f"[1] 소생.pdf · 12쪽 · 약물 › 용량\n{FIRST.text}\n" in copied
    assert copied.startswith(f"용량은?\n\n{ANSWER}\n")


def test_answer_that_drifts_is_taken_back_before_the_eyes(visit):  # noqa: F811
    engine = Cited("심장은 ", "心臟", instead=("심전도",))
    app = LoadingApp(lambda: serve(engine, suppression=SUPPRESSION))
    turn = ask(visit(None, app=app), "질문")
    expect(turn.locator(".answer .text")).to_have_text("심전도")
    expect(turn.locator(".result .soft .ko")).to_have_text("다른 글자가 섞여 답변을 다시 썼습니다.")
    assert turn.locator(".warnings").count() == 0


def test_while_it_is_written_anew_the_page_says_so(visit):  # noqa: F811
    engine = Cited("心", instead=())
    engine.ends = False
    app = LoadingApp(lambda: serve(engine, suppression=SUPPRESSION))
    turn = ask(visit(None, app=app), "질문")
    expect(turn.locator(".status .ko")).to_have_text("다른 글자가 섞여 답변을 다시 씁니다…")
    expect(turn.locator(".answer .text")).to_be_hidden()


@pytest.mark.parametrize("fragment", ["", "#en"])
def test_on_a_phone_all_of_it_fits(grounded, fragment):
    page = grounded(fragment=fragment, **PHONE)
    page.locator("#question").fill("용량은?")
    page.keyboard.press("Enter")
    expect(page.locator(".source")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for part in ("#notice", "#go", "#grounds"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 640
    for button in page.locator(".citation, .source").all():
        box = button.bounding_box()
        assert box["height"] >= 24
        assert box["width"] >= 24
    page.locator(".source").first.click()
    box = page.locator("#passage").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


@pytest.mark.skipif(AXE is None, reason="KORMED_AXE is not the path of axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("fragment", ["", "#en"])
def test_axe_finds_nothing_serious(grounded, scheme, fragment):
    page = grounded(fragment=fragment, color_scheme=scheme)
    load_axe(page)
    for question in ("주차장은?", "용량은?"):
        page.locator("#question").fill(question)
        page.keyboard.press("Enter")
        expect(page.locator(".turn").last.get_by_role("button").last).to_be_visible()
    expect(page.locator(".source")).to_have_count(2)
    assert axe_findings(page) == []
    page.locator(".source").last.click()
    assert axe_findings(page) == []
    page.locator("#passage-close").click()
    page.locator("#about-open").click()
    assert axe_findings(page) == []
