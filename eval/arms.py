"""Arms: the model states that are evaluated, each able to answer records greedily.

`base` and `adapter` are Hugging Face models in NF4, the way the adapter was trained; `merged` is
the merged folder in bf16, where the export kept it; `gguf:*` run in the edge engine, the same
that serves. What `adapter` and `merged` differ in, merging cost; the rest is quantization. `lora:*`
are what an update makes of an installed bundle: a GGUF of the export that the adapter was trained
on, and the adapter over it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from eval.predictions import Prediction, make_prediction, option_numbers
from eval.protocol import Protocol
from kormed_edge.calibration import mean_logprob
from kormed_edge.engine import Engine
from kormed_edge.errors import EvalError
from kormed_edge.manifest import MANIFEST, read_manifest
from kormed_edge.prompt_tokens import PromptTokens, open_tokens
from kormed_edge.prompts import END, SYSTEM_MESSAGE, question_messages
from kormed_edge.records import MULTIPLE_CHOICE, Record
from kormed_edge.request import Request
from kormed_edge.runs import ADAPTER_GGUF

if TYPE_CHECKING:
    import torch

NF4_ARMS = ("base", "adapter")
MERGED = "merged"
GGUF_PREFIX, LORA_PREFIX = "gguf:", "lora:"
_OVER = "over"  # an engine wants a name for its adapter
GROUP_TURNS = 4
"""Items of a GGUF arm that one slot has in a group. A stop loses the group under way."""


def gguf_files(folder: Path) -> dict[str, Path]:
    """Arm name to file for every model GGUF of a run: NAME-Q8_0.gguf is the arm gguf:Q8_0."""
    return {f"{GGUF_PREFIX}{type_}": file for type_, file in _models(folder).items()}


def lora_files(run: Path) -> dict[str, Path]:
    """Arm name to the model under the adapter, for every GGUF of the export that the adapter was
    trained on. None if that was no GGUF of an export."""
    if not (run / "gguf" / ADAPTER_GGUF).is_file():
        return {}
    base = Path(str(read_manifest(run / "adapter").settings["base"]))
    if base.suffix != ".gguf" or not (base.parent / MANIFEST).is_file():
        return {}
    return {f"{LORA_PREFIX}{type_}": file for type_, file in _models(base.parent).items()}


def _models(folder: Path) -> dict[str, Path]:
    models: dict[str, str] = read_manifest(folder).settings.get("models", {})
    return {type_: folder / name for type_, name in models.items()}


def merged_folder(folder: Path) -> Path | None:
    """The merged Hugging Face folder of an export, if it was kept."""
    name = read_manifest(folder).settings.get("merged")
    return folder / name if name else None


def choose_arms(wanted: Sequence[str] | None, run: Path) -> list[str]:
    """The wanted arms, or all that a run's export has; an arm that it lacks is an error."""
    folder = run / "gguf"
    merged = [MERGED] if merged_folder(folder) else []
    known = [*NF4_ARMS, *merged, *gguf_files(folder)]
    more = lora_files(run)  # for those who name them: another run's model answers
    unknown = [arm for arm in wanted or () if arm not in (*known, *more)]
    if unknown:
        raise EvalError(
            f"eval.arms: {', '.join(unknown)} not in this run",
            f"some of {', '.join((*known, *more))}",
            "export it first: --set export.types=[...], or --keep-hf for merged",
        )
    return list(wanted or known)


def answer_with_gguf(
    model: Path,
    records: Sequence[Record],
    protocol: Protocol,
    slots: int,
    adapter: Path | None = None,
) -> Iterator[Prediction]:
    """Answer `slots` items at once, in groups of `GROUP_TURNS` as many.

    Which tokens llama.cpp computes together can change the last bit of a logit. A group is computed
    in the same way whatever came before it, and its predictions come together: an arm that was
    stopped and goes on gives the same answers. With one slot, so does any other order.
    """
    with open_tokens(model) as tokens:
        prompts = {record: tuple(_encode(tokens, record, protocol)) for record in records}
    context = max(map(len, prompts.values())) + protocol.max_new_tokens
    prefix = [SYSTEM_MESSAGE] if protocol.chat else []
    adapters = {} if adapter is None else {_OVER: adapter}
    with Engine(
        model, adapters=adapters, context=context, slots=slots, reuse=False, prefix=prefix,
        prefix_adapter=next(iter(adapters), None),
    ) as engine:  # fmt: skip
        size = slots * GROUP_TURNS
        for start in range(0, len(records), size):
            group = records[start : start + size]
            yield from _answer_group(
                engine, {record: prompts[record] for record in group}, protocol
            )


def _answer_group(
    engine: Engine, prompts: Mapping[Record, tuple[int, ...]], protocol: Protocol
) -> Iterator[Prediction]:
    started = time.perf_counter()
    requests = [
        Request(
            ids,
            protocol.max_new_tokens,
            stop=protocol.stop,
            adapter=next(iter(engine.adapters), None),
            options=_option_tokens(engine, record) if protocol.chat else (),
            logprobs=0 if _is_free(record, protocol) else None,
        )
        for record, ids in prompts.items()
    ]
    answers = engine.answer_all(requests)
    seconds = (time.perf_counter() - started) / len(requests)
    for record, answer in zip(prompts, answers, strict=True):
        yield make_prediction(
            record,
            answer.text.strip() if protocol.chat else answer.text,
            answer.finish_reason,
            answer.completion_tokens,
            seconds,
            answer.option_probabilities,
            mean_logprob([token.logprob for token in answer.logprobs]) if answer.logprobs else None,
        )


def _is_free(record: Record, protocol: Protocol) -> bool:
    """Whether the probability of the answer's own tokens is all that tells how sure it is."""
    return protocol.chat and record.q_type != MULTIPLE_CHOICE


def _option_tokens(engine: Engine, record: Record) -> tuple[int, ...]:
    numbers = option_numbers(record)
    return engine.option_tokens(numbers) if numbers else ()


def _encode(tokens: PromptTokens, record: Record, protocol: Protocol) -> list[int]:
    if protocol.chat:
        return tokens.of_messages(question_messages(record.question))
    return tokens.of_text(protocol.prompt(record))


class HuggingFaceArms:
    """`base` and `adapter` on one loaded NF4 model, of which the base is the adapter switched off;
    or `merged` on its own."""

    @classmethod
    def nf4(cls, base: Path, adapter: Path) -> Self:
        from peft import PeftModel

        from kormed_edge.nf4 import load_nf4

        return cls(PeftModel.from_pretrained(load_nf4(base), str(adapter)), adapter)

    @classmethod
    def merged(cls, folder: Path) -> Self:
        """A merged folder, on the GPU as far as it fits."""
        import torch
        from transformers import AutoModelForCausalLM

        device = "auto" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.bfloat16, device_map=device
        )
        return cls(model, folder)

    def __init__(self, model: Any, tokenizer: Path) -> None:
        from kormed_edge.nf4 import load_tokenizer

        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer.padding_side = "left"
        # A model that was not tuned for chat has an end token of its own; the engine stops at both.
        self.ends = {self.tokenizer.convert_tokens_to_ids(END), self.tokenizer.eos_token_id}
        self.model = model.eval()

    def answer(
        self, arm: str, records: Sequence[Record], protocol: Protocol, batch_size: int
    ) -> Iterator[Prediction]:
        """Answer in batches; what was stopped after one goes on with the same ones."""
        for batch in _batches(records, batch_size):
            if arm == "base":
                with self.model.disable_adapter():
                    yield from self._answer_batch(batch, protocol)
            else:
                yield from self._answer_batch(batch, protocol)

    def _answer_batch(self, batch: Sequence[Record], protocol: Protocol) -> Iterator[Prediction]:
        import torch

        started = time.perf_counter()
        prompts = [protocol.prompt(record) for record in batch]
        stop = {"stop_strings": list(protocol.stop), "tokenizer": self.tokenizer}
        inputs = self.tokenizer(
            prompts, add_special_tokens=False, padding=True, return_tensors="pt"
        )
        inputs = inputs.to(self.model.device)
        first = _FirstLogits()
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=protocol.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self.ends),
                logits_processor=[first],
                **(stop if protocol.stop else {}),
            )
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(batch)
        for record, ids, logits in zip(batch, answers, first.logits, strict=True):
            yield self._prediction(record, ids, seconds, logits, protocol)

    def _prediction(
        self,
        record: Record,
        ids: list[int],
        seconds: float,
        logits: "torch.Tensor",
        protocol: Protocol,
    ) -> Prediction:
        # After a stop string the rest of a batch's row is padding.
        ends = self.ends | {self.tokenizer.pad_token_id}
        written = list(takewhile(lambda token: token not in ends, ids))
        ended = len(written) < len(ids)
        whole: Any = self.tokenizer.decode(written, skip_special_tokens=True)
        text = protocol.cut(whole)  # transformers goes on to the end of the token
        return make_prediction(
            record,
            text.strip() if protocol.chat else text,
            "stop" if ended or len(text) < len(whole) else "length",
            len(written),
            seconds,
            self._option_probabilities(record, logits) if protocol.chat else (),
        )

    def _option_probabilities(self, record: Record, logits: "torch.Tensor") -> list[float]:
        numbers = option_numbers(record)
        if not numbers:
            return []
        tokens = [self.tokenizer.encode(n, add_special_tokens=False)[0] for n in numbers]
        probabilities: list[float] = logits[tokens].float().softmax(0).tolist()
        return probabilities


def _batches(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """Batches of one type of question, whose answers are about as long as each other, and of
    similar length, longest first, so that memory fails early."""
    ordered = sorted(records, key=lambda r: len(r.question), reverse=True)
    for q_type in dict.fromkeys(record.q_type for record in ordered):
        alike = [record for record in ordered if record.q_type == q_type]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


class _FirstLogits:
    """A logits processor that changes nothing and keeps the logits of the first step: (items,
    vocabulary)."""

    def __init__(self) -> None:
        self.logits: Any = None

    def __call__(self, _ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        if self.logits is None:
            self.logits = scores.clone()
        return scores
