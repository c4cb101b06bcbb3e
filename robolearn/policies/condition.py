"""The condition of a policy, and predictions without it, as classifier-free guidance needs them.

Ho & Salimans 2022: a network that was shown a part of its training windows without their condition predicts with and
without it, and sampling goes along free + w (conditioned - free). w = 1 is the conditioned prediction, 0 the free one,
above 1 the condition counts more. Where a policy has a goal, the goal is its condition; otherwise all it observes is.
In place of what is left out stand learned tokens. Shape letters: see contracts.py; K tokens of the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context


class Condition(nn.Module):
    """The last K of a context's tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.null = nn.Parameter(0.02 * torch.randn(tokens, width))

    def without(self, context: Context) -> Context:
        """The same context, with nothing said in place of the condition."""
        known = context.tokens[:, : context.tokens.shape[1] - self.tokens]
        return Context(torch.cat([known, self.null.expand(len(context), -1, -1).to(known)], dim=1))

    def dropped(self, context: Context, drop: Tensor) -> Context:
        """Without the condition where ``drop`` (B, 1) is True."""
        return Context(torch.where(drop.unsqueeze(-1), self.without(context).tokens, context.tokens))
