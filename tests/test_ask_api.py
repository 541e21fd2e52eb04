import json
from collections.abc import Iterator
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from guideline_files import write
from scripted_model import ANSWER, make_scripted
from test_server import ADAPTERS, Endless, Speech, adapted, client_of

from export.convert import Provenance, write_gguf
from kormed_edge.appraisal import appraise
from kormed_edge.asking import Asked
from kormed_edge.calibration import Calibration, OptionScale, TextScale
from kormed_edge.engine import Engine
from kormed_edge.errors import EngineBusyError, EngineError
from kormed_edge.guidelines import Guidelines
from kormed_edge.prompts import question_messages
from kormed_edge.request import Piece, Request, TokenLogprob
from kormed_edge.served_adapters import ServedAdapter
from kormed_edge.suppression import Suppression

HAN, STRICT = frozenset({7}), frozenset({7, 8})
SUPPRESSION = Suppression(HAN, STRICT)
OPTIONS = ["뇌파", "폐 기능 검사", "심전도", "복부 초음파"]
TEXT = "가장 먼저 할 검사는?\n" + "\n".join(f"{i}) {text}" for i, text in enumerate(OPTIONS, 1))


@pytest.fixture(scope="module")
def engine(scripted_gguf: Path) -> Engine:
    return Engine(scripted_gguf, context=2048, threads=1)


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    return client_of(engine)


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/ask", json={"question": "가장 먼저 할 검사는?", **body})


def codes(body: Any) -> list[str]:
    return [warning["code"] for warning in body["warnings"]]


def test_free_question_has_an_answer_and_an_identity(client: TestClient) -> None:
    body = ask(client).json()
    assert (body["answer"], body["finish_reason"]) == (ANSWER, "stop")
    assert (body["model"], body["adapter"], body["sha256"]) == ("tiny", None, "ab" * 32)
    assert "단독 진단이나 처방에 사용할 수 없습니다" in body["notice"]
    assert (body["option"], body["option_probabilities"], body["confidence"]) == (None, None, None)
    assert body["warnings"] == []


def test_option_comes_with_its_probability(client: TestClient, engine: Engine) -> None:
    body = ask(client, options=OPTIONS).json()
    assert body["option"] == 3
    assert sum(body["option_probabilities"]) == pytest.approx(1)
    assert (
        body["confidence"] == max(body["option_probabilities"]) == body["option_probabilities"][2]
    )
    ids = engine.encode_messages(question_messages(TEXT))
    expected = engine.option_probabilities(ids, ("1", "2", "3", "4"))
    assert body["option_probabilities"] == pytest.approx(expected)


def test_options_in_the_text_are_those_of_the_list(client: TestClient) -> None:
    in_text, listed = (
        ask(client, **how).json() for how in ({"question": TEXT}, {"options": OPTIONS})
    )
    assert in_text == listed | {"request_id": in_text["request_id"]}


@pytest.mark.parametrize("count", [10, 64])
def test_many_options_are_answered_without_probabilities(client: TestClient, count: int) -> None:
    body = ask(client, options=[*OPTIONS, *(f"보기 {i}" for i in range(5, count + 1))]).json()
    assert (body["option"], body["option_probabilities"]) == (3, None)


@pytest.mark.parametrize("count", [1, 65, 10_000])
def test_number_of_options_has_limits(client: TestClient, count: int) -> None:
    answer = ask(client, options=["가"] * count)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "options")


def test_ten_thousand_options_in_the_text_are_no_fault(client: TestClient) -> None:
    text = "\n".join(f"{i}) 가" for i in range(10_000))
    assert ask(client, question=text[:30_000]).status_code == 400


def test_streamed_answer_is_text_and_then_the_whole(client: TestClient) -> None:
    events = ask(client, options=OPTIONS, stream=True).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    *deltas, whole = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(delta["delta"] for delta in deltas) == ANSWER
    again = ask(client, options=OPTIONS).json()
    assert whole == again | {"request_id": whole["request_id"]}


def test_answer_cut_short_is_unfinished(engine: Engine) -> None:
    body = ask(client_of(engine, max_new_tokens=1)).json()
    assert (body["finish_reason"], codes(body)) == ("length", ["unfinished"])


def test_answer_in_chinese_is_warned_of(tmp_path: Path) -> None:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    base = make_scripted(tmp_path / "base", answer="心")
    with Engine(
        write_gguf(base, None, tmp_path / "m.gguf", nobody).path, context=256, threads=1
    ) as engine:
        body = ask(client_of(engine)).json()
    assert (body["answer"], codes(body)) == ("心", ["han_leak"])
    assert body["warnings"][0].keys() == {"code", "ko", "en"}


def doubts(text: str, *logprobs: float, reason: Any = "stop") -> tuple[Any, list[str]]:
    scored = [TokenLogprob(i, b"", value) for i, value in enumerate(logprobs)]
    body = appraise(Piece(text, reason), Asked("", OPTIONS), scored)
    return body["confidence"], codes(body)


def test_doubts_about_a_choice_are_named() -> None:
    assert doubts("3) 심전도") == (None, [])
    assert doubts("모르겠습니다") == (None, ["option_unread"])
    assert doubts("3", -1.0, -1.0, -1.0, -1.0) == (0.25, ["low_confidence"])
    assert doubts("2", -1.0, -1.0) == (0.5, [])
    assert doubts("심장에 心", -1.0, -1.0, reason="length") == (
        None,
        ["option_unread", "han_leak", "unfinished"],
    )


KNOWN = Calibration(
    model_sha256="ab" * 32, options=OptionScale(temperature=2.0, n=9),
    text=TextScale(slope=2.0, intercept=0.0, n=9), threshold=0.7, fit_version="1",
)  # fmt: skip


def judged(text: str, choices: list[str], *logprobs: float, known: Any = KNOWN) -> dict[str, Any]:
    tokens = tuple(TokenLogprob(i, b"", value) for i, value in enumerate(logprobs))
    piece = Piece(text, "stop", () if choices else tokens)
    return appraise(piece, Asked("", choices), tokens if choices else (), known)


def test_calibrated_option_has_the_confidence_of_its_scale() -> None:
    body = judged("1) 가", ["가", "나"], log(0.9), log(0.1))
    assert body["option_probabilities"] == pytest.approx([0.75, 0.25])
    assert (body["confidence"], body["calibrated"]) == (pytest.approx(0.75), True)
    assert body["confidence_words"] == {"ko": "보통", "en": "moderate"}
    assert codes(body) == []


def test_free_answer_is_as_sure_as_its_tokens() -> None:
    sure, unsure = (judged("휴식", [], *logprobs) for logprobs in ([-0.0, -0.0], [-0.5, -1.5]))
    assert (sure["confidence"], sure["calibrated"]) == (0.5, True)
    assert unsure["confidence"] == pytest.approx(1 / (1 + exp(2)))
    assert judged("휴식", [], -0.5, known=None)["confidence"] is None


def test_threshold_of_the_calibration_is_what_warns() -> None:
    for known, warned in ((KNOWN, True), (KNOWN.model_copy(update={"threshold": 0.2}), False)):
        body = judged("휴식", [], 0.0, known=known)
        assert (codes(body) == ["low_confidence"]) == warned
        assert (body["confidence_words"]["en"] == "low") == warned
    assert judged("휴식", [], 0.0)["warnings"][0]["ko"].startswith("불확실: 전문의 확인 필요")


def test_model_s_own_opinion_is_not_called_calibrated() -> None:
    body = judged("1) 가", ["가", "나"], log(0.9), log(0.1), known=None)
    assert (body["confidence"], body["calibrated"]) == (pytest.approx(0.9), False)
    assert body["confidence_words"] == {"ko": "높음", "en": "high"}
    text_only = KNOWN.model_copy(update={"options": None})
    assert judged("1) 가", ["가", "나"], log(0.9), log(0.1), known=text_only)["calibrated"] is False


def test_calibrated_free_answer_is_the_same_streamed(engine: Engine) -> None:
    client = client_of(engine, calibration=KNOWN)
    whole = ask(client).json()
    assert 0 < whole["confidence"] < 0.5
    assert codes(whole) == ["low_confidence"]
    last = ask(client, stream=True).text.split("\n\n")[-3]
    streamed = json.loads(last.removeprefix("data: "))
    assert streamed == whole | {"request_id": streamed["request_id"]}


def test_adapter_is_another_model_than_the_one_calibrated() -> None:
    client = adapted(None, calibration=KNOWN)
    assert ask(client).json()["calibrated"] is True
    body = ask(client, model="v2").json()
    assert (body["adapter"], body["calibrated"], body["confidence"]) == ("v2", False, None)


def test_adapter_has_its_own_calibration() -> None:
    client = adapted(adapters={"v2": ServedAdapter("22" * 32, KNOWN)})
    found = {name: ask(client, model=name).json()["calibrated"] for name in (None, "tiny", "v1")}
    assert found == {None: True, "tiny": False, "v1": False}


def test_answer_of_the_default_adapter_says_so() -> None:
    for name, answers in ((None, "v2"), ("v1", "v1"), ("tiny", None)):
        body = ask(adapted(), model=name).json()
        assert (body["model"], body["adapter"]) == (answers or "tiny", answers)
        files = ("ab" * 32, ADAPTERS[answers].sha256 if answers else None)
        assert (body["sha256"], body["adapter_sha256"]) == files


def test_options_that_begin_alike_have_no_probabilities() -> None:
    class Alike(Endless):
        def option_tokens(self, _options: Any) -> Any:
            raise EngineError("the options do not differ")

    client = client_of(Alike("3) 심전도"), request_seconds=0.0)
    assert ask(client, options=OPTIONS).json()["option_probabilities"] is None


@pytest.mark.parametrize("body", [{"question": ""}, {"question": " \n"}, {"options": ["", "가"]}])
def test_empty_texts_are_refused(client: TestClient, body: Any) -> None:
    assert ask(client, **body).status_code == 422


class Drifting(Endless):
    """Says its pieces and ends; once more of the vocabulary is banned, it says `instead`."""

    context, ends = 4096, True

    def __init__(self, *said: str, instead: tuple[str, ...] = ("심", "전도"), full: bool = False):
        super().__init__(*said)
        self.instead, self.full, self.asked = instead, full, list[Request]()

    def option_tokens(self, options: list[str]) -> tuple[int, ...]:
        return tuple(range(len(options)))

    def submit_async(self, request: Request, _loop: Any) -> Any:
        if self.asked and self.full:
            raise EngineBusyError("9 requests are under way")
        self.asked.append(request)
        speech = Speech(*(self.instead if request.sampling.banned == STRICT else self.said))
        if self.ends:
            speech.said.put_nowait(Piece("", "stop"))
        self.begun.append(speech)
        return speech


def events(answer: Any) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]


@pytest.mark.parametrize("leak", ["心", "の", "привет"])
def test_answer_that_drifts_is_written_anew_once(leak: str) -> None:
    engine = Drifting("심", leak, "도")
    body = ask(client_of(engine, suppression=SUPPRESSION)).json()
    assert (body["answer"], body["regenerated"], codes(body)) == ("심전도", True, [])
    assert [request.sampling.banned for request in engine.asked] == [HAN, STRICT]
    assert engine.begun[0].cancelled


def test_stream_says_that_what_was_said_is_replaced() -> None:
    engine = Drifting("심", "心", "도", instead=("心", "도"))
    told = events(ask(client_of(engine, suppression=SUPPRESSION), stream=True))
    assert [(event["delta"], event.get("replaced")) for event in told[:-1]] == [
        ("심", None), ("", True), ("心", None), ("도", None),
    ]  # fmt: skip
    assert told[0]["request_id"] == told[-1]["request_id"]
    assert (told[-1]["answer"], told[-1]["regenerated"]) == ("心도", True)
    assert codes(told[-1]) == ["han_leak"]


def test_drift_stays_where_the_queue_has_no_room_for_another_answer() -> None:
    engine = Drifting("심", "心", "도", full=True)
    body = ask(client_of(engine, suppression=SUPPRESSION)).json()
    assert (body["answer"], body["regenerated"], codes(body)) == ("심心도", False, ["han_leak"])


def test_with_han_allowed_nothing_is_banned_and_nothing_written_anew() -> None:
    engine = Drifting("心")
    body = ask(client_of(engine)).json()
    assert (body["answer"], body["regenerated"], codes(body)) == ("心", False, ["han_leak"])
    assert engine.asked[0].sampling.banned == frozenset()


def test_model_that_would_leak_does_not(tmp_path: Path) -> None:
    nobody = Provenance(name="tiny", run="r", version="0", prompt="p")
    base = make_scripted(tmp_path / "base", answer="心")
    path = write_gguf(base, None, tmp_path / "m.gguf", nobody).path
    with Engine(path, context=256, threads=1) as engine:
        suppression = Suppression.of(engine.pieces())
        body = ask(client_of(engine, suppression=suppression, max_new_tokens=4)).json()
    assert "心" not in body["answer"]
    assert "han_leak" not in codes(body)


@pytest.fixture
def guidelines(tmp_path: Path) -> Iterator[Guidelines]:
    path = tmp_path / "guidelines.db"
    with Guidelines(path, write=True) as index:
        index.add(write(tmp_path, "소생.txt", "심정지에 에피네프린 1 mg을 준다."))
    with Guidelines(path) as index:
        yield index


CARDIAC_ARREST = "심정지에 주는 에피네프린 용량은?"


def told_of(index: Guidelines | None, *said: str, **body: Any) -> Any:
    client = client_of(Drifting(*said), guidelines=index)
    return ask(client, **{"question": CARDIAC_ARREST, **body})


def test_answer_comes_with_its_passages_and_what_it_cites(guidelines: Guidelines) -> None:
    body = told_of(guidelines, "1 mg이다 [1].", " [4]").json()
    [passage] = body["passages"]
    assert (passage["number"], passage["document"], passage["page"]) == (1, "소생.txt", None)
    assert passage["text"] == "심정지에 에피네프린 1 mg을 준다."
    assert (body["cited"], body["guidelines_note"]) == ([1], None)
    prose = told_of(guidelines, "1 mg이다.").json()
    assert (prose["cited"], prose["guidelines_note"]["code"]) == ([], "not_cited")


def test_stream_begins_with_the_passages(guidelines: Guidelines) -> None:
    first, *_, whole = events(told_of(guidelines, "1 mg", " [1]", stream=True))
    assert first["passages"] == whole["passages"] != []
    assert "guidelines_note" not in first


def test_nothing_relevant_is_said_plainly(guidelines: Guidelines) -> None:
    body = told_of(guidelines, "밤 열 시", question="주차장은 몇 시까지 엽니까?").json()
    assert (body["passages"], body["cited"]) == ([], [])
    assert "찾지 못했습니다. 지침 없이 답했습니다." in body["guidelines_note"]["ko"]


def test_guidelines_are_off_where_there_are_none_or_none_are_wanted(guidelines: Guidelines) -> None:
    for index, wanted in ((None, None), (None, False), (guidelines, False)):
        body = told_of(index, "1 mg", guidelines=wanted).json()
        assert (body["passages"], body["guidelines_note"]) == (None, None)
    refused = told_of(None, guidelines=True)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "guidelines_off")


def test_broken_index_stops_the_answer_unless_it_is_not_wanted(guidelines: Guidelines) -> None:
    guidelines.path.write_bytes(b"x" * 40_000)
    refused = told_of(guidelines, "가")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "guidelines_unavailable")
    assert told_of(guidelines, "가", guidelines=False).status_code == 200


def test_number_of_a_passage_is_not_read_as_an_option(guidelines: Guidelines) -> None:
    body = told_of(guidelines, "2) 에피네프린 [1]", options=["아트로핀", "에피네프린"]).json()
    assert (body["option"], body["cited"]) == (2, [1])


def test_passages_make_a_calibration_void(guidelines: Guidelines) -> None:
    client = client_of(Drifting("1 mg [1]"), guidelines=guidelines, calibration=KNOWN)
    body = ask(client, question=CARDIAC_ARREST).json()
    assert (body["calibrated"], body["confidence"]) == (False, None)
    assert ask(client, question="주차장은?").json()["calibrated"] is True


@pytest.mark.parametrize(("context", "numbers"), [(4096, [1]), (66, [])])
def test_passages_leave_room_for_the_answer(
    guidelines: Guidelines, context: int, numbers: list[int]
) -> None:
    class Narrow(Drifting):
        def encode(self, messages: Any, *_: Any) -> list[int]:
            return [1] * (1 + len(messages[-1]["content"]) // 50)

        encode_messages = encode

    engine = Narrow("1 mg [1]")
    engine.context = context
    body = ask(client_of(engine, guidelines=guidelines), question=CARDIAC_ARREST).json()
    assert [passage["number"] for passage in body["passages"]] == numbers
    expected = None if numbers else "passages_too_long"
    assert (body["guidelines_note"] or {"code": None})["code"] == expected
