"""Physical units to the network's units and back, from the statistics of the training data."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robolearn_data.schema import Stream, UserError
from robolearn_data.statistics import StreamStatistics

Normalisation = Literal["min-max", "mean-std", "quantile"]
"""min-max: [min, max] to [-1, 1]; quantile: [q01, q99] to [-1, 1]; mean-std: zero mean, unit deviation."""


class VectorNormaliser(nn.Module):
    """Affine map of a flattened state or action stream; wrapping angles become cosine and sine.

    Its numbers are not parameters and are not saved with the weights: a checkpoint holds them in statistics.json.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        stream: Stream,
        statistics: StreamStatistics,
        kind: Normalisation,
        components: tuple[int, ...] | None = None,
        room: int = 0,
    ) -> None:
        """
        Args:
            components: those of the stream that ``forward`` returns; all by default.
            room: ``forward`` appends zeros up to so many, which ``inverse`` takes away.
        """
        super().__init__()
        if kind == "mean-std":
            low, high = statistics.mean - statistics.std, statistics.mean + statistics.std
        elif kind == "quantile":
            low, high = statistics.q01, statistics.q99
        else:
            low, high = statistics.min, statistics.max
        low, high = low.reshape(-1), high.reshape(-1)
        if low.shape != (stream.size,):
            raise UserError(f"statistics have {low.size} components, the stream has {stream.size}")
        # A constant component is centred but not scaled: dividing by its range would blow noise up.
        flat = statistics.degenerate().reshape(-1) | (high - low < 1e-4)
        span = np.where(flat, 2.0, high - low)
        self.register_buffer("offset", torch.tensor((high + low) / 2, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(2 / span, dtype=torch.float32), persistent=False)
        chosen = range(stream.size) if components is None else components
        self.wraps = [i for i in chosen if i in stream.wraps]
        self.keeps = [i for i in chosen if i not in stream.wraps]
        self.whole = self.keeps == list(range(stream.size))
        self.width = max(len(self.keeps) + 2 * len(self.wraps), room)
        """Components after normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., stream.size) in physical units -> (..., width)."""
        y = (x.float() - self.offset) * self.scale
        if not self.whole:
            angle = x.float()[..., self.wraps]
            y = torch.cat([y[..., self.keeps], angle.cos(), angle.sin()], dim=-1)
        room = self.width - y.shape[-1]
        return nn.functional.pad(y, (0, room)) if room else y

    def inverse(self, y: Tensor) -> Tensor:
        """(..., width) normalised -> (..., stream.size), physical units. Wrapping angles have no inverse."""
        if not self.whole:
            raise UserError("a stream with wrapping angles cannot be predicted; store its cosine and sine instead")
        return y[..., : len(self.keeps)] / self.scale + self.offset
