"""What the fast half reads: force at the sensor's rate, in blocks of one fast period.

Shape letters: see contracts.py; K ticks (fast periods) in a control period, S readings of a stream in a tick, F
components of a reading, M = (T - 1) K + 1 ticks from the first action of a chunk to its last, R numbers in a block.

Tick m of a chunk is at the time of its first action + m fast periods. Its block holds the readings of the fast period
that ends there, so that a decoder that has read blocks 0 to m knows nothing of what comes after tick m.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.policies.reactive.config import samples_in_tick
from robolearn.policies.spec import FastSpec, PolicySpec
from robolearn_data.reading import View
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics

PREFIX = "fast/"


def fast_key(name: str) -> str:
    """Name of the readings of the stream ``name`` along a chunk, among the observations of a training batch."""
    return PREFIX + name


def fast_views(spec: PolicySpec) -> dict[str, View]:
    """What is read of a dataset for each stream of the fast half: its readings along the whole chunk."""
    fast = spec.fast
    if fast is None:
        return {}
    views = {}
    for name, stream in fast.observation.items():
        after = spec.horizon - spec.obs_horizon
        if stream.is_native:
            step = fast.ticks * samples_in_tick(stream, spec.rate_hz, fast.ticks)
            samples = (spec.horizon - 1) * step + step // fast.ticks
            views[fast_key(name)] = View(name, samples, ahead=after * step, rate_hz=spec.rate_hz * step)
        else:
            views[fast_key(name)] = View(name, spec.horizon, ahead=after)
    return views


class ReadingBlocks(nn.Module):
    """Readings of all streams -> blocks (..., R), of mean 0 and deviation 1 in the training data.

    Its numbers come from the statistics, and are not saved with the weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, fast: FastSpec, rate_hz: float, statistics: Mapping[str, StreamStatistics]) -> None:
        super().__init__()
        self.samples = {n: samples_in_tick(s, rate_hz, fast.ticks) for n, s in fast.observation.items()}
        """S of each stream."""
        self.components = {n: s.shape[-1] if s.shape else 1 for n, s in fast.observation.items()}
        """F of each stream."""
        means, scales = [], []
        for name, stream in fast.observation.items():
            mean, std = _pooled(stream, statistics[name])
            means.append(np.tile(mean, self.samples[name]))
            scales.append(np.tile(1 / np.maximum(std, 1e-3), self.samples[name]))
        self.register_buffer("mean", torch.tensor(np.concatenate(means), dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(np.concatenate(scales), dtype=torch.float32), persistent=False)

    @property
    def width(self) -> int:
        """R."""
        return len(self.mean)

    def along_chunk(self, observation: Mapping[str, Tensor], ticks: int) -> Tensor:
        """Readings of a training batch, as ``fast_views`` says -> blocks (B, M, R). ``ticks``: K."""
        readings = {}
        for name, samples in self.samples.items():
            value = observation[fast_key(name)]
            if value.ndim == 4:  # (B, T, K * S, F), of whose first row the last tick counts
                value = value.flatten(1, 2)[:, (ticks - 1) * samples :]
            readings[name] = value
        return self(readings)

    def forward(self, readings: Mapping[str, Tensor]) -> Tensor:
        """Readings (B, M * S, F) of each stream, oldest first -> blocks (B, M, R)."""
        blocks = []
        for name, samples in self.samples.items():
            x = readings[name].float()
            blocks.append(x.reshape(len(x), -1, samples * self.components[name]))
        return (torch.cat(blocks, dim=-1) - self.mean) * self.scale


def _pooled(stream: Stream, statistics: StreamStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) of a component over all its readings, which a stream (n, F) tells apart."""
    components = stream.shape[-1] if stream.shape else 1
    mean, std = (np.asarray(value).reshape(-1, components) for value in (statistics.mean, statistics.std))
    middle = mean.mean(0)
    return middle, np.sqrt((std**2 + (mean - middle) ** 2).mean(0))
