"""Softmax attention as every trunk and backbone of ours computes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, allowed: Tensor | None = None) -> Tensor:
    """(B, H, T, E). ``allowed``: bool, broadcast to (B, H, T, S); None: every key.

    On a CPU bfloat16 is computed in float32: torch's kernel takes 15 times as long for its gradient in bfloat16
    (measured with torch 2.13 and heads of 32).
    """
    if q_BHTE.device.type != "cpu" or q_BHTE.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=allowed)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(q_BHTE.float(), k_BHSE.float(), v_BHSE.float(), attn_mask=allowed)
    return y.to(q_BHTE.dtype)
