"""Videos of episodes: H.264 in MP4, small, and playable by every browser."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from robolearn.evaluation.lockstep import Rollout, WorldFactory, one_thread
from robolearn.evaluation.lockstep import rollout as lockstep_rollout
from robolearn.evaluation.results import EpisodeResult
from robolearn.policies.policy import Policy
from robolearn_data.schema import Observation
from robolearn_data.world import FastWorld, Instant, Step, World

SHORTEST_SIDE_PX = 256
"""Smaller pictures are enlarged by a whole number, so that a person can see them."""


def write_video(path: Path, frames: list[np.ndarray], rate_hz: float) -> None:
    """Write ``frames``, each (H, W, 3) uint8, at ``rate_hz``.

    Raises:
        ValueError: no frames.
        OSError: the file cannot be written.
    """
    if not frames:
        raise ValueError("a video needs at least one frame")
    height, width = frames[0].shape[:2]
    scale = -(-SHORTEST_SIDE_PX // min(height, width))
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        # H.264 stores colour at half size: both sides must be even.
        stream.width, stream.height = width * scale // 2 * 2, height * scale // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast"}
        for frame in frames:
            large = frame.repeat(scale, axis=0).repeat(scale, axis=1)[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")))
        container.mux(stream.encode())


class _FilmedWorld:
    """A world that keeps a picture of every step."""

    def __init__(self, world: World) -> None:
        self._world, self.spec = world, world.spec
        self.frames: list[np.ndarray] = []

    def reset(self, seed: int) -> Observation:
        observation = self._world.reset(seed)
        self.frames = [self._world.render()]
        return observation

    def step(self, action: np.ndarray) -> Step:
        step = self._world.step(action)
        self.frames.append(self._world.render())
        return step

    def render(self) -> np.ndarray:
        return self.frames[-1]

    def close(self) -> None:
        self._world.close()


class _FilmedFastWorld(_FilmedWorld):
    """The same of a ``FastWorld``."""

    def __init__(self, world: FastWorld) -> None:
        super().__init__(world)
        self._fast, self.fast_steps = world, world.fast_steps

    @property
    def commanded(self) -> np.ndarray:
        return self._fast.commanded

    def advance(self, target: np.ndarray) -> Instant:
        return self._fast.advance(target)

    def finish(self) -> Step:
        step = self._fast.finish()
        self.frames.append(self._world.render())
        return step


def film(
    policy: Policy,
    make_world: WorldFactory,
    seed: int,
    path: Path,
    *,
    steps: int | None = None,
    rollout: Rollout = lockstep_rollout,
) -> EpisodeResult:
    """Run the episode ``seed`` again by itself, write its video to ``path`` and return how this run went.

    Close to its run in a batch but not always equal: rounding differs with the batch, see ``lockstep.rollout``.
    """
    made = make_world()
    world = _FilmedFastWorld(made) if isinstance(made, FastWorld) else _FilmedWorld(made)
    with one_thread():
        (result,) = rollout(policy, lambda: world, [seed], worlds=1, steps=steps)
    frames = world.frames + world.frames[-1:] * round(world.spec.schema.rate_hz)  # Hold the end for a second.
    write_video(path, frames, world.spec.schema.rate_hz)
    return result
