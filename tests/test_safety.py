from typing import Any
from unicodedata import normalize

import pytest
from fastapi.testclient import TestClient
from test_server import Endless, client_of

from kormed_edge.safety import EMERGENCY, SELF_HARM, find_guidance

EMERGENCIES = [
    "지금 가슴이 너무 아파요",
    "방금 아버지가 쓰러졌어요. 어떻게 해야 하나요?",
    "남편이 숨을 안 쉬어요 도와주세요",
    "아이가 경련을 해요! 5분째예요",
    "지금 환자가 의식이 없는데 먼저 무엇을 하나요?",
    "피가 안 멈춰요 도와주세요",
    "우리 아기가 건전지를 삼켰어요",
    "벌에 쏘였는데 지금 입술이 붓고 숨이 차요",
    "엄마가 갑자기 말이 어눌하고 오른쪽에 힘이 없어요",
    "동료가 농약을 마셨어요",
    "할머니가 떡이 목에 걸렸어요. 살려주세요",
    "저는 54세 남자인데 흉통이 심해요",
    "심정지 환자가 방금 병동에서 생겼습니다",
    "친구가 깨워도 반응이 없어요",
    "호흡이 없습니다 살려 주세요",
]
IN_DISTRESS = [
    "죽고 싶어요",
    "죽고싶다",
    "요즘 너무 힘들어서 자살하고 싶습니다.",
    "자해했어요. 멈출 수가 없어요",
    "더는 살고 싶지 않아요",
    "저는 25세 여자입니다. 사라지고 싶어요.",
    "친구가 자살하겠다고 해요",
    "딸이 자해를 해요",
    "살기 싫어",
    "제가 자살을 시도할 것 같아요. 지금 약을 먹었어요",
]
EVERYDAY = [
    "급성 심근경색에서 흉통의 특징은?",
    "의식 소실의 감별 진단을 나열하시오",
    "아나필락시스에서 에피네프린의 용량은 어떻게 되나요?",
    "경련이 5분 이상 지속되면 어떤 약을 쓰나요?",
    "54세 남자가 갑자기 가슴이 쥐어짜듯 아파서 내원하였다. 가장 먼저 할 검사는?",
    "3세 남아가 5분간 전신 경련을 하여 응급실로 이송되었다. 처치는?",
    "27세 여자가 “죽고 싶어요. 저는 쓸모가 없어요”라고 말하며 내원하였다. 진단은?",
    "자살 위험이 높은 환자에서 가장 먼저 평가할 것은?",
    "죽고 싶다고 호소하는 우울증 환자의 치료는?",
    "청소년 자해의 위험인자는?",
    "유기인계 농약을 마신 48세 남자가 의식이 저하되어 이송되었다. 해독제는?",
    "지금까지 알려진 흉통의 원인은?",
    "산후 대량 출혈의 가장 흔한 원인은?",
    "심정지 환자의 가슴압박 깊이는?",
    "쓰러졌다는 신고를 받고 도착하였다. 호흡 정지이다. 다음 처치는?",
    "일산화탄소 중독의 치료는 무엇입니까?",
    "호흡곤란을 주소로 온 60세 여자의 흉부 사진이다. 진단은?",
    "지금 흉통을 호소하는 70세 여자가 내원하였다. 심전도 소견은?",
    "“지금 숨을 못 쉬겠어요”라고 하며 호흡곤란을 보이는 환자의 처치는?",
    "다음 중 아나필락시스의 증상으로 옳은 것은?",
    "지금 무엇을 해야 합니까? 의식이 없다\n1) 가슴압박\n2) 관찰",
    "저는 의대생입니다. 죽고 싶어요라는 말의 뜻은?\n1) 우울\n2) 조증",
    "안녕하세요. 고혈압 약은 언제 먹나요?",
    "지금 유행하는 감염병은?",
    "하혈의 정의는?",
    "",
]


@pytest.mark.parametrize("question", EMERGENCIES)
def test_an_emergency_that_happens_now_is_sent_to_119(question: str) -> None:
    assert find_guidance(question) is EMERGENCY


@pytest.mark.parametrize("question", IN_DISTRESS)
def test_someone_who_may_harm_himself_is_sent_to_109(question: str) -> None:
    assert find_guidance(question) is SELF_HARM


@pytest.mark.parametrize("question", EVERYDAY)
def test_everyday_questions_and_examination_items_get_no_guidance(question: str) -> None:
    assert find_guidance(question) is None


def test_decomposed_hangul_is_read_too() -> None:
    assert find_guidance(normalize("NFD", EMERGENCIES[0])) is EMERGENCY


@pytest.mark.parametrize(("guidance", "number"), [(EMERGENCY, "119"), (SELF_HARM, "109")])
def test_guidance_names_the_number_in_both_languages(guidance: Any, number: str) -> None:
    assert number in guidance.ko
    assert number in guidance.en


@pytest.fixture
def client() -> TestClient:
    return client_of(Endless("답"), request_seconds=0.0)


def test_guidance_comes_with_the_answer(client: TestClient) -> None:
    body = client.post("/v1/ask", json={"question": EMERGENCIES[0]}).json()
    assert body["guidance"] == {"code": "emergency", "ko": EMERGENCY.ko, "en": EMERGENCY.en}
    assert client.post("/v1/ask", json={"question": EVERYDAY[0]}).json()["guidance"] is None


def test_guidance_is_in_the_first_event_of_a_stream(client: TestClient) -> None:
    asked = {"question": IN_DISTRESS[0], "stream": True}
    first, *_ = client.post("/v1/ask", json=asked).text.split("\n\n")
    assert '"code": "self_harm"' in first
    assert '"delta": "답"' in first
