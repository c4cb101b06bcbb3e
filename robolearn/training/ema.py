"""Exponential moving average of weights: what is evaluated and deployed."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A slowly following copy of a module.

    Decay at step k is min(max_decay, 1 - (1 + k)^-power), so that the random start is soon forgotten
    (Karras et al.; the values of Diffusion Policy are power 0.75, max_decay 0.9999).
    """

    def __init__(self, module: M, power: float, max_decay: float) -> None:
        # What is not trained is the same in both: a frozen backbone is held once.
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.module: M = copy.deepcopy(module, frozen)
        self.module.requires_grad_(False).eval()
        self.power = power
        self.max_decay = max_decay

    def decay(self, step: int) -> float:
        return min(self.max_decay, 1 - (1 + step) ** -self.power)

    @torch.no_grad()
    def update(self, module: M, step: int) -> None:
        """Move towards ``module`` after its optimiser step number ``step`` (from 0)."""
        for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
            if mine is not theirs:
                mine.lerp_(theirs, 1 - self.decay(step))
