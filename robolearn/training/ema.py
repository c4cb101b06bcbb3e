"""Exponential moving average of weights: what is evaluated and deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A slowly following copy of a module.

    Decay at step k is min(max_decay, 1 - (1 + k)^-power), so that the random start is soon forgotten
    (Karras et al.; the values of Diffusion Policy are power 0.75, max_decay 0.9999).
    """

    def __init__(
        self, module: M, power: float, max_decay: float, *, shard: Callable[[nn.Module], None] | None = None
    ) -> None:
        """``shard`` divides a module among processes; it is applied to ``module`` and to its average."""
        # What is not trained is the same in both: a frozen backbone is held once.
        if shard is None:
            self.module: M = copy.deepcopy(module, {id(p): p for p in module.parameters() if not p.requires_grad})
        else:
            # The copy takes the divided weights: it never holds whole ones.
            self.module = copy.deepcopy(module, {id(p): _empty(p) for p in module.parameters()})
            shard(module)
            shard(self.module)
            parts = {
                n: nn.Parameter(p.detach().clone()) if p.requires_grad else p for n, p in module.named_parameters()
            }
            self.module.load_state_dict(parts, strict=False, assign=True)
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


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
