"""Training batches: windows of one or several datasets, in an order that depends on nothing but the seed and the step.

A row without an action of its own (a hole) counts as padding: it is not learned.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from robolearn.policies.contracts import Batch
from robolearn.policies.goals import goal_key
from robolearn.policies.reactive.readings import fast_key, fast_views
from robolearn.policies.spec import PolicySpec
from robolearn.training.config import Images
from robolearn.training.instructions import Instructions
from robolearn.training.sources import Source
from robolearn_data.mixture import Mixture
from robolearn_data.reading import ImagePlace, View, WindowReader, image_bytes
from robolearn_data.schema import Stream
from robolearn_data.windows import windows

HELD_OUT_WINDOWS = 1024
"""The most windows of held-out episodes on which the loss is computed."""

_MEMORY_PART = 0.25
"""Of the free memory, what pictures may take before they are read from disk."""


class Batches(Protocol):
    """What the loop asks for batches."""

    def coming(self, first: int, last: int, workers: int) -> AbstractContextManager[Iterator[Batch]]:
        """The batches of steps ``[first, last)``, made ahead by ``workers`` threads; 0: when they are asked for."""
        ...

    def held_out(self) -> Iterator[Batch]:
        """Windows of the held-out episodes, the same ones each time; none where none are held out."""
        ...


class WindowBatches:
    """Batches of windows around every control step of the training episodes that has enough actions after it."""

    def __init__(
        self,
        sources: Sequence[Source],
        spec: PolicySpec,
        *,
        batch_size: int,
        seed: int,
        weights: tuple[float, ...] = (),
        pad_after: int | None = None,
        goal_within: int | None = None,
        images: Images = "auto",
        rank: int = 0,
        processes: int = 1,
        talk: bool = False,
    ) -> None:
        """
        Args:
            batch_size: windows in a step of all processes together.
            weights: how often each dataset is drawn, whatever its size; empty: as often as it has windows.
            pad_after: how many actions of a window may lie beyond its episode's end; None for action_horizon - 1.
            goal_within: most control steps from an observation to its goal; None for the episode's end.
            images: where pictures are; auto: in memory if they take a modest part of what is free.
            rank: which share of each batch is this process's.
            talk: show a bar while data is loaded.

        Raises:
            UserError: weights that do not fit the datasets, or data that cannot be read.
        """
        self._spec = spec
        self.batch_size = batch_size
        self._share = (rank, processes)
        reach = (spec.horizon, spec.start, spec.action_horizon - 1 if pad_after is None else pad_after)
        self.windows = [windows(s.dataset.episode_ends, *reach, episodes=s.train) for s in sources]
        self._held_out = [windows(s.dataset.episode_ends, *reach, episodes=s.held_out) for s in sources]
        self.mixture = Mixture(tuple(map(len, self.windows)), seed, weights)
        views = [_views(spec, source) for source in sources]
        self._present = [tuple(part) for part in views]
        goals = {goal_key(name): View(name, 1) for name in spec.goal}
        views = [{**part, **goals} for part in views]
        self._seed, self._goal_within = seed, goal_within
        self._lengths = [np.diff(s.dataset.episode_ends, prepend=0) for s in sources]
        self._readers = readers(sources, views, images, talk)
        said = spec.observation.get("instruction")
        self._instructions = [
            Instructions(source.dataset, said) if said is not None and said.kind == "text" else None
            for source in sources
        ]

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of training step ``step``."""
        return self.read(*self._drawn(step))

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dataset, number and place of the goal of each window of this process's share."""
        datasets, numbers = self.mixture.batch(step, self.batch_size, *self._share)
        rank, processes = self._share
        size = self.batch_size // processes
        ahead = np.random.default_rng([self._seed, step]).random(self.batch_size)
        return datasets, numbers, ahead[rank * size : (rank + 1) * size]

    def coming(self, first: int, last: int, workers: int) -> AbstractContextManager[Iterator[Batch]]:
        """See ``Batches``."""
        # The order is found before: a mixture is not made for several threads.
        return made_ahead(lambda step: functools.partial(self.read, *self._drawn(step)), range(first, last), workers)

    def held_out(self) -> Iterator[Batch]:
        """Windows of the held-out episodes, the same ones each time; none where none are held out."""
        sizes = tuple(map(len, self._held_out))
        if not all(sizes):
            return
        datasets, numbers = Mixture(sizes, 0, self.mixture.weights).draws(0, min(sum(sizes), HELD_OUT_WINDOWS))
        ahead = np.random.default_rng(0).random(len(numbers))
        for first in range(0, len(numbers), self.batch_size):
            part = slice(first, first + self.batch_size)
            yield self.read(datasets[part], numbers[part], ahead[part], held_out=True)

    def all(self) -> Iterator[Batch]:
        """Every training window once, in order; their goals are the ends of their episodes."""
        for dataset, windows_ in enumerate(self.windows):
            for first in range(0, len(windows_), self.batch_size):
                numbers = np.arange(first, min(first + self.batch_size, len(windows_)))
                yield self.read(np.full(len(numbers), dataset), numbers)

    def read(
        self, datasets: np.ndarray, numbers: np.ndarray, ahead: np.ndarray | None = None, *, held_out: bool = False
    ) -> Batch:
        """Windows (B,) of datasets (B,), both by number; ``ahead`` (B,) in [0, 1): where their goals lie, from the next
        step to the last one, which they are by default."""
        ahead = np.full(len(numbers), np.nextafter(1, 0)) if ahead is None else ahead
        places = [np.flatnonzero(datasets == dataset) for dataset in range(len(self._readers))]
        found = [
            self._of_dataset(i, numbers[place], ahead[place], held_out) for i, place in enumerate(places) if len(place)
        ]
        if len(found) == 1:
            return found[0]
        order = torch.from_numpy(np.argsort(np.concatenate(places)))
        return Batch(
            observation={name: torch.cat([b.observation[name] for b in found])[order] for name in found[0].observation},
            action=torch.cat([b.action for b in found])[order],
            is_pad=torch.cat([b.is_pad for b in found])[order],
        )

    def _of_dataset(self, dataset: int, numbers: np.ndarray, ahead: np.ndarray, held_out: bool) -> Batch:
        numbering = self._held_out if held_out else self.windows
        episode, step = numbering[dataset].locate(numbers)
        values, missing = self._readers[dataset].read(episode, step, self._present[dataset])
        action = values.pop("action")
        streams = dict(self._spec.observation)
        if self._spec.fast:
            streams |= {fast_key(name): stream for name, stream in self._spec.fast.observation.items()}
        if (instructions := self._instructions[dataset]) is not None:
            said = values.get("instruction")
            values["instruction"] = instructions.read(episode, step, self._spec.obs_horizon, said)
        if self._spec.goal:
            rest = self._lengths[dataset][episode] - 1 - step
            rest = rest if self._goal_within is None else np.minimum(rest, self._goal_within)
            later = step + np.minimum(1 + np.floor(ahead * rest).astype(np.int64), rest)
            streams |= {goal_key(name): stream for name, stream in self._spec.goal.items()}
            values |= self._readers[dataset].read(episode, later, [goal_key(n) for n in self._spec.goal])[0]
        return Batch(
            observation={name: _tensor(value, streams[name]) for name, value in values.items()},
            action=_tensor(action.reshape(*action.shape[:2], -1), self._spec.action),
            is_pad=torch.from_numpy(missing["action"]),
        )


@contextmanager
def made_ahead(begun: Callable[[int], Callable[[], Batch]], steps: range, workers: int) -> Iterator[Iterator[Batch]]:
    """The batches of ``steps``: ``begun(step)`` is asked in order, what it returns in a thread of ``workers``.

    Threads, not processes: decoders and disks leave the interpreter to others, and nothing needs to be copied. What
    goes wrong in a thread is raised where its batch is asked for. Without workers it is all done when it is asked for.
    """
    if not workers:
        yield (begun(step)() for step in steps)
        return
    pool = ThreadPoolExecutor(workers, "batches")
    try:
        yield _under_way(pool, begun, steps, 2 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _under_way(
    pool: ThreadPoolExecutor, begun: Callable[[int], Callable[[], Batch]], steps: range, most: int
) -> Iterator[Batch]:
    under_way: deque[Future[Batch]] = deque()
    for step in steps:
        under_way.append(pool.submit(begun(step)))
        if len(under_way) == most:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        observation={name: value.to(device, non_blocking=True) for name, value in batch.observation.items()},
        action=batch.action.to(device, non_blocking=True),
        is_pad=batch.is_pad.to(device, non_blocking=True),
    )


def _tensor(values: np.ndarray, stream: Stream) -> Tensor:
    """Pictures and texts as they are (uint8), everything else as float32."""
    return torch.from_numpy(values if stream.kind in ("image", "text") else values.astype(np.float32, copy=False))


def _views(spec: PolicySpec, source: Source) -> dict[str, View]:
    """What is read of a dataset's streams. Instructions are none of them where only tasks are noted."""
    texts = {name for name, stream in spec.observation.items() if stream.kind == "text"}
    absent = texts - set(source.dataset.schema.streams)
    views = {name: View(name, spec.obs_horizon) for name in spec.observation if name not in absent}
    return {**views, **fast_views(spec), "action": View("action", spec.horizon, ahead=spec.horizon - spec.obs_horizon)}


def readers(
    sources: Sequence[Source], views: Sequence[Mapping[str, View]], images: Images, talk: bool
) -> list[WindowReader]:
    """One for each dataset. ``images``, ``talk``: see ``WindowBatches``."""
    if images == "auto":
        needed = sum(image_bytes(source.dataset, part) for source, part in zip(sources, views, strict=True))
        images = place_of_images(needed, free_bytes())
    return [_reader(source, part, images, talk) for source, part in zip(sources, views, strict=True)]


def _reader(source: Source, views: Mapping[str, View], images: ImagePlace, talk: bool) -> WindowReader:
    with Progress(transient=True, disable=not (talk and sys.stdout.isatty())) as bar:
        task = bar.add_task(f"load {source.dataset.location.name}", total=None)
        return WindowReader(
            source.dataset,
            views,
            images=images,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def place_of_images(needed: int, free: int) -> ImagePlace:
    """Where pictures of ``needed`` bytes belong when ``free`` bytes of memory are left."""
    needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun: each process holds its own
    return "memory" if needed <= _MEMORY_PART * free else "disk"


def free_bytes() -> int:
    """Memory that new data can have without swapping, as Linux says; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # a container's limit
    except (OSError, ValueError):
        return free
