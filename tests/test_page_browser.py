"""The clinician's page in Debian's Chromium, over the real server."""

import json
import threading

import pytest
from playwright.sync_api import expect
from scripted_model import ANSWER
from serving import running
from test_page import Idle
from test_report_browser import brightness, chromium  # noqa: F401
from test_server import serve

from kormed_edge.api_keys import hash_key
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineBusyError
from kormed_edge.guards import Guards, guarded
from kormed_edge.loading import LoadingApp
from kormed_edge.metrics import Metrics
from kormed_edge.records import split_options
from kormed_edge.request import Piece, TokenLogprob
from kormed_edge.served_adapters import ServedAdapter
from kormed_edge.server import create_app

PHONE = {"viewport": {"width": 360, "height": 640}}
OPTIONS = ["뇌파", "폐 기능 검사", "심전도", "복부 초음파"]
ITEM = "54세 남자가 흉통으로 내원하였다. 가장 먼저 할 검사는?\n" + "\n".join(
    f"{i}) {option}" for i, option in enumerate(OPTIONS, 1)
)
TRICK = "<img src=x onerror=alert(1)><script>alert(2)</script><b>굵게</b>"
TEXTS = [
    ITEM,
    "질문",
    "",
    "1) 하나뿐",
    "보기: 1.5) 아님\n1) 가\n2) 나",
    "지문\n1) 지문의 줄\n2) 지문의 줄\n질문?\n1) 가\n2) 나\n3) 다",
    "질문?\r\n1) 가  \r\n\t2) 나\n3) 다\n이어지는 줄\n",
    "질문?\n1) 가\n3) 다",
    "질문?\n2) 나\n3) 다",
    "질문?\u20281) 가\x0b2) 나\x85 3) 다",
    "1) 가\n2) 나",
    "질문?\n1)\n2) 나\n10) 열",
    "1) 첫\n2) 둘\n1) 가\n2) 나\n3) 다\n3) 라",
]


class Speaker(Idle):
    """Says its pieces and ends, or does not end; refuses the first `busy` requests; `chances` are
    the log-probabilities of the options."""

    def __init__(self, *said, ends=True, busy=0, chances=()):
        super().__init__(*said)
        self.ends, self.busy, self.left = ends, busy, threading.Event()
        self.chances = tuple(TokenLogprob(i, b"", value) for i, value in enumerate(chances))

    def option_tokens(self, options):
        return tuple(range(len(options)))

    def submit_async(self, request, loop):
        if self.busy:
            self.busy -= 1
            raise EngineBusyError("9 requests are under way")
        speech = super().submit_async(request, loop)
        speech.options = self.chances if request.options else ()
        speech.cancel, cancel = (lambda: (cancel(), self.left.set())), speech.cancel
        if self.ends:
            speech.said.put_nowait(Piece("", "stop"))
        return speech

    def close(self): ...


@pytest.fixture
def visit(chromium):  # noqa: F811
    """Opens the page of an engine; `heard` is what the browser complained of, `asked` for what."""
    undo = []

    def open_page(engine, fragment="", guards=None, app=None, **options):
        app = app or LoadingApp(lambda: serve(engine))
        server = running(app, guarded(app, guards or Guards(local_only=True), Metrics()))
        at = f"http://127.0.0.1:{server.__enter__().where[1]}/"
        undo.append(lambda: server.__exit__(None, None, None))
        context = chromium.new_context(**options)
        undo.append(context.close)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.heard, page.asked, page.at = [], [], at
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("dialog", lambda dialog: (page.heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(at + fragment)
        return page

    yield open_page
    for step in reversed(undo):
        step()


@pytest.fixture(scope="module")
def tiny(scripted_gguf):
    with Engine(scripted_gguf, context=2048, threads=1) as engine:
        engine.close_later, engine.close = engine.close, lambda: None
        yield engine
        engine.close = engine.close_later


def ask(page, text):
    page.get_by_role("textbox", name="질문", exact=True).fill(text)
    page.keyboard.press("Enter")
    return page.locator(".turn").last


def test_the_real_model_is_asked_and_its_choice_shown(visit, tiny):
    page = visit(tiny)
    page.get_by_role("textbox", name="질문", exact=True).fill(ITEM)
    expect(page.locator("#recognized-count .ko")).to_have_text("객관식: 보기 4개를 알아보았습니다")
    assert page.locator("#recognized-options li").all_text_contents() == OPTIONS
    turn = ask(page, ITEM)
    expect(turn.locator(".answer .text")).to_have_text(ANSWER)
    expect(turn.locator(".choice .ko")).to_have_text("선택한 보기: 3) 심전도")
    assert turn.locator(".chosen .text").text_content() == "3) 심전도"
    bars = turn.locator("progress")
    assert sum(bars.evaluate_all("all => all.map(one => one.value)")) == pytest.approx(1)
    assert page.heard == []
    assert {url.removeprefix(page.at).partition("/")[0] for url in page.asked} <= {
        "", "page", "v1", "healthz",
    }  # fmt: skip


def test_answer_is_shown_while_it_is_written_and_can_be_stopped(visit):
    engine = Speaker("심전도를 ", ends=False)
    page = visit(engine)
    turn = ask(page, "질문")
    expect(turn.locator(".answer .text")).to_have_text("심전도를")
    expect(turn.locator(".status .ko")).to_have_text("답변을 쓰고 있습니다…")
    page.get_by_role("button", name="중지").click()
    expect(turn.locator(".status .ko")).to_contain_text("중지했습니다")
    expect(turn.locator(".answer .text")).to_have_text("심전도를")
    expect(page.get_by_role("button", name="묻기", exact=True)).to_be_visible()
    assert engine.left.wait(20)
    assert page.heard == []


def test_keyboard_alone_asks_stops_and_changes_the_language(visit):
    page = visit(Speaker("가", ends=False))
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("첫 줄")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("둘째 줄")
    page.keyboard.press("Enter")
    expect(page.locator(".asked .text")).to_have_text("첫 줄\n둘째 줄")
    expect(page.locator(".answer .text")).to_have_text("가")
    page.keyboard.press("Escape")
    expect(page.locator(".stopped")).to_be_visible()
    for name in ("language-ko", "about-open", "clear", "talk"):
        page.locator(f"#{name}").focus()
        expect(page.locator(f"#{name}")).to_be_focused()
    page.locator("#language-ko").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_every_control_is_reached_by_tab_in_its_order(visit):
    page = visit(Speaker("가"))
    expect(ask(page, "질문").locator(".status")).to_be_hidden()
    focused = "document.activeElement.id || document.activeElement.querySelector('.ko').innerText"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "go"
    order = []
    for _ in range(6):
        page.keyboard.press("Shift+Tab")
        order.insert(0, page.evaluate(focused))
    assert order == ["language-ko", "about-open", "clear", "talk", "복사", "question"]


def test_enter_that_ends_a_syllable_sends_nothing(visit):
    page = visit(Speaker("가"))
    page.locator("#question").fill("가슴")
    page.locator("#question").dispatch_event(
        "keydown", {"key": "Enter", "isComposing": True, "bubbles": True}
    )
    assert page.locator(".turn").count() == 0


def test_text_of_a_model_and_of_a_question_is_only_text(visit):
    page = visit(Speaker(TRICK))
    turn = ask(page, f"{TRICK}\n1) {TRICK}\n2) 나")
    expect(turn.locator(".answer .text")).to_have_text(TRICK)
    assert page.locator(".turn img, .turn b, .turn script, #recognized img").count() == 0
    assert page.heard == []


def test_markup_that_a_script_would_insert_is_refused_by_the_browser(visit):
    page = visit(Speaker("가"))
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>1</b>'")


def test_options_are_found_as_the_service_finds_them(visit):
    page = visit(Speaker("가"))
    found = page.evaluate(
        "texts => import('/page/options.js').then(({splitOptions}) => texts.map(splitOptions))",
        TEXTS,
    )
    assert [(one["stem"], one["options"]) for one in found] == [split_options(t) for t in TEXTS]


@pytest.mark.parametrize(
    ("chances", "words"),
    [
        ((-9.0, -9.0, -0.01, -9.0), "확신도 높음 (100%) · 보정되지 않은 값"),
        ((-1.5, -9.0, -1.0, -9.0), "확신도 보통 (62%) · 보정되지 않은 값"),
        ((-1.0, -1.0, -1.0, -1.0), "확신도 낮음 (25%) · 보정되지 않은 값"),
    ],
)
def test_confidence_is_a_word_with_its_number(visit, chances, words):
    turn = ask(visit(Speaker("3) 심전도", chances=chances)), ITEM)
    expect(turn.locator(".confidence .ko")).to_have_text(words)
    assert turn.locator(".warnings").count() == (words.find("낮음") > 0)
    assert turn.inner_text().count("전문의 확인 필요") == (words.find("낮음") > 0)


def test_warnings_say_what_to_do_and_why(visit):
    turn = ask(visit(Speaker("心電圖 검사")), "질문")
    expect(turn.locator(".warnings strong .ko")).to_have_text("불확실: 전문의 확인 필요")
    expect(turn.locator(".warnings li .ko")).to_contain_text("한자")


def test_guidance_stands_above_the_answer_before_it_is_complete(visit):
    turn = ask(visit(Speaker("가", ends=False)), "지금 남편이 숨을 안 쉬어요")
    guidance = turn.get_by_role("alert")
    expect(guidance).to_contain_text("119")
    assert guidance.bounding_box()["y"] < turn.locator(".answer").bounding_box()["y"]


def test_busy_service_is_asked_again_after_a_countdown(visit):
    page = visit(Speaker("가", busy=1))
    page.clock.install()
    turn = ask(page, "질문")
    expect(turn.locator(".status > .ko")).to_have_text("사용자가 많습니다. 5초 뒤에 다시 묻습니다.")
    page.clock.run_for(2000)
    expect(turn.locator(".status > .ko")).to_contain_text("3초 뒤에")
    page.clock.run_for(3000)
    expect(turn.locator(".answer .text")).to_have_text("가")


def test_countdown_can_be_cancelled_and_the_question_asked_again(visit):
    page = visit(Speaker("가", busy=1))
    turn = ask(page, "질문")
    turn.get_by_role("button", name="취소").click()
    expect(turn.locator(".status")).to_contain_text("중지했습니다")
    turn.get_by_role("button", name="다시 묻기").click()
    expect(turn.locator(".answer .text")).to_have_text("가")


def test_who_waits_is_told_how_many_wait(visit):
    page = visit(Speaker(ends=False))
    page.clock.install()
    turn = ask(page, "질문")
    expect(turn.locator(".status .ko")).to_have_text("질문을 읽고 있습니다…")
    page.clock.run_for(1600)
    expect(turn.locator(".status .ko")).to_contain_text("대기 2건")


def test_loading_is_told_until_the_model_is_there(visit):
    gate = threading.Event()
    app = LoadingApp(lambda: gate.wait() and serve(Speaker("가")))
    page = visit(None, app=app)
    expect(page.locator("#state .ko")).to_contain_text("모델을 불러오고 있습니다")
    gate.set()
    expect(page.locator("#state")).to_be_hidden()
    expect(page.locator("#announce .ko")).to_have_text("준비되었습니다.")
    assert page.heard == []


def test_offline_is_told_and_the_question_is_kept(visit):
    page = visit(Speaker("가"))
    page.context.set_offline(True)
    turn = ask(page, "질문")
    expect(turn.locator(".status .ko")).to_have_text("서비스에 연결할 수 없습니다.")
    expect(page.locator("#state .ko")).to_contain_text("연결되면 알려 드립니다")
    page.context.set_offline(False)
    expect(page.locator("#state")).to_be_hidden()
    turn.get_by_role("button", name="다시 묻기").click()
    expect(turn.locator(".answer .text")).to_have_text("가")


def test_a_fault_is_told_in_the_pages_words(visit):
    class Broken(Speaker):
        def submit_async(self, *_):
            raise KeyError("secret")

    turn = ask(visit(Broken()), "질문")
    expect(turn.locator(".error .ko")).to_contain_text("답하지 못했습니다. (500")


def test_key_is_asked_for_once_and_kept_for_the_tab_only(visit):
    page = visit(Speaker("가"), guards=Guards(keys={"ward": hash_key("secret")}))
    turn = ask(page, "질문")
    value = page.locator("#key-value")
    expect(value).to_be_focused()
    assert value.get_attribute("type") == "password"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-wrong .ko")).to_be_visible()
    expect(page.locator("#key-wrong .ko")).to_have_text("키가 맞지 않습니다.")
    expect(value).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(turn.locator(".answer .text")).to_have_text("가")
    expect(ask(page, "또").locator(".answer .text")).to_have_text("가")
    kept = "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])"
    assert json.loads(page.evaluate(kept)) == [{"kormed.key": "secret"}, {}, ""]


def test_key_that_is_not_given_leaves_the_question(visit):
    page = visit(Speaker("가"), guards=Guards(keys={"ward": hash_key("secret")}))
    turn = ask(page, "질문")
    expect(page.locator("#key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(turn.locator(".error .ko")).to_have_text("API 키가 필요합니다.")


def test_model_version_verification_and_hash_are_one_click_away(visit):
    app = LoadingApp(lambda: create_app(
        Speaker("가"), model="tiny", sha256="ab" * 32, max_new_tokens=8, verified=True
    ))  # fmt: skip
    page = visit(None, app=app)
    expect(page.locator("#state")).to_be_hidden()
    page.get_by_role("button", name="모델 정보").click()
    about = page.get_by_role("dialog", name="모델 정보")
    expect(about.locator("#about-sha256")).to_have_text("ab" * 32)
    expect(about.locator("#about-verified .ko")).to_contain_text("예: 해시가")
    expect(about.locator("#about-model")).to_have_text("tiny")
    expect(about.locator("#about-adapter_sha256")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(about).to_be_hidden()
    expect(page.locator("#about-open")).to_be_focused()


def test_page_names_the_default_adapter_with_both_hashes(visit):
    adapted = Speaker("가")
    adapted.adapters = ("v2",)
    app = LoadingApp(lambda: create_app(
        adapted, model="tiny", sha256="ab" * 32, max_new_tokens=8,
        adapters={"v2": ServedAdapter("22" * 32)}, default_adapter="v2",
    ))  # fmt: skip
    page = visit(None, app=app, permissions=["clipboard-read", "clipboard-write"])
    turn = ask(page, "질문")
    turn.get_by_role("button", name="복사").click()
    expect(turn.get_by_role("button", name="복사했습니다")).to_be_visible()
    hashes = f"v2 · SHA-256 {'ab' * 32}\n어댑터 · SHA-256 {'22' * 32}"
    assert page.evaluate("navigator.clipboard.readText()").endswith(hashes)
    page.get_by_role("button", name="모델 정보").click()
    about = page.get_by_role("dialog", name="모델 정보")
    expect(about.locator("#about-model")).to_have_text("v2")
    expect(about.locator("#about-adapter_sha256")).to_be_visible()
    expect(about.locator("#about-adapter_sha256")).to_have_text("22" * 32)


def test_one_click_clears_the_conversation_and_stops_the_answer(visit):
    engine = Speaker("가", ends=False)
    page = visit(engine)
    expect(ask(page, "질문").locator(".answer .text")).to_have_text("가")
    page.get_by_role("button", name="대화 지우기").click()
    assert page.locator(".turn").count() == 0
    assert engine.left.wait(20)
    expect(page.locator("#question")).to_be_focused()
    expect(page.locator("#go")).to_have_text("묻기Ask중지Stop")
    expect(page.locator(".when-idle")).to_be_visible()


def test_copy_takes_the_answer_with_its_doubts_and_the_notice(visit):
    page = visit(Speaker("心"), permissions=["clipboard-read", "clipboard-write"])
    turn = ask(page, "질문")
    turn.get_by_role("button", name="복사").click()
    expect(turn.get_by_role("button", name="복사했습니다")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("질문\n\n心\n⚠ 불확실: 전문의 확인 필요\n- 답변에 한자가")
    assert "단독 진단이나 처방에 사용할 수 없습니다" in copied
    assert copied.endswith(f"tiny · SHA-256 {'ab' * 32}")


def test_korean_comes_first_and_the_switch_shows_english_alone(visit):
    page = visit(Speaker("3) 심전도", chances=(-1.0, -1.0, -1.0, -1.0)))
    expect(ask(page, ITEM).locator(".warnings")).to_be_visible()
    assert page.locator(".en:visible").count() == 0
    page.get_by_text("English", exact=True).click()
    assert page.locator(".ko:visible").count() == 0
    assert page.locator(".en:visible").count() > 10
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_follows_the_colour_scheme(visit, scheme):
    page = visit(Speaker("가"), color_scheme=scheme)
    expect(ask(page, "질문").locator(".answer .text")).to_have_text("가")
    dark, paper, bright = brightness(page.screenshot())
    assert (paper < 0.25 and bright > 0.7) if scheme == "dark" else (paper > 0.9 and dark < 0.4)


@pytest.mark.parametrize("size", [(360, 640), (320, 480), (800, 360), (2560, 1440)])
@pytest.mark.parametrize("fragment", ["", "#en"])
def test_at_any_size_the_notice_is_seen_and_nothing_scrolls_sideways(visit, size, fragment):
    width, height = size
    page = visit(Speaker("가나다 " * 400), fragment, viewport={"width": width, "height": height})
    page.locator("#question").fill(ITEM)
    assert page.evaluate("[document.documentElement.scrollWidth, scrollY]") == [width, 0]
    page.keyboard.press("Enter")
    expect(page.locator(".turn").get_by_role("button").last).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for part in ("#notice", "#question", "#go"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
