"""Named weights kept in a few flat fp32 buffers, and AdamW on them.

Flat, because one cast, one all-reduce and one optimizer step per buffer cost a fraction of what
two hundred small tensors do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

SECTIONS = {"vision": "model.visual.", "heads": "heads.", "text": "model.language_model."}
_CLIPPED_TOGETHER = (("vision", "heads"), ("text",))
CLIP_NORMS = {"vision": 2.0, "text": 1.0}
FLOOR = 0.03
"""Share of the learning rate that is left at the end of the schedule."""


class Finish(NamedTuple):
    """An end before the cosine's: from a step on, decay to the floor within some steps."""

    first_step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Rates:
    """A stage's learning rates. A section not named is not trained."""

    sections: Mapping[str, float]
    warmup_steps: int
    cosine_steps: int
    finish: Finish | None = None

    @property
    def total_steps(self) -> int:
        """How many steps the stage has."""
        return sum(self.finish) if self.finish else self.cosine_steps

    def share_at(self, step: int) -> float:
        """Return the share of the learning rate at a step: a ramp up, then a cosine down."""
        if self.finish is not None and step >= self.finish.first_step:
            start = self._cosine_at(self.finish.first_step)
            progress = (step - self.finish.first_step) / self.finish.num_steps
            return max(FLOOR, start * _cosine(progress))
        return self._cosine_at(step)

    def _cosine_at(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup_steps) * _cosine(step / self.cosine_steps)


def _cosine(progress: float) -> float:
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True, slots=True)
class _Buffer:
    section: str
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    flat: nn.Parameter


class FlatWeights:
    """Weights by name, each section in two buffers: with weight decay and without."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.buffers: list[_Buffer] = []
        for (section, prefix), decayed in product(SECTIONS.items(), (True, False)):
            found = {
                name: tensor
                for name, tensor in weights.items()
                if name.startswith(prefix) and (tensor.ndim > 1) == decayed
            }
            if found:
                flat = nn.Parameter(torch.cat([tensor.flatten() for tensor in found.values()]))
                shapes = tuple(tensor.shape for tensor in found.values())
                self.buffers.append(_Buffer(section, tuple(found), shapes, flat))

    def views(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return every weight in the given type, differentiable back to its buffer."""
        weights: dict[str, Tensor] = {}
        for buffer in self.buffers:
            parts = buffer.flat.to(dtype).split([shape.numel() for shape in buffer.shapes])
            for name, part, shape in zip(buffer.names, parts, buffer.shapes, strict=True):
                weights[name] = part.view(shape)
        return weights


class Optimizer:
    """AdamW over one stage, its gradients averaged over processes."""

    def __init__(self, weights: FlatWeights, rates: Rates) -> None:
        self.rates = rates
        self._trained = [b for b in weights.buffers if b.section in rates.sections]
        groups = [
            {
                "params": [buffer.flat],
                "weight_decay": 0.05 if len(buffer.shapes[0]) > 1 else 0.0,
                "base_rate": rates.sections[buffer.section],
            }
            for buffer in self._trained
        ]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def step(self, share: float) -> dict[str, float]:
        """Average, clip and apply the gradients at a share of the rates; return their norms."""
        gradients = [
            b.flat.grad if b.flat.grad is not None else torch.zeros_like(b.flat)
            for b in self._trained
        ]
        if dist.is_initialized():
            joined = torch.cat(gradients)
            dist.all_reduce(joined)
            joined /= dist.get_world_size()
            gradients = list(joined.split([len(g) for g in gradients]))
        for buffer, gradient in zip(self._trained, gradients, strict=True):
            buffer.flat.grad = gradient
        norms = self._clip()
        for group in self.adam.param_groups:
            group["lr"] = group["base_rate"] * share
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norms

    def _clip(self) -> dict[str, float]:
        norms = {}
        for together in _CLIPPED_TOGETHER:
            clipped = [b.flat for b in self._trained if b.section in together]
            if clipped:
                norm = torch.nn.utils.clip_grad_norm_(clipped, CLIP_NORMS[together[0]])
                norms[together[0]] = norm.item()
        return norms


def save_state(
    path: Path, weights: FlatWeights, optimizer: Optimizer, stage: str, step: int
) -> None:
    """Write everything a run needs to go on, all or nothing."""
    state = {
        "stage": stage,
        "step": step,
        "buffers": [buffer.flat.detach() for buffer in weights.buffers],
        "adam": optimizer.adam.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_weights(path: Path, weights: FlatWeights) -> tuple[str, int]:
    """Read the weights of a saved run and return its stage and step."""
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for buffer, saved in zip(weights.buffers, state["buffers"], strict=True):
            buffer.flat.copy_(saved)
    return state["stage"], state["step"]


def load_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Read the optimizer's moments of a saved run."""
    optimizer.adam.load_state_dict(torch.load(path, weights_only=True)["adam"])
