"""The reader, form by form, on made-up options."""

import pytest

from kormed_edge.answers import READER_VERSION, Reading, read_strict, read_tolerant

OPTIONS = [
    "급성 충수염",
    "세균성 폐렴",
    "메타콜린 기관지유발검사",
    "A형 간염",
    "복부 초음파검사",
]

READ = [
    # the sign alone
    ("3", 3, "leading_number"),
    (" 3 \n", 3, "leading_number"),
    ("３", 3, "leading_number"),
    ("③", 3, "leading_number"),
    ("❸", 3, "leading_number"),
    ("3️⃣", 3, "leading_number"),
    ("(3)", 3, "leading_number"),
    ("（３）", 3, "leading_number"),
    ("[3]", 3, "leading_number"),
    ("3.", 3, "leading_number"),
    ("3)", 3, "leading_number"),
    ("3번", 3, "leading_number"),
    ("3 번", 3, "leading_number"),
    ("3번.", 3, "leading_number"),
    ("3번입니다", 3, "leading_number"),
    ("3번입니다.", 3, "leading_number"),
    ("3번이다.", 3, "leading_number"),
    ("3입니다", 3, "leading_number"),
    ("**3)**", 3, "leading_number"),
    ("**3**", 3, "leading_number"),
    ("`3`", 3, "leading_number"),
    ("### 3번", 3, "leading_number"),
    ("$\\boxed{3}$", 3, "leading_number"),
    ("C", 3, "leading_number"),
    ("c", 3, "leading_number"),
    ("Ｃ", 3, "leading_number"),
    ("(C)", 3, "leading_number"),
    ("C.", 3, "leading_number"),
    ("C입니다", 3, "leading_number"),
    ("C번입니다.", 3, "leading_number"),
    ("보기 3", 3, "leading_number"),
    ("선택지 3번", 3, "leading_number"),
    ("Option C", 3, "leading_number"),
    # the sign and its words
    ("3) 메타콜린 기관지유발검사", 3, "leading_number"),
    ("3. 메타콜린 기관지유발검사", 3, "leading_number"),
    ("3 메타콜린 기관지 유발 검사", 3, "leading_number"),
    ("3번 메타콜린 기관지유발검사입니다.", 3, "leading_number"),
    ("C. 메타콜린 기관지유발검사", 3, "leading_number"),
    ("C: 메타콜린 기관지유발검사", 3, "leading_number"),
    ("- 3) 메타콜린 기관지유발검사", 3, "leading_number"),
    ("**3) 메타콜린 기관지유발검사**\n\n해설: 천식을 의심한다.", 3, "leading_number"),
    ("4) A형 간염", 4, "leading_number"),
    ("3) 메타콜린 검사", 3, "leading_number"),
    ("3, 왜냐하면 천식이 의심되기 때문이다.", 3, "leading_number"),
    # a numbered explanation is not a second answer
    ("3) 메타콜린 기관지유발검사\n1) 발열이 없다.\n2) 야간 기침이 있다.", 3, "leading_number"),
    ("3) 메타콜린 기관지유발검사\n2일간 1.5 mg을 3회 투여한다.", 3, "leading_number"),
    ("3) 메타콜린 기관지유발검사. 2) 세균성 폐렴은 아니다.", 3, "leading_number"),
    # stated
    ("정답은 3번입니다", 3, "stated"),
    ("정답은 3번이다.", 3, "stated"),
    ("정답은 B번입니다", 2, "stated"),
    ("정답은 ③번입니다.", 3, "stated"),
    ("정답：C", 3, "stated"),
    ("정답: 3", 3, "stated"),
    ("정답:\n3)", 3, "stated"),
    ("정답은 (3)입니다.", 3, "stated"),
    ("정답 3", 3, "stated"),
    ("정답은 **3번**입니다.", 3, "stated"),
    ("【정답】 3", 3, "stated"),
    ("답: ③", 3, "stated"),
    ("답은 c입니다.", 3, "stated"),
    ("답안: 3번", 3, "stated"),
    ("정답은 3번으로, 기관지 과민성을 본다.", 3, "stated"),
    ("정답은 '3'입니다.", 3, "stated"),
    ("정답은 3) 메타콜린 기관지유발검사입니다.", 3, "stated"),
    ("정답은 3번 메타콜린 기관지유발검사이다.", 3, "stated"),
    ("최종 답은 3번", 3, "stated"),
    ("The answer is 3", 3, "stated"),
    ("The correct answer is **C**.", 3, "stated"),
    ("Answer: (C)", 3, "stated"),
    ("Option C is correct.", 3, "stated"),
    ('{"answer": 3}', 3, "stated"),
    ("<answer>3</answer>", 3, "leading_number"),
    ("3일간 1.5 mg을 투여한 환자이다. 정답은 2번입니다.", 2, "stated"),
    ("발열이 있으므로 2번이 정답입니다.", 2, "stated"),
    ("따라서 2번을 선택합니다.", 2, "stated"),
    ("가장 가능성이 높은 진단은 2번입니다.", 2, "stated"),
    ("그러므로 2번이다.", 2, "stated"),
    ("가장 가능성이 높은 진단은 **2) 세균성 폐렴**입니다.", 2, "stated"),
    ("청진 소견으로 보아 2) 세균성 폐렴입니다.", 2, "stated"),
    ("정답은 3번이 아니라 2번입니다.", 2, "stated"),
    ("1) 급성 충수염: 통증 없음\n2) 세균성 폐렴: 발열\n정답: 2", 2, "stated"),
    ("<think>1번일까, 3번일까</think>\n정답은 2번입니다.", 2, "stated"),
    # words alone
    ("메타콜린 기관지유발검사", 3, "option_text"),
    ("메타콜린 기관지 유발검사입니다.", 3, "option_text"),
    ("**A형 간염**", 4, "option_text"),
    ("세균성 폐렴\n\n발열과 가래가 있다.", 2, "option_text"),
    ("정답은 세균성 폐렴입니다.", 2, "stated"),
    ("정답: 세균성 폐렴(2번)", 2, "stated"),
    ("가장 가능성이 높은 진단은 세균성 폐렴입니다.", 2, "option_text"),
    # taken back
    ("정답은 3번입니다. 아니, 정답은 2번입니다", 2, "corrected"),
    ("3번입니다. 다시 생각해 보면 정답은 2번입니다.", 2, "corrected"),
    ("The answer is 3. Wait, the answer is 2.", 2, "corrected"),
    ("3) 메타콜린 기관지유발검사\n최종 정답: 2", 2, "corrected"),
]

UNREAD = [
    ("", "none"),
    ("   ", "none"),
    ("정답은 2번과 4번입니다.", "ambiguous"),
    ("2, 4", "ambiguous"),
    ("2번, 3번", "ambiguous"),
    ("2번 또는 3번입니다.", "ambiguous"),
    ("①②", "ambiguous"),
    ("A와 B", "ambiguous"),
    ("정답: A or B", "ambiguous"),
    ("3번입니다. 정답은 2번입니다.", "ambiguous"),
    ("3번입니다. 수정란은 착상한다. 정답은 2번입니다.", "ambiguous"),
    ("정답은 2번과 4번입니다. 최종 진단은 아직 모른다.", "ambiguous"),
    ("2) 세균성 폐렴 3) 메타콜린 기관지유발검사", "ambiguous"),
    ("1) 급성 충수염\n2) 세균성 폐렴\n3) 메타콜린 기관지유발검사", "ambiguous"),
    ("3) 세균성 폐렴", "ambiguous"),
    ("정답은 3번 세균성 폐렴입니다.", "ambiguous"),
    ("정답은 세균성 폐렴(3번)입니다.", "ambiguous"),
    ("죄송합니다. 답변할 수 없습니다.", "refusal"),
    ("제시된 정보만으로는 판단하기 어렵습니다.", "refusal"),
    ("보기 중에는 정답이 없습니다.", "refusal"),
    ("I cannot answer this question.", "refusal"),
    ("모르겠습니다", "refusal"),
    ("환자는 a 형 간염", "none"),
    ("A형 간염 환자에게 백신을 투여한다.", "none"),
    ("3일간 투여", "none"),
    ("3일간 항생제를 투여한다.", "none"),
    ("1.5 mg", "none"),
    ("3.5 mg/dL로 감소하였다.", "none"),
    ("5% 포도당을 준다.", "none"),
    ("3회 투여한다.", "none"),
    ("3번 투여한다.", "none"),
    ("2~3일 관찰한다.", "none"),
    ("2:1 비율로 섞는다.", "none"),
    ("정답은 3일간 투여이다.", "none"),
    ("정답: 1.5 mg", "none"),
    ("환자는 3번 내원하였다.", "none"),
    ("‘A’ 중학교에서 환자가 발생하였다.", "none"),
    ("따라서 3일간 투여한다.", "none"),
    ("E. coli 감염이 원인이다.", "none"),
    ("e.g. 항생제", "none"),
    ("B형간염 항원이 양성이다.", "none"),
    ("The answer is a viral infection.", "none"),
    ("정답은 3번이 아닙니다.", "none"),
    ("3번이 옳지 않다.", "none"),
    ("2) 세균성 폐렴은 배제된다.", "none"),
    ("7", "none"),
    ("정답은 7번입니다.", "none"),
    ("13", "none"),
    ("세균성 폐렴과 급성 충수염을 감별한다.", "none"),
    ("세균성 폐렴구균 감염", "none"),
    ("질문에 대답 3", "none"),
    ("<think>정답은 3번", "none"),
]


@pytest.mark.parametrize(("text", "option", "reason"), READ)
def test_reads(text: str, option: int, reason: str) -> None:
    assert read_tolerant(text, OPTIONS) == Reading(option, reason)


@pytest.mark.parametrize(("text", "reason"), UNREAD)
def test_leaves_unread(text: str, reason: str) -> None:
    assert read_tolerant(text, OPTIONS) == Reading(None, reason)


@pytest.mark.parametrize(
    ("text", "option"),
    [("4) A형 간염", 4), ("4", 4), (" 4.", 4), ("4. A형", 4), ("4)A형", 4), ("5", 5)],
)
def test_strict_reads_a_leading_number(text: str, option: int) -> None:
    assert read_strict(text) == option


@pytest.mark.parametrize("text", ["", "4번", "정답: 4", "(4)", "③", "4 mg", "1.5 mg", "6)", "14)"])
def test_strict_reads_nothing_else(text: str) -> None:
    assert read_strict(text) is None


def test_strict_knows_how_many_options_there_are() -> None:
    assert (read_strict("5)", 4), read_strict("4)", 4)) == (None, 4)


NUMBERS = ["3일", "5일", "C. difficile", "1.5 mg", "15 mg"]


@pytest.mark.parametrize(
    ("text", "option"),
    [("3일", 1), ("정답은 3일입니다.", 1), ("C. difficile", 3), ("1.5 mg", 4), ("2) 5일", 2)],
)
def test_options_that_look_like_signs(text: str, option: int) -> None:
    assert read_tolerant(text, NUMBERS).option == option


def test_a_decimal_is_no_option_with_its_words() -> None:
    assert read_tolerant("2.5일", NUMBERS) == Reading(None, "none")


def test_an_option_that_is_another_options_number_is_ambiguous() -> None:
    assert read_tolerant("3", ["1", "3", "5"]) == Reading(None, "ambiguous")


def test_equal_options_are_ambiguous() -> None:
    assert read_tolerant("천식", ["천식", "천식"]) == Reading(None, "ambiguous")


def test_the_longer_option_wins() -> None:
    assert read_tolerant("정답은 폐렴구균 감염입니다.", ["폐렴", "폐렴구균 감염"]).option == 2


def test_quotation_marks_do_not_matter() -> None:
    options = ["“금연할게요.”", "“약을 먹을게요.”"]
    assert read_tolerant('정답은 "약을 먹을게요"입니다.', options).option == 2


def test_no_options_leave_everything_unread() -> None:
    assert read_tolerant("3", []) == Reading(None, "none")


def test_the_reader_has_a_version() -> None:
    assert READER_VERSION
