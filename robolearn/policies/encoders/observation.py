"""Observation -> context. State streams are normalised and joined; cameras and point clouds have small networks.

Shape letters: see contracts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.encoders.images import ImageConfig, ImageEncoder
from robolearn.policies.encoders.points import PointsConfig, PointsEncoder
from robolearn.policies.normalise import Normalisation, VectorNormaliser
from robolearn.policies.spec import SpecError
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics


@dataclass(frozen=True)
class EncoderConfig(PointsConfig, ImageConfig):
    """How observations become context."""


class ObservationEncoder(nn.Module):
    """Every stream -> one token for each observation step."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        statistics: Mapping[str, StreamStatistics],
        normalisation: Normalisation,
        config: EncoderConfig,
        components: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """``components``: of a state stream named here, those that are seen."""
        super().__init__()
        self.state = nn.ModuleDict()
        self.image = nn.ModuleDict()
        self.points = nn.ModuleDict()
        self.width = 0
        """Width D of a context token."""
        for name, stream in streams.items():
            if stream.kind == "image":
                self.image[name] = part = ImageEncoder(stream, config)
            elif stream.kind == "text":
                raise SpecError(f"this policy cannot read the text {name!r}: take --policy vla, or do not observe it")
            elif stream.kind == "points":
                self.points[name] = part = PointsEncoder(stream, statistics[name], config)
            else:
                chosen = (components or {}).get(name)
                self.state[name] = part = VectorNormaliser(stream, statistics[name], normalisation, chosen)
            self.width += part.width

    def forward(self, observation: Mapping[str, Tensor]) -> Context:
        """Stream -> (B, O, *shape), physical units."""
        features = [module(observation[name].flatten(2)) for name, module in self.state.items()]
        for modules in (self.image, self.points):
            features += [module(observation[name]) for name, module in modules.items()]
        return Context(tokens=torch.cat(features, dim=-1))
