"""Time and position as sines and cosines."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, width: int, *, min_period: float, max_period: float) -> Tensor:
    """(...) -> (..., width): sines then cosines with periods spaced geometrically (Vaswani et al. 2017, 3.5)."""
    exponent = torch.linspace(0.0, 1.0, width // 2, device=t.device)
    period = min_period * (max_period / min_period) ** exponent
    angle = t.unsqueeze(-1) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class TimeFeatures(nn.Module):
    """Denoising time in [0, 1] as sines, then cosines, of periods from 4e-3 to 4 (pi0), (...) -> (..., width).

    Where a loss differentiates by time (``spans``: a mean flow), the shortest period is 1: the slope of faster ones, up
    to 1600, drowns what is learned.

    To 1e-6 of what float64 gives (openpi, LeRobot); float32 alone is 1e-4 off at 250 turns. Time and frequency are cut
    in two, so that the product of the coarse parts is exact and its whole turns fall out.
    """

    coarse: Tensor
    fine: Tensor

    def __init__(self, width: int, *, spans: bool = False) -> None:
        super().__init__()
        frequency = np.geomspace(1.0 if spans else 250.0, 0.25, width // 2)  # turns in a unit of time
        coarse = np.round(16 * frequency) / 16
        self.register_buffer("coarse", torch.tensor(coarse, dtype=torch.float32), persistent=False)
        self.register_buffer("fine", torch.tensor(frequency - coarse, dtype=torch.float32), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        t = t.unsqueeze(-1)
        coarse = torch.round(4096 * t) / 4096
        turns = coarse * self.coarse  # 12 bits times 12 bits
        turns = turns - turns.floor() + coarse * self.fine + (t - coarse) * (self.coarse + self.fine)
        angle = 2 * math.pi * turns
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
