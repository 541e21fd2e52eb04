"""The report in Debian's Chromium, as a hospital opens it: from a file, with nothing beside it."""

import os
import shutil
from io import BytesIO

import pytest
from matplotlib.image import imread
from playwright.sync_api import expect, sync_playwright
from report_run import CANDIDATE, REFERENCE, TRICK, make_run, phrase

from eval.report import write_report

PHONE = {"viewport": {"width": 360, "height": 740}}
UNFOLD = "for (const part of document.querySelectorAll('details')) part.open = true"


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium")
    if program is None and "KORMED_BROWSER" in os.environ:
        pytest.fail("KORMED_BROWSER is set, but there is no chromium: apt-get install chromium")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = [phrase(7, "휴식"), phrase(8, TRICK)]
    base = [row | {"output": f"모르겠다 {TRICK}"} for row in [*REFERENCE, *more]]
    run = make_run(
        folder / "demo", reference=[*REFERENCE, *more], candidate=[*CANDIDATE, *more], base=base
    )
    return write_report(run, folder / "report")


@pytest.fixture
def visit(chromium, report):
    """Opens the report in a fresh context with the options given; `heard` is what it let out."""
    contexts = []

    def open_report(fragment="", **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.heard, page.asked = [], []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("dialog", lambda dialog: (page.heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(report.as_uri() + fragment)
        return page

    yield open_report
    for context in contexts:
        context.close()


def brightness(png):
    """The darkest, the middle and the brightest of a picture's pixels, from 0 to 1."""
    values = sorted(imread(BytesIO(png))[..., :3].mean(axis=2).ravel().tolist())
    return values[0], values[len(values) // 2], values[-1]


def test_only_the_file_itself_is_read_and_nothing_complains(visit, report):
    page = visit()
    page.evaluate(UNFOLD)
    page.wait_for_load_state("networkidle")
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.heard == []


def test_text_of_a_model_makes_no_element_and_runs_nothing(visit):
    page = visit()
    page.evaluate(UNFOLD)
    assert page.locator("dd", has_text=TRICK).first.is_visible()
    assert page.locator("main script, iframe, dd *, img[src^=http]").count() == 0
    assert page.heard == []


def test_inline_script_that_got_in_would_be_refused(visit):
    page = visit()
    with page.expect_console_message(lambda message: "event handler" in message.text):
        page.evaluate("document.querySelector('dd').innerHTML = '<img src=x onerror=alert(1)>'")
    assert "1" not in page.heard


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_korean_comes_first_and_the_switch_shows_english_alone(visit, script):
    page = visit(java_script_enabled=script)
    assert page.locator(".ko:visible").count() > 100
    assert page.locator(".en:visible").count() == 0
    page.get_by_text("English", exact=True).click()
    assert page.locator(".en:visible").count() > 100
    assert page.locator(".ko:visible").count() == 0


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_switch_works_from_the_keyboard(visit, script):
    page = visit(java_script_enabled=script)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#verdict h2 .en").is_visible()
    assert page.locator(".ko:visible").count() == 0
    page.keyboard.press("ArrowLeft")
    assert page.locator(".en:visible").count() == 0


def test_the_pages_language_follows_the_switch_and_the_address(visit):
    page = visit()
    assert page.locator("html").get_attribute("lang") == "ko"
    assert visit("#en").locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_and_figures_follow_the_colour_scheme_with_ink_that_stands_out(visit, scheme):
    page = visit(color_scheme=scheme)
    for part in ("#verdict", "#figures figure >> nth=0", "#training figure"):
        dark, paper, bright = brightness(page.locator(part).screenshot())
        assert (paper < 0.25 and bright > 0.7) if scheme == "dark" else (paper > 0.9 and dark < 0.4)


@pytest.mark.parametrize("fragment", ["", "#en"])
def test_on_a_phone_the_page_does_not_scroll_sideways(visit, fragment):
    page = visit(fragment, **PHONE)
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_on_a_phone_the_verdict_is_there_without_scrolling(visit):
    page = visit(**PHONE)
    first = page.locator("main section").first
    box = first.locator(".outcome").bounding_box()
    assert first.get_attribute("id") == "verdict"
    assert box["y"] + box["height"] < PHONE["viewport"]["height"]


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_paper_shows_all_that_is_folded_and_nothing_to_click(visit, script):
    page = visit(java_script_enabled=script, color_scheme="dark")
    folded = page.locator("details:not([open])")
    assert folded.count() >= 4
    inside = folded.locator("table, .item").all()
    assert len(inside) > 4
    assert not any(part.is_visible() for part in inside)
    page.emulate_media(media="print")
    assert all(part.is_visible() for part in inside)
    assert not page.locator("nav").is_visible()
    assert not page.locator(".switch").is_visible()
    assert brightness(page.locator("#verdict").screenshot())[1] > 0.9


def test_after_printing_the_page_is_as_before(visit):
    page = visit()
    before = page.locator("details[open]").count()
    page.evaluate("addEventListener('beforeprint', () => { document.title = String("
                  "document.querySelectorAll('details:not([open])').length) })")  # fmt: skip
    assert page.pdf().startswith(b"%PDF")
    assert page.title() == "0"
    assert page.locator("details[open]").count() == before


def test_every_picture_loads_and_has_words_in_both_languages(visit):
    pictures = visit().locator("img").all()
    assert len(pictures) == 7
    for picture in pictures:
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert " · " in picture.get_attribute("alt")


def test_wide_tables_can_be_scrolled_from_the_keyboard(visit):
    page = visit(**PHONE)
    table = page.locator("#scores .scroll")
    assert table.evaluate("part => part.scrollWidth > part.clientWidth")
    table.evaluate("part => part.addEventListener('scroll', () => { document.title = 'moved' })")
    table.focus()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_title("moved")
