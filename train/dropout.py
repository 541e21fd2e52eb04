"""LoRA's dropout, computed anew in the backward pass instead of being kept.

Saves: PEFT gives each adapted projection a dropout of its own, and autograd keeps what each of
them let through: six copies of the hidden state and one of the MLP's inner state a layer, 81 of
the 240 KB a token and layer of Qwen2.5-7B. Here an element's fate is a hash of its place and a
seed: plain integer arithmetic that needs no generator's state to be repeated.
"""

import random
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint


class DroppedProjection(nn.Linear):
    """LoRA's A after dropout. Keeps its input, which others keep as well, and recomputes the rest.

    Under the name of the projection that it replaces, so that PEFT saves and loads it as ever.
    """

    def __init__(self, plain: nn.Linear, p: float, salt: int, seed: torch.Tensor) -> None:
        """`seed` is shared by all of a model, an int32 scalar on its device; `salt` tells this
        projection's masks from the others'."""
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight = plain.weight
        self.scale = 1 / (1 - p)
        self.threshold = round(p * 2**31)
        salted = torch.tensor(salt, dtype=torch.int32, device=seed.device)
        self.register_buffer("seed", seed, persistent=False)
        self.register_buffer("salt", salted, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return linear(x, self.weight)
        projected: torch.Tensor = checkpoint(
            self._project, x, use_reentrant=False, preserve_rng_state=False
        )
        return projected

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        seed: Any = self.seed
        place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
        chance = _mix(place ^ _mix(seed + self.salt)) & 0x7FFFFFFF
        kept = torch.where(chance >= self.threshold, x, 0)
        return linear(kept, self.weight) * self.scale


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash in which every bit of the input moves half of the output's: C. Wellons,
    lowbias32 (2018). Masks after the shifts, because int32 drags its sign along."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


class DropoutSeed:
    """The seed that all dropouts of a model share."""

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        """Replace the dropouts of every adapted projection of `model`."""
        self._seed = seed
        self._value = torch.zeros((), dtype=torch.int32, device=device)
        for salt, module in enumerate(adapted_modules(model)):
            for name, old in module.lora_dropout.items():
                if isinstance(old, nn.Dropout):
                    plain = module.lora_A[name]
                    module.lora_A[name] = DroppedProjection(plain, old.p, salt, self._value)
                    module.lora_dropout[name] = nn.Identity()

    def draw(self, *place: int) -> None:
        """New masks for one pass, decided by the seed and the place alone: step, rank, pack."""
        name = "-".join(map(str, (self._seed, *place)))
        self._value.fill_(random.Random(name).getrandbits(31))


def adapted_modules(model: nn.Module) -> list[Any]:
    return [
        m for m in model.modules() if isinstance(getattr(m, "lora_dropout", None), nn.ModuleDict)
    ]
