"""Time and position as sines and cosines."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoid(t: Tensor, width: int, *, min_period: float, max_period: float) -> Tensor:
    """(...) -> (..., width): sines then cosines with periods spaced geometrically (Vaswani et al. 2017, 3.5)."""
    exponent = torch.linspace(0.0, 1.0, width // 2, device=t.device)
    period = min_period * (max_period / min_period) ** exponent
    angle = t.unsqueeze(-1) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def time_features(t: Tensor, width: int) -> Tensor:
    """Denoising time in [0, 1] -> (..., width); periods as in pi0 (4e-3 to 4)."""
    return sinusoid(t, width, min_period=4e-3, max_period=4.0)
