"""The words of the report for metrics, departments and question types, in both its languages."""

from typing import NamedTuple

from kormed_edge.records import KOREAN


class Words(NamedTuple):
    """The same in both languages of the report."""

    ko: str
    en: str


LABELS = {
    "accuracy": Words("객관식 정확도", "multiple-choice accuracy"),
    "accuracy_likelihood": Words("객관식 정확도 (확률)", "accuracy by likelihood"),
    "unread": Words("선택을 읽지 못한 답", "unread answers"),
    "ece": Words("확신의 오차 (ECE)", "calibration error (ECE)"),
    "rouge_ko_L": Words("ROUGE-L (한국어)", "ROUGE-L (Korean)"),
    "rouge_paper_L": Words("ROUGE-L (논문 방식)", "ROUGE-L (the paper's)"),
    "type_mean": Words("유형별 ROUGE-L 평균 (논문 방식)", "ROUGE-L, mean of types (the paper's)"),
    "exact_match": Words("단답형 완전 일치", "short answer, exact match"),
    "char_f1": Words("단답형 글자 F1", "short answer, character F1"),
    "bertscore_f1": Words("서술형 BERTScore F1", "descriptive, BERTScore F1"),
    "han_leak": Words("한자 혼입", "Han-script leak"),
    "missing_end": Words("끝맺지 못한 답", "missing end"),
    "flips": Words("정답·오답이 바뀐 문항", "right/wrong flips"),
}
HINTS = {
    "accuracy": Words("높을수록 좋음", "higher is better"),
    "accuracy_likelihood": Words(
        "모델이 가장 유력하게 본 번호, 글을 읽지 않음",
        "the option that the model itself prefers, no text read",
    ),
    "unread": Words("객관식, 오답으로 처리", "multiple choice, counted as wrong"),
    "ece": Words(
        "확신과 실제 정답률의 차이, 낮을수록 좋음",
        "gap between confidence and accuracy, lower is better",
    ),
    "rouge_ko_L": Words("대표 지표, 형태소 단위", "the headline figure, by morpheme"),
    "rouge_paper_L": Words(
        "논문과의 비교 전용: 한글을 보지 못함", "for comparison with the paper only: sees no Hangul"
    ),
    "type_mean": Words(
        "논문 표 4의 전체 값, 비교 전용", "the paper's Table 4 overall, same caution"
    ),
    "exact_match": Words("높을수록 좋음", "higher is better"),
    "char_f1": Words("높을수록 좋음", "higher is better"),
    "bertscore_f1": Words(
        "뜻의 비슷함, 같은 인코더끼리만 비교",
        "likeness of meaning; compare within one encoder only",
    ),
    "han_leak": Words("낮을수록 좋음", "lower is better"),
    "missing_end": Words("길이 제한에서 잘림, 낮을수록 좋음", "cut at the limit, lower is better"),
}
GROUPS = {
    **{name: Words(KOREAN[name], name.replace("_", " ")) for name in KOREAN},
    "obgyn": Words(KOREAN["obgyn"], "obstetrics, gynecology"),
    "emergency": Words(KOREAN["emergency"], "emergency medicine"),
}
SPLITS = {
    "train": Words("학습", "training"),
    "valid": Words("검증", "validation"),
    "test": Words("평가", "test"),
}
SKIPPED = {
    "other files": Words("다른 파일", "other files"),
    "source text files": Words("원천 텍스트 파일", "source text files"),
    "records of the sister set 71874": Words(
        "자매 데이터 71874의 레코드", "records of the sister set 71874"
    ),
    "rows of the fewshot split": Words("fewshot 분할의 행", "rows of the fewshot split"),
}
