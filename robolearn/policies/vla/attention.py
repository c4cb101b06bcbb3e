"""Attention with rotary positions and shared keys, as backbones and action experts have it.

Shape letters: B batch, H query heads, K heads of keys and values, T queries, S keys, E head width, W token width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn.policies.attention import attention


def rotate(x_BHTE: Tensor, position_BT: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves rotated against each other as in Llama."""
    dtype = torch.promote_types(x_BHTE.dtype, torch.float32)
    half = x_BHTE.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, device=x_BHTE.device, dtype=dtype) / half)
    angle = position_BT[:, None, :, None].to(dtype) * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x_BHTE.to(dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHTE.dtype)


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, allowed_BTS: Tensor) -> Tensor:
    """Softmax attention, (B, T, H * E). ``allowed``: bool, at least one key for each query."""
    share = q_BHTE.shape[1] // k_BKSE.shape[1]
    k, v = (x.to(q_BHTE.dtype).repeat_interleave(share, dim=1) for x in (k_BKSE, v_BKSE))
    y = attention(q_BHTE, k, v, allowed_BTS.unsqueeze(1))
    return y.transpose(1, 2).flatten(2)


def heads(x_BTW: Tensor, head_dim: int) -> Tensor:
    """(B, T, heads * E) -> (B, heads, T, E)."""
    return x_BTW.unflatten(-1, (-1, head_dim)).transpose(1, 2)


class RmsNorm(nn.Module):
    """x / rms(x), computed in float32 or better, times a weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * rms_normalised(x, self.eps)


def rms_normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last axis."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (SwiGLU)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
