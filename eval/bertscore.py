"""BERTScore: whether an answer means what its reference means, by an encoder's token vectors.

Zhang et al. 2020 (arXiv 1904.09675): every token meets the most similar token of the other text.
Here without importance weights (idf) and without rescaling to a baseline, so figures of one encoder
compare with one another only. Descriptive answers are scored; of an option or a term, exact match
says more.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kormed_edge.errors import EvalError
from kormed_edge.manifest import sha256_file
from kormed_edge.records import DESCRIPTIVE

if TYPE_CHECKING:
    import torch

BERTSCORE_VERSION = "1"
LAST_LAYER = -1

Pair = tuple[str, str]


class BertScorer:
    """A Hugging Face encoder in a local folder, in fp32, on the GPU if there is one.

    `layer` is the one whose vectors are compared, an index of the model's hidden states. The
    default is the last: the best layer differs between encoders, and is known for few Korean ones.
    """

    def __init__(self, folder: Path, *, layer: int = LAST_LAYER, batch_size: int = 16) -> None:
        """Raises `EvalError` for what is no encoder's folder. Code that lies in it is not run."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        require_encoder(folder)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
        model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, **local)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._folder, self._layer, self._batch_size = folder, layer, batch_size

    @property
    def versions(self) -> dict[str, str | int]:
        """What a BERTScore depends on."""
        return {
            "bertscore": BERTSCORE_VERSION,
            "encoder": self._folder.resolve().name,
            "encoder_sha256": folder_hash(self._folder),
            "layer": self._layer,
            "transformers": version("transformers"),
        }

    def by_id(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """bertscore_p, bertscore_r and bertscore_f1 of every descriptive prediction, by qa_id."""
        asked = [p for p in predictions if p["q_type"] == DESCRIPTIVE]
        scores = self.score([(p["output"], p["answer"]) for p in asked])
        return {p["qa_id"]: score for p, score in zip(asked, scores, strict=True)}

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Scores of (prediction, reference) pairs; 0 where a text has no token.

        What goes beyond the encoder's positions (512 tokens, as a rule) is not seen.
        """
        order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i])), reverse=True)
        scores: dict[int, dict[str, float]] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            written = self._vectors([pairs[i][0] for i in batch])
            wanted = self._vectors([pairs[i][1] for i in batch])
            for i, a, b in zip(batch, written, wanted, strict=True):
                scores[i] = greedy_match(a, b)
        return [scores[i] for i in range(len(pairs))]

    def _vectors(self, texts: Sequence[str]) -> Iterator["torch.Tensor"]:
        """Unit vectors of each text's own tokens, (tokens, width): no [CLS], [SEP] or padding."""
        import torch

        inputs = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._positions(),
            return_tensors="pt",
            return_special_tokens_mask=True,
        ).to(self._model.device)
        special = inputs.pop("special_tokens_mask").bool()
        with torch.inference_mode():
            hidden = self._model(**inputs, output_hidden_states=True).hidden_states[self._layer]
        for row, keep in zip(hidden, inputs["attention_mask"].bool() & ~special, strict=True):
            yield torch.nn.functional.normalize(row[keep], dim=-1)

    def _positions(self) -> int:
        """Tokens that the encoder takes; a tokenizer that was saved without a limit says 1e30.

        Encoders of RoBERTa's kind count positions from 2, so two of their table's rows are lost.
        """
        rows: int = getattr(self._model.config, "max_position_embeddings", 512)
        limit: int = self._tokenizer.model_max_length
        return limit if limit <= rows else rows - 2


def greedy_match(prediction: "torch.Tensor", reference: "torch.Tensor") -> dict[str, float]:
    """BERTScore of two texts' unit vectors, each (tokens, width)."""
    precision = recall = 0.0
    if len(prediction) and len(reference):
        similarity = prediction @ reference.T
        precision = similarity.amax(1).mean().item()
        recall = similarity.amax(0).mean().item()
    together = precision + recall
    f1 = 2 * precision * recall / together if together > 0 else 0.0
    return {"bertscore_p": precision, "bertscore_r": recall, "bertscore_f1": f1}


def require_encoder(folder: Path) -> None:
    """Raise `EvalError` unless a folder looks like an encoder's."""
    if not (folder / "config.json").is_file():
        raise EvalError(
            f"{folder} has no config.json",
            "a local folder of a Hugging Face encoder, such as a Korean BERT",
            "correct eval.bertscore_encoder, or set it to null",
        )


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's own files; a downloader's hidden ones and
    subfolders are none of them."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()
