"""Times that differ along a chunk: actions given clean in front (time 1), and blocks of rising noise behind them."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_WISE = 0.8
"""Part of a streaming policy's training windows that have blocks of rising noise; the others have one time."""


def token_times(t: Tensor, tokens: int, prefix: int, block: int, generator: torch.Generator | None) -> Tensor:
    """Training times of each action, from one time ``t`` (B, 1) for each window.

    Args:
        tokens: actions in a chunk, T.
        prefix: the number of leading actions that are given clean is uniform over 0..prefix (Black et al. 2025,
            "Training-time action conditioning for efficient real-time chunking").
        block: actions in a block of a streaming policy (Hoeg et al. 2024, "Streaming Diffusion Policy"); 0: no blocks.

    Returns:
        (B, T), or ``t`` itself if neither is asked for. Time 1 marks what is given and not learned.
    """
    if not prefix and not block:
        return t
    given = torch.randint(0, prefix + 1, t.shape, generator=generator)
    times = torch.where(torch.arange(tokens) < given, 1.0, t)
    if block:
        progress = torch.rand(t.shape, generator=generator)
        chunk_wise = torch.rand(t.shape, generator=generator) < CHUNK_WISE
        times = torch.where(chunk_wise, block_times(tokens, given, block, progress), times)
    return times


def block_times(tokens: int, first: Tensor, block: int, progress: Tensor) -> Tensor:
    """Times (B, T) of a streaming chunk: the actions before ``first`` are clean, block j of h has come from time
    1 - (j + 1) / h to 1 - j / h as ``progress`` goes from 0 to 1, and what is left behind the last block is noise.

    Args:
        first: (B, 1) index of the first action of block 0. There are h = (T - first) // block blocks, at least 1.
        progress: (B, 1) in [0, 1].
    """
    blocks = ((tokens - first) // block).clamp(min=1)
    j = (torch.arange(tokens, device=first.device) - first).div(block, rounding_mode="floor")
    return ((blocks - 1 - j + progress) / blocks).clamp(0, 1)
