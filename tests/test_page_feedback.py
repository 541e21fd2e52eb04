"""Feedback under the answers of the clinician's page, in Debian's Chromium."""

import json
import os
from pathlib import Path

import pytest
from audit_rows import KEY
from playwright.sync_api import expect
from test_page_browser import PHONE, Speaker, ask, chromium, visit  # noqa: F401
from test_server import serve

from kormed_edge.api_keys import hash_key
from kormed_edge.audit import AuditLog
from kormed_edge.audit_api import Audited
from kormed_edge.audit_reader import AuditReader
from kormed_edge.guards import Guards
from kormed_edge.loading import LoadingApp

REFUSED = {"type": "x", "message": "<b>no</b>", "param": None}
AXE = os.environ.get("KORMED_AXE")


@pytest.fixture
def audited(visit, tmp_path):  # noqa: F811
    """Opens the page of a service that keeps an audit log; `given` reads what the log has."""
    logs = []

    def open_page(engine=None, fragment="", **options):
        log = AuditLog(tmp_path / "audit.db", content_key=KEY)
        logs.append(log)
        audit = Audited(log, model_sha256="ab" * 32)
        app = LoadingApp(lambda: serve(engine or Speaker("가"), audited=audit))
        page = visit(None, fragment, app=app, **options)
        page.log = log
        return page

    yield open_page
    for log in logs:
        log.close()


def given(tmp_path):
    with AuditReader(tmp_path / "audit.db", KEY) as reader:
        asked = [request["request_id"] for request in reader.requests()]
        return [
            (asked.index(row["request_id"]), row["verdict"], row["comment"])
            for row in reader.feedback()
        ]


def refuse(page, status, code):
    body = json.dumps({"error": {**REFUSED, "code": code}})
    page.route("**/v1/feedback", lambda route: route.fulfill(status=status, body=body))


def sent(form, verdict):
    expect(form.locator(".sent > .ko")).to_have_text(f"✓ 평가를 보냈습니다: {verdict}")


def test_verdict_and_comment_are_sent_by_mouse(audited, tmp_path):
    page = audited()
    expect(ask(page, "첫 질문").locator(".feedback")).to_be_visible()
    turn = ask(page, "다음 질문")
    form = turn.locator(".feedback")
    expect(form.get_by_role("button", name="보내기")).to_be_hidden()
    form.get_by_text("위험", exact=True).click()
    form.get_by_role("textbox", name="의견 (선택)").fill("용량이 <b>열 배</b>")
    form.get_by_role("button", name="보내기").click()
    sent(form, "위험")
    expect(page.locator("#announce .ko")).to_have_text("✓ 평가를 보냈습니다: 위험")
    assert given(tmp_path) == [(1, "dangerous", "용량이 <b>열 배</b>")]
    assert page.heard == []


def test_verdict_is_sent_and_changed_by_keyboard(audited, tmp_path):
    page = audited()
    form = ask(page, "질문").locator(".feedback")
    expect(form).to_be_visible()
    page.keyboard.press("Shift+Tab")
    expect(form.get_by_role("radio", name="위험")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(form.get_by_role("radio", name="틀림")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.type("1시간이 아니다")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    sent(form, "틀림")
    expect(form.get_by_role("button", name="바꾸기")).to_be_focused()
    page.keyboard.press("Enter")
    expect(form.get_by_role("radio", name="틀림")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    sent(form, "맞음")
    assert given(tmp_path) == [(0, "wrong", "1시간이 아니다"), (0, "correct", "1시간이 아니다")]


def test_it_is_not_offered_where_no_audit_is_kept(visit):  # noqa: F811
    page = visit(Speaker("가"))
    with page.expect_response("**/v1/status") as status:
        turn = ask(page, "질문")
    assert status.value.json()["feedback"] is False
    expect(turn.get_by_role("button", name="복사")).to_be_visible()
    assert turn.locator(".feedback").count() == 0


def test_answer_that_was_stopped_can_be_rated(audited, tmp_path):
    page = audited(Speaker("가", ends=False))
    turn = ask(page, "질문")
    expect(turn.locator(".answer .text")).to_have_text("가")
    page.keyboard.press("Escape")
    form = turn.locator(".feedback")
    form.get_by_text("위험", exact=True).click()
    form.get_by_role("button", name="보내기").click()
    sent(form, "위험")
    assert given(tmp_path) == [(0, "dangerous", "")]
    turn.get_by_role("button", name="다시 묻기").click()
    expect(turn.locator(".answer .text")).to_have_text("가")
    expect(form).to_have_count(0)


def test_it_is_not_offered_for_an_answer_that_never_began(audited):
    page = audited(Speaker(ends=False))
    turn = ask(page, "질문")
    expect(turn.locator(".status .ko")).to_contain_text("질문을 읽고")
    page.keyboard.press("Escape")
    expect(turn.get_by_role("button", name="다시 묻기")).to_be_visible()
    assert turn.locator(".feedback").count() == 0


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (503, "audit_unavailable", "전산 담당자에게 알리고 보내기를 다시 누르십시오"),
        (404, "audit_off", "전산 담당자에게 직접 알려 주십시오"),
        (404, "request_not_found", "다시 묻고 평가해 주십시오"),
        (429, "rate_limit_exceeded", "잠시 뒤에 보내기를 다시 누르십시오. (429 <b>no</b>)"),
    ],
)
def test_refusal_says_what_to_do(audited, status, code, words):
    page = audited()
    refuse(page, status, code)
    form = ask(page, "질문").locator(".feedback")
    form.get_by_text("맞음", exact=True).click()
    form.get_by_role("button", name="보내기").click()
    expect(form.locator(".error .ko")).to_contain_text(words)
    expect(page.locator("#announce .ko")).to_contain_text(words)


def test_comment_is_kept_while_the_service_is_away_and_sent_after(audited, tmp_path):
    page = audited()
    form = ask(page, "질문").locator(".feedback")
    form.get_by_text("틀림", exact=True).click()
    comment = form.get_by_role("textbox")
    comment.fill("근거가 없다")
    page.context.set_offline(True)
    form.get_by_role("button", name="보내기").click()
    expect(form.locator(".error .ko")).to_contain_text("서비스에 연결할 수 없어")
    expect(comment).to_have_value("근거가 없다")
    page.context.set_offline(False)
    form.get_by_role("button", name="보내기").click()
    sent(form, "틀림")
    assert given(tmp_path) == [(0, "wrong", "근거가 없다")]


def test_row_that_the_log_lost_is_not_called_sent(audited):
    page = audited()
    page.route("**/v1/feedback", lambda route: route.fulfill(status=201, body='{"id": null}'))
    form = ask(page, "질문").locator(".feedback")
    form.get_by_text("맞음", exact=True).click()
    form.get_by_role("button", name="보내기").click()
    expect(form.locator(".error .ko")).to_contain_text("저장하지 못했습니다")


def test_second_click_while_it_is_sent_sends_nothing(audited, tmp_path):
    page = audited()
    held = []
    page.route("**/v1/feedback", lambda route: held.append(route))
    form = ask(page, "질문").locator(".feedback")
    form.get_by_text("맞음", exact=True).click()
    form.get_by_role("button", name="보내기").dblclick()
    expect(form.locator(".under-way .ko")).to_have_text("보내고 있습니다…")
    [route] = held
    route.continue_()
    sent(form, "맞음")
    assert given(tmp_path) == [(0, "correct", "")]


def test_key_that_was_withdrawn_is_asked_for_again(audited, tmp_path):
    page = audited(guards=Guards(keys={"ward": hash_key("secret")}))
    form = ask(page, "질문").locator(".feedback")
    page.locator("#key-value").fill("secret")
    page.keyboard.press("Enter")
    form.get_by_text("맞음", exact=True).click()
    page.evaluate("sessionStorage.clear()")
    form.get_by_role("button", name="보내기").click()
    page.locator("#key-value").fill("secret")
    page.keyboard.press("Enter")
    sent(form, "맞음")
    assert given(tmp_path) == [(0, "correct", "")]


def test_english_alone_is_shown_in_english(audited):
    page = audited(fragment="#en")
    page.locator("#question").fill("질문")
    page.keyboard.press("Enter")
    form = page.locator(".feedback")
    form.get_by_text("Dangerous", exact=True).click()
    assert form.locator(".ko:visible").count() == 0
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".sent > .en")).to_have_text("✓ Sent: Dangerous")


def test_on_a_phone_only_the_conversation_scrolls_and_targets_are_large(audited):
    page = audited(Speaker("가나다 " * 400), **PHONE)
    form = ask(page, "질문").locator(".feedback")
    form.get_by_text("위험", exact=True).click()
    page.locator("#talk").evaluate("talk => { talk.scrollTop = 0; }")
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(size) == [360, 640]
    boxes = [label.bounding_box() for label in form.locator(".verdicts label").all()]
    assert [box["height"] >= 32 and box["width"] >= 44 for box in boxes] == [True] * 3
    assert len({box["y"] for box in boxes}) == 1


@pytest.mark.skipif(AXE is None, reason="KORMED_AXE is not the path of axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("fragment", ["", "#en"])
def test_axe_finds_nothing_serious(audited, scheme, fragment):
    page = audited(fragment=fragment, color_scheme=scheme)
    page.locator("#question").fill("질문")
    page.keyboard.press("Enter")
    form = page.locator(".feedback")
    load_axe(page)
    for value in ("correct", "wrong", "dangerous"):
        form.locator(f"label.{value}").click()
        assert axe_findings(page) == []
    refuse(page, 503, "audit_unavailable")
    form.locator(".main").click()
    expect(form.locator(".error")).to_be_visible()
    assert axe_findings(page) == []
    page.unroute("**/v1/feedback")
    form.locator(".main").click()
    expect(form.locator(".sent")).to_be_visible()
    assert axe_findings(page) == []


def load_axe(page):
    page.evaluate(Path(AXE).read_text("utf-8"))


def axe_findings(page):
    """What axe-core calls serious or critical, and where."""
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    return [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
