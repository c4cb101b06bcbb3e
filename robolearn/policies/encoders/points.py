"""Point clouds -> features: the same small network for every point, then the maximum over all of them.

PointNet (Qi et al. 2017) without its input transforms, with layer norm, as 3D Diffusion Policy and MP1 have it. The
order of the points does not matter, and their number may differ from the one trained with.
Shape letters: see contracts.py; P points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics


@dataclass(frozen=True)
class PointsConfig:
    """How point clouds are encoded. Not a choice of its own: part of EncoderConfig."""

    points_width: int = 64
    """Features per point cloud and observation step."""
    points_layers: tuple[int, ...] = (64, 128, 256)
    """Widths of the network that sees each point."""


class PointsEncoder(nn.Module):
    """(B, O, P, C) points in physical units -> (B, O, width).

    Positions are scaled alike along all three axes, so that shapes stay what they are; what else is known of a point
    (its colour) is scaled to [-1, 1] component by component.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, stream: Stream, statistics: StreamStatistics, config: PointsConfig) -> None:
        super().__init__()
        self.width = config.points_width
        low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (statistics.min, statistics.max))
        extent = high - low
        extent[:3] = extent[:3].max()
        scale = torch.where(extent > 1e-6, 2 / extent.clamp(min=1e-6), 1.0)
        self.register_buffer("offset", (low + high) / 2, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        widths = (stream.shape[-1], *config.points_layers)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()]
        self.each = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(widths[-1], config.points_width), nn.LayerNorm(config.points_width))

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.each((points.float() - self.offset) * self.scale).amax(-2))
