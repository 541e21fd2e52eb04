import random
from itertools import pairwise

import pytest
from rouge_score.rouge_scorer import RougeScorer

from eval.rouge import (
    Family,
    rouge_batch,
    rouge_char,
    rouge_ko,
    rouge_paper,
    rouge_versions,
)

SENTENCE = "급성 충수염은 수술로 치료한다."


def test_equal_korean_scores_one() -> None:
    whole = {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert rouge_ko(SENTENCE, SENTENCE) == whole
    assert rouge_char(SENTENCE, SENTENCE) == whole


def test_unrelated_korean_scores_zero() -> None:
    assert rouge_ko("천식", "폐렴") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert rouge_char("천식", "폐렴")["rougeL"] == 0


def test_morphemes_meet_across_particles() -> None:
    assert rouge_ko("폐렴이", "폐렴을")["rouge1"] == 0.5


def test_an_option_number_counts_whatever_its_punctuation() -> None:
    assert (
        rouge_ko("4) 폐렴", "4. 폐렴.")["rougeL"] == rouge_ko("4 폐렴", "４） 폐렴")["rougeL"] == 1
    )
    assert rouge_ko("4) 폐렴", "3) 폐렴")["rougeL"] == 0.5


def test_characters_ignore_spacing() -> None:
    assert rouge_char("기관지 유발 검사", "기관지유발검사")["rouge2"] == 1


def test_the_papers_rouge_sees_only_the_option_number() -> None:
    scores = rouge_paper("4) 메타콜린 기관지유발검사", "4) 폐 확산능 검사")
    assert scores == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0}
    assert rouge_paper(SENTENCE, SENTENCE)["rouge1"] == 0


@pytest.mark.parametrize("family", ["ko", "char", "paper"])
def test_empty_texts_score_zero(family: Family) -> None:
    assert rouge_batch(family, [("", "폐렴"), ("", "")])[1]["rougeL"] == 0
    assert rouge_batch(family, []) == []


class Letters:
    def tokenize(self, text: str) -> list[str]:
        return list(text)


def test_scores_equal_rouge_scores_own() -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("가나다라", k=rng.randint(0, 90))) for _ in range(120)]
    pairs = list(pairwise(texts))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Letters())
    own = [scorer.score(target=reference, prediction=text) for text, reference in pairs]
    expected = [{name: score.fmeasure for name, score in item.items()} for item in own]
    assert rouge_batch("char", pairs) == expected


def test_a_batch_equals_single_scores() -> None:
    pairs = [(SENTENCE, "충수염을 수술한다."), ("폐렴", SENTENCE)]
    assert rouge_batch("ko", pairs) == [rouge_ko(*pair) for pair in pairs]


def test_versions_name_the_morpheme_model() -> None:
    assert set(rouge_versions()) == {"rouge", "rouge-score", "kiwipiepy", "kiwipiepy_model"}
