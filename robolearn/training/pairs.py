"""Pairs of pictures of one camera, as a latent-action model learns from them. No action is read.

Their order depends on nothing but the seed and the step, as in batches.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from robolearn.policies.contracts import Batch
from robolearn.policies.latent.language import STREAM
from robolearn.training.batches import HELD_OUT_WINDOWS, made_ahead, readers
from robolearn.training.config import Images
from robolearn.training.instructions import Instructions, instruction_views
from robolearn.training.sources import Source
from robolearn_data.mixture import Mixture
from robolearn_data.reading import View
from robolearn_data.schema import Stream
from robolearn_data.windows import windows

_FRAMES = "frames"


class PairBatches:
    """A picture, and the one ``ahead`` control steps later in the same episode.

    A batch's observation is the camera's stream -> (B, 2, H, W, C) uint8, its action (B, 0, 0), its ``is_pad`` (B, 1):
    one of the two was not recorded. With an instruction, the observation has what was said at the earlier one,
    "instruction" -> (B, bytes) uint8.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stream: str,
        ahead: int,
        *,
        batch_size: int,
        seed: int,
        weights: tuple[float, ...] = (),
        instruction: Stream | None = None,
        images: Images = "auto",
        rank: int = 0,
        processes: int = 1,
        talk: bool = False,
    ) -> None:
        """See ``WindowBatches``. ``instruction``: the text stream as which it is given; None: it is not."""
        self._stream = stream
        self._batch_size, self._share = batch_size, (rank, processes)
        reach = (ahead + 1, 0, 0)
        self.windows = [windows(s.dataset.episode_ends, *reach, episodes=s.train) for s in sources]
        self._held_out = [windows(s.dataset.episode_ends, *reach, episodes=s.held_out) for s in sources]
        self._mixture = Mixture(tuple(map(len, self.windows)), seed, weights)
        views = [
            {_FRAMES: View(stream, 2, ahead=1, rate_hz=source.dataset.schema.rate_hz / ahead)} for source in sources
        ]
        self._instructions: list[Instructions] = []
        if instruction is not None:
            views = [{**part, **instruction_views(s.dataset.schema)} for s, part in zip(sources, views, strict=True)]
            self._instructions = [Instructions(source.dataset, instruction) for source in sources]
        self._readers = readers(sources, views, images, talk)

    def coming(self, first: int, last: int, workers: int) -> AbstractContextManager[Iterator[Batch]]:
        def begun(step: int) -> functools.partial[Batch]:
            return functools.partial(self.read, *self._mixture.batch(step, self._batch_size, *self._share))

        return made_ahead(begun, range(first, last), workers)

    def held_out(self) -> Iterator[Batch]:
        sizes = tuple(map(len, self._held_out))
        if not all(sizes):
            return
        drawn = Mixture(sizes, 0, self._mixture.weights).draws(0, min(sum(sizes), HELD_OUT_WINDOWS))
        yield from self._in_pieces(*drawn, held_out=True)

    def sample(self, most: int) -> Iterator[Batch]:
        """``most`` training pairs, drawn over all datasets: the same ones whatever the seed."""
        sizes = self._mixture.sizes
        yield from self._in_pieces(*Mixture(sizes, 0, self._mixture.weights).draws(0, min(sum(sizes), most)))

    def read(self, datasets: np.ndarray, numbers: np.ndarray, *, held_out: bool = False) -> Batch:
        """Pairs (B,) of datasets (B,), both by number."""
        found: dict[str, np.ndarray] = {}
        missing = np.zeros((len(numbers), 1), bool)
        for dataset, reader in enumerate(self._readers):
            place = np.flatnonzero(datasets == dataset)
            if not len(place):
                continue
            numbering = self._held_out if held_out else self.windows
            window = numbering[dataset].locate(numbers[place])
            values, absent = reader.read(*window)
            parts = {self._stream: values[_FRAMES]}
            if self._instructions:
                parts[STREAM] = self._instructions[dataset].read(*window, 1, values.get(STREAM))[:, 0]
            for name, part in parts.items():
                found.setdefault(name, np.empty((len(numbers), *part.shape[1:]), part.dtype))[place] = part
            missing[place, 0] = absent[_FRAMES].any(1)
        observation = {name: torch.from_numpy(value) for name, value in found.items()}
        return Batch(observation, torch.empty(len(numbers), 0, 0), torch.from_numpy(missing))

    def _in_pieces(self, datasets: np.ndarray, numbers: np.ndarray, *, held_out: bool = False) -> Iterator[Batch]:
        for first in range(0, len(numbers), self._batch_size):
            part = slice(first, first + self._batch_size)
            yield self.read(datasets[part], numbers[part], held_out=held_out)
