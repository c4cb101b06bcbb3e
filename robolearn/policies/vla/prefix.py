"""The prefix: keys and values of pictures, text and state in every layer of a backbone.

They do not depend on the actions, which the block mask hides from them. So an observation is encoded once, and every
denoising step and every sample of it attends to the same prefix.

A prefix travels as the tokens of a ``Context``: token n holds the keys and values of all layers at place n, whether it
counts, and the position of the first action. What slices, repeats or exports contexts needs not know.

Shape letters: B batch, N tokens of the prefix, L layers, K heads of keys and values, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixShape:
    """What an action expert has to know of a backbone."""

    layers: int
    heads: int
    """Query heads, which the expert has too."""
    kv_heads: int
    head_dim: int
    rope_theta: float

    @property
    def width(self) -> int:
        """Of a context's token."""
        return 2 * self.layers * self.kv_heads * self.head_dim + 2


@dataclass(frozen=True)
class Prefix:
    keys: Sequence[Tensor]
    """L of (B, K, N, E), rotated to their positions."""
    values: Sequence[Tensor]
    valid: Tensor
    """(B, N) bool; the others are padding."""
    next_position: Tensor
    """(B,): of the first action."""

    def pack(self) -> Tensor:
        """(B, N, width)."""
        pairs = [x.transpose(1, 2).flatten(2) for pair in zip(self.keys, self.values, strict=True) for x in pair]
        # In float32 or better, or large positions would be rounded.
        flags = torch.stack([self.valid, self.next_position[:, None].expand_as(self.valid)], dim=-1)
        return torch.cat([*pairs, flags.to(torch.promote_types(pairs[0].dtype, torch.float32))], dim=-1)

    @classmethod
    def unpack(cls, tokens: Tensor, shape: PrefixShape) -> Prefix:
        numbers = tokens[..., :-2].unflatten(-1, (shape.layers, 2, shape.kv_heads, shape.head_dim))
        pairs = numbers.permute(2, 3, 0, 4, 1, 5)  # (L, 2, B, K, N, E)
        keys, values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return cls(keys, values, tokens[..., -2] > 0.5, tokens[:, 0, -1])


def block_mask(block_N: Tensor, valid_BN: Tensor, *, causal: bool = False) -> Tensor:
    """(B, N, N) bool: a token sees the valid ones of its own block and of those before it.

    Args:
        block_N: number of each token's block: pictures and text 0, state 1.
        causal: within block 0 it sees only what comes before it.
    """
    allowed = block_N[None, :] <= block_N[:, None]
    if causal:
        allowed = allowed & torch.ones_like(allowed).tril()
    # Padding may look at itself: a row of nothing would have no softmax. Nobody looks at padding.
    own = torch.eye(len(block_N), dtype=torch.bool, device=valid_BN.device)
    return (allowed & valid_BN.unsqueeze(1)) | own
