"""Next-token log-probabilities of a GGUF in llama.cpp and of its origin in Hugging Face.

Both are asked for the same tokens: the greedy answer that one GGUF gives to a prompt.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from export.merge import is_nf4, through_nf4
from kormed_edge.errors import ExportError
from kormed_edge.llama_log import llama_log

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt's tokens, the greedy answer's, and the file of the answer's log-probabilities."""

    prompt: list[int]
    tokens: list[int]
    file: Path

    def rows(self) -> Rows:
        rows: Rows = np.load(self.file)
        return rows


class LoadedGguf:
    """One loaded GGUF that gives next-token log-probabilities, without keeping any."""

    def __init__(self, path: Path, *, n_ctx: int = 32, vocab_only: bool = False) -> None:
        import llama_cpp

        lines: list[str] = []
        # Two hardware threads share a core's arithmetic, and llama.cpp waits for the slowest.
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        try:
            with llama_log(lines.append):
                self._llama: Any = llama_cpp.Llama(
                    str(path),
                    n_ctx=n_ctx,
                    n_threads=threads,
                    n_threads_batch=threads,
                    vocab_only=vocab_only,
                    verbose=False,
                )
        except ValueError as error:
            last = "".join(lines).strip().splitlines()[-1:]
            raise ExportError(f"llama.cpp cannot load {path}: {error} {last}") from error
        self._api = llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.words = self._llama.n_vocab()
        self.end_token = llama_cpp.llama_vocab_eos(self._vocab)
        self.pad_token = llama_cpp.llama_vocab_pad(self._vocab)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """`add_special` also adds what the file says that every text begins and ends with."""
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=add_special, special=True)
        return tokens

    def _next(self, tokens: Sequence[int]) -> Rows:
        self._llama.eval(tokens)
        logits = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return log_softmax(np.ctypeslib.as_array(logits, shape=(self.words,)))

    def greedy(self, prompt: list[int], max_tokens: int) -> tuple[list[int], Rows]:
        """The likeliest answer, its end token included, and a row for each of its tokens."""
        self._llama.reset()
        rows = [self._next(prompt)]
        tokens = [int(rows[0].argmax())]
        while len(tokens) < max_tokens and not self._ends(tokens[-1]):
            rows.append(self._next(tokens[-1:]))
            tokens.append(int(rows[-1].argmax()))
        return tokens, np.stack(rows)

    def _ends(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def forced(self, answer: Answer) -> Rows:
        """A row for each token of an answer that was written by another model."""
        self._llama.reset()
        steps = [answer.prompt, *([token] for token in answer.tokens[:-1])]
        return np.stack([self._next(step) for step in steps])


def write_answers(
    path: Path, prompts: Sequence[str], max_tokens: int, folder: Path
) -> list[Answer]:
    if not prompts or max_tokens < 1:
        raise ExportError("nothing to compare", "at least one prompt and one token")
    with LoadedGguf(path, vocab_only=True) as tokenizer:
        tokens = [tokenizer.tokenize(prompt) for prompt in prompts]
    answers = []
    with LoadedGguf(path, n_ctx=max(map(len, tokens)) + max_tokens) as model:
        for i, prompt in enumerate(tokens):
            answer, rows = model.greedy(prompt, max_tokens)
            answers.append(Answer(prompt, answer, folder / f"{i}.npy"))
            np.save(answers[-1].file, rows)
    return answers


def log_softmax(logits: Rows) -> Rows:
    """Log-probabilities of one position."""
    shifted = logits.astype(np.float64) - logits.max()
    log_probabilities: Rows = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    return log_probabilities


def load_hf(base: Path, adapter: Path | None, onto: str) -> Any:
    """The model in torch that computes in fp32, with the adapter beside its weights, not merged.

    bf16 weights stay in bf16, which holds them exactly, and become fp32 one layer at a time while
    that layer computes: a 7B model takes 15 GB and its fp32 head (2 GB) instead of 30.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kept = torch.bfloat16 if _stored_in_bf16(base) else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=kept, local_files_only=True)
    if adapter and onto == "nf4":
        for name, parameter in model.named_parameters():
            if is_nf4(name):
                parameter.data = through_nf4(parameter.data)
    for module in (*model.model.layers, model.model.norm, model.lm_head):
        _compute_in_fp32(module)
    model.model.embed_tokens.register_forward_hook(lambda _module, _given, out: out.float())
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def _stored_in_bf16(base: Path) -> bool:
    """Whether bf16 holds every weight of a base exactly, whatever its config.json says."""
    return all(_types(path) == {"BF16"} for path in base.glob("model*.safetensors"))


def _types(path: Path) -> set[str]:
    import safetensors

    open_file: Any = safetensors.safe_open
    with open_file(path, "pt") as file:
        names: list[str] = file.keys()
        return {file.get_slice(name).get_dtype() for name in names}


def _compute_in_fp32(module: "torch.nn.Module") -> None:
    """Widen a module's weights for the time of its forward pass, then put the stored ones back."""
    stored: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def widen(*_: object) -> None:
        stored.extend((parameter, parameter.data) for parameter in module.parameters())
        for parameter, data in stored:
            parameter.data = data.float()

    def restore(*_: object) -> None:
        for parameter, data in stored:
            parameter.data = data
        stored.clear()

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(restore)


def hf_rows(model: Any, answer: Answer) -> Rows:
    """A row for each token of an answer, in one pass."""
    import torch

    tokens = torch.tensor([answer.prompt + answer.tokens[:-1]])
    with torch.inference_mode():
        logits = model(tokens, logits_to_keep=len(answer.tokens)).logits[0].float().numpy()
    return np.stack([log_softmax(row) for row in logits])
