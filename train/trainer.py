"""TRL's SFTTrainer over packs: the same samples an optimizer step, in fewer and fuller passes."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import MethodType
from typing import Any, NamedTuple

import torch
from bitsandbytes.optim.adamw import AdamW
from trl import SFTTrainer  # type: ignore[attr-defined]

from train.dropout import DropoutSeed
from train.graphs import Pack, Pass, PassGraphs
from train.loss import summed_cross_entropy
from train.optimizer import QueuedAdamW
from train.packing import IGNORED, PackCollator


class Step(NamedTuple):
    """An optimizer step's loss, still on the GPU, and the ids of its samples on this rank."""

    number: int
    loss: torch.Tensor
    ids: list[str]


class PackTrainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
    """A batch is one optimizer step's samples as packs (`PackCollator`); each pack is one pass.

    The loss is the sum over all tokens that count, divided by their number in the whole step, as
    SFTTrainer's with gradient accumulation is; so it does not depend on how samples are packed.
    """

    def __init__(self, *, collator: PackCollator, seed: int, **given: Any) -> None:
        super().__init__(data_collator=collator, **given)
        model: Any = self.model
        base = model.get_base_model()
        base.forward = MethodType(_summed_loss, base)
        self.dropout_seed = DropoutSeed(model, seed, self.accelerator.device)
        self._tokens = 0
        self._started = time.monotonic()
        self._recent: list[Step] = []
        self._scale = torch.ones((), device=self.accelerator.device)
        self._run: Callable[[Pass, Pack], torch.Tensor] = _run_plainly
        self._gradients: list[torch.Tensor] = []

    def replay_passes(self) -> None:
        """Replay every pass as a CUDA graph; for a single rank, since ranks exchange gradients
        within the backward pass."""
        model: Any = self.model
        self._run = PassGraphs(model.get_base_model().model)
        self._gradients = [torch.zeros_like(p) for p in self._trainable()]

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        optimizer, settings = SFTTrainer.get_optimizer_cls_and_kwargs(args, model)
        waits = optimizer is AdamW and not settings.get("is_paged")
        return (QueuedAdamW if waits else optimizer), settings

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        packs = self._prepare_inputs(inputs)["packs"]
        self._started = self._started if self._tokens else time.monotonic()
        self._tokens += inputs["tokens"]
        self._scale.copy_(self.accelerator.num_processes / num_items_in_batch)
        self._place_gradients()
        losses = []
        for index, pack in enumerate(packs):
            self.dropout_seed.draw(self.state.global_step, self.args.process_index, index)
            last = index == len(packs) - 1
            # Ranks exchange gradients once a step, however many packs each of them has.
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(self._run(self._forward_backward, pack))
        loss = torch.stack(losses).sum()
        self._recent.append(Step(self.state.global_step + 1, loss, inputs["ids"]))
        return loss

    def recent_steps(self) -> Iterator[tuple[int, float, list[str]]]:
        """Number, loss and samples' ids of the steps since the last call. Waits for the GPU."""
        recent, self._recent = self._recent, []
        for step in recent:
            yield step.number, step.loss.item(), step.ids

    def tokens_per_second(self) -> float:
        """Since the first step began, which compiles; this rank's tokens."""
        return self._tokens / max(time.monotonic() - self._started, 1e-9)

    def _forward_backward(self, pack: Pack) -> torch.Tensor:
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.model_wrapped(**pack) * self._scale
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _forward(self, pack: Pack) -> torch.Tensor:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: torch.Tensor = self.model_wrapped(**pack)
        return loss

    def _place_gradients(self) -> None:
        """A recorded pass adds to the gradients where they were when it was recorded; the trainer
        drops them after every step."""
        if self._gradients:
            torch._foreach_zero_(self._gradients)
            for parameter, gradient in zip(self._trainable(), self._gradients, strict=True):
                parameter.grad = gradient

    def _trainable(self) -> list[torch.nn.Parameter]:
        model: Any = self.model
        return [p for p in model.parameters() if p.requires_grad]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean loss over all tokens of the validation set that count, on all ranks together."""
        self.model_wrapped.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for rows in self._own_share(eval_dataset or self.eval_dataset):
            batch = self._prepare_inputs(self.data_collator(rows))
            for pack in batch["packs"]:
                sums[0] += self._run(self._forward, pack)
            sums[1] += (batch["labels"] != IGNORED).sum()
        total, count = self.accelerator.reduce(sums).tolist()
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _own_share(self, dataset: Any) -> Iterator[list[dict[str, Any]]]:
        """This rank's samples, none twice, in batches of as many as a step has."""
        mine = dataset.shard(self.args.world_size, self.args.process_index)
        size = self.args.per_device_train_batch_size
        for start in range(0, len(mine), size):
            yield [mine[i] for i in range(start, min(start + size, len(mine)))]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Not counted: the estimate wants one tensor of tokens."""
        return 0

    def _load_from_checkpoint(self, *arguments: Any, **named: Any) -> None:
        """PEFT loads a checkpoint's adapter as fp32; a resumed run must go on in its own bf16."""
        model: Any = self.model
        dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
        super()._load_from_checkpoint(*arguments, **named)
        for name, parameter in model.named_parameters():
            if name in dtypes:
                parameter.data = parameter.data.to(dtypes[name])


def _run_plainly(run: Pass, pack: Pack) -> torch.Tensor:
    return run(pack)


def _summed_loss(
    self: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    targets: torch.Tensor,
    importance: torch.Tensor,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> torch.Tensor:
    """In place of the base model's forward: a pack's loss, summed over its tokens."""
    hidden = self.model(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        use_cache=False,
    ).last_hidden_state
    wanted = targets[0].clamp(min=0)  # the target of one that does not count is IGNORED
    return summed_cross_entropy(hidden[0], self.lm_head.weight, wanted, importance[0])
