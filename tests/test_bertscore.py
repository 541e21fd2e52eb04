"""BERTScore with a tiny random BERT that knows a few Korean words."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

from eval.bertscore import BertScorer, folder_hash, greedy_match
from kormed_edge.errors import EvalError

WORDS = ["기관지", "폐", "##가", "##렴", "##이", "수축", "확장", "##한다", "염증", "천식", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
LONG = "폐렴이 기관지가 수축한다. 염증 천식 확장한다."
SHORT = "기관지가 확장한다."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(VOCABULARY), num_hidden_layers=2, max_position_embeddings=32,
        initializer_range=1.0, **size,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    numbered = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer: Any = BertTokenizer(vocab=numbered, do_lower_case=False)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(encoder: Path) -> BertScorer:
    return BertScorer(encoder)


def test_equal_texts_are_wholly_alike(scorer: BertScorer) -> None:
    [score] = scorer.score([(LONG, LONG)])
    assert list(score.values()) == pytest.approx([1.0] * 3, abs=1e-6)
    [other] = scorer.score([(LONG, SHORT)])
    assert max(other.values()) < 0.99


def test_precision_and_recall_swap_with_the_texts(scorer: BertScorer) -> None:
    there, back = scorer.score([(LONG, SHORT), (SHORT, LONG)])
    assert there["bertscore_p"] == pytest.approx(back["bertscore_r"], abs=1e-6)
    assert there["bertscore_r"] == pytest.approx(back["bertscore_p"], abs=1e-6)
    assert there["bertscore_f1"] == pytest.approx(back["bertscore_f1"], abs=1e-6)
    assert there["bertscore_p"] != pytest.approx(there["bertscore_r"], abs=1e-3)


def test_every_token_meets_its_most_similar_one() -> None:
    written = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    wanted = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    score = greedy_match(written, wanted)
    precision, recall = (1 + 0.6 + 0.96) / 3, (1 + 0.96) / 2
    f1 = 2 * precision * recall / (precision + recall)
    assert list(score.values()) == pytest.approx([precision, recall, f1])


def test_vectors_are_the_last_layer_s_without_special_tokens(
    encoder: Path, scorer: BertScorer
) -> None:
    """Against the model called by hand, one text at a time, in numpy."""
    model = AutoModel.from_pretrained(encoder).eval()

    def vectors(*words: str) -> np.ndarray:
        ids = [2, *(VOCABULARY.index(word) for word in words), 3]
        with torch.inference_mode():
            hidden = model(torch.tensor([ids])).last_hidden_state[0, 1:-1].numpy()
        return np.asarray(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))

    similar = vectors("폐", "##렴", "##이", ".") @ vectors("기관지", "##가", "확장").T
    [score] = scorer.score([("폐렴이.", "기관지가 확장")])
    assert score["bertscore_p"] == pytest.approx(similar.max(1).mean(), abs=1e-6)
    assert score["bertscore_r"] == pytest.approx(similar.max(0).mean(), abs=1e-6)


def test_padding_and_batches_change_nothing(encoder: Path, scorer: BertScorer) -> None:
    pairs = [(SHORT, LONG), ("천식", SHORT), (LONG, "염증."), ("폐", "폐렴이")]
    alone = [score for pair in pairs for score in scorer.score([pair])]
    for together in (scorer.score(pairs), BertScorer(encoder, batch_size=3).score(pairs)):
        for a, b in zip(together, alone, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_other_layer_gives_other_scores(encoder: Path, scorer: BertScorer) -> None:
    lower = BertScorer(encoder, layer=1)
    assert lower.score([(LONG, SHORT)]) != scorer.score([(LONG, SHORT)])
    assert (lower.versions["layer"], scorer.versions["layer"]) == (1, -1)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_answer_scores_nothing(text: str, scorer: BertScorer) -> None:
    [score] = scorer.score([(text, SHORT)])
    assert set(score.values()) == {0.0}


def test_text_beyond_the_encoder_s_positions_is_cut(scorer: BertScorer) -> None:
    [score] = scorer.score([("천식 " * 200, SHORT)])
    assert 0 < score["bertscore_f1"] < 1


def test_folder_hash_knows_the_files_that_matter(encoder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(encoder, tmp_path / "copy")
    (copy / ".cache").mkdir()
    (copy / ".gitattributes").write_text("x")
    assert folder_hash(copy) == folder_hash(encoder)
    (copy / "config.json").write_text("{}")
    assert folder_hash(copy) != folder_hash(encoder)


def test_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"has no config\.json"):
        BertScorer(tmp_path)


def test_only_descriptive_answers_are_scored(scorer: BertScorer) -> None:
    rows = [
        {"qa_id": kind, "q_type": kind, "output": SHORT, "answer": LONG}
        for kind in ("multiple_choice", "short_answer", "descriptive")
    ]
    assert scorer.by_id(rows) == {"descriptive": scorer.score([(SHORT, LONG)])[0]}


def test_versions_name_the_encoder_by_its_contents(encoder: Path, scorer: BertScorer) -> None:
    assert scorer.versions["bertscore"] == "1"
    assert scorer.versions["encoder"] == encoder.name
    assert scorer.versions["encoder_sha256"] == folder_hash(encoder)
