"""Training windows out of a dataset, in an order that depends on nothing but the seed and the step.

A row without an action of its own (a hole) counts as padding: it is not learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from robolearn.policies.contracts import Batch
from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import Dataset
from robolearn_data.schema import UserError
from robolearn_data.windows import windows

LOAD_ROWS = 1024


class WindowBatches:
    """All windows of a dataset, its streams held in memory (images as uint8)."""

    def __init__(self, dataset: Dataset, spec: PolicySpec, *, batch_size: int, seed: int, talk: bool = False) -> None:
        """``talk``: show a bar while images are loaded."""
        self.spec = spec
        self.batch_size = batch_size
        self.seed = seed
        self.windows = windows(dataset.episode_ends, spec.horizon, spec.start, spec.action_horizon - 1)
        if len(self.windows) < 1:
            raise UserError(f"{dataset.path} has no episodes to train on; `robolearn data info` shows what it holds")
        self.observation = {name: _tensor(dataset, name, talk=talk) for name in spec.observation}
        self.action = _tensor(dataset, "action", talk=False).flatten(1)
        self.is_hole = ~dataset.valid("action")
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def numbers(self, step: int) -> np.ndarray:
        """Window numbers (batch_size,) of training step ``step``: every epoch is a fresh permutation."""
        position = step * self.batch_size + np.arange(self.batch_size)
        epochs = position // len(self.windows)
        out = np.empty(self.batch_size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            mine = epochs == epoch
            out[mine] = self._permutation(epoch)[position[mine] % len(self.windows)]
        return out

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        rows, is_pad = self.windows.rows(np.asarray(numbers))
        seen = torch.from_numpy(rows[:, : self.spec.obs_horizon])
        return Batch(
            observation={name: values[seen] for name, values in self.observation.items()},
            action=self.action[torch.from_numpy(rows)],
            is_pad=torch.from_numpy(is_pad | self.is_hole[rows]),
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.windows)))
        return self._order[1]


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        observation={name: value.to(device, non_blocking=True) for name, value in batch.observation.items()},
        action=batch.action.to(device, non_blocking=True),
        is_pad=batch.is_pad.to(device, non_blocking=True),
    )


def _tensor(dataset: Dataset, name: str, *, talk: bool) -> Tensor:
    """(N, *shape), float32 or uint8."""
    stream = dataset.schema.stream(name)
    if stream.kind != "image":
        return torch.from_numpy(dataset.read(name).astype(np.float32))
    out = np.empty((dataset.steps, *stream.shape), np.uint8)
    pieces = range(0, dataset.steps, LOAD_ROWS)
    for first in track(pieces, f"load {name}", disable=not talk, transient=True):
        rows = slice(first, first + LOAD_ROWS)
        out[rows] = dataset.read(name, rows, dtype="uint8")  # some are stored as floats of four times the size
    return torch.from_numpy(out)
