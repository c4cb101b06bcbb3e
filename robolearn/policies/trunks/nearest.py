"""Nearest neighbour: the chunk of the training window whose observation is nearest. Nothing is learned.

A baseline that a learned policy has to beat (Pari et al. 2022, "The Surprising Effectiveness of Representation Learning
for Visual Imitation"). The distance is Euclidean between contexts: all observations of the window, normalised, each
component counting alike. Shape letters: see contracts.py; M windows that are remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn_data.schema import UserError


@dataclass(frozen=True)
class NearestConfig:
    """The memory of all training windows in place of a network; for the objective "regression"."""

    kind: Literal["nearest"] = "nearest"


class Nearest(nn.Module):
    """(anything (B, T, A), any time, context) -> the chunk (B, T, A) of the nearest window, normalised."""

    contexts: Tensor
    chunks: Tensor

    def __init__(
        self, actions: int, tokens: int, token_width: int, config: NearestConfig, *, spans: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("contexts", torch.empty(0, tokens * token_width))
        self.register_buffer("chunks", torch.empty(0, 0, actions))
        self.register_load_state_dict_pre_hook(_make_room)

    @torch.no_grad()
    def remember(self, windows: Iterable[tuple[Context, Tensor]]) -> None:
        """Keep these contexts (M in all) and their normalised chunks (., T, A), and forget all others."""
        contexts, chunks = zip(*((context.vector.cpu(), chunk.cpu()) for context, chunk in windows), strict=True)
        self.contexts = torch.cat(contexts).to(self.contexts)
        self.chunks = torch.cat(chunks).to(self.chunks)

    def forward(self, x: Tensor, t: Tensor, context: Context, **_: Any) -> Tensor:
        if not len(self.contexts):
            raise UserError("the nearest-neighbour policy remembers nothing; train it first")
        distance = torch.cdist(context.vector.float(), self.contexts, compute_mode="donot_use_mm_for_euclid_dist")
        return self.chunks[distance.argmin(1)].to(x)


def _make_room(nearest: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a memory is loaded: it may hold any number of windows."""
    for name in ("contexts", "chunks"):
        if prefix + name in weights:
            setattr(nearest, name, torch.empty_like(weights[prefix + name]))
