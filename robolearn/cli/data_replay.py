"""`robolearn data replay`: play the recorded actions of an episode in a world again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from robolearn.cli.parse import DatasetPath
from robolearn_data.schema import Observation, UserError

if TYPE_CHECKING:
    from robolearn_data.dataset import Dataset
    from robolearn_data.world import World


class ReplayError(UserError):
    """The episode does not fit the world."""


@dataclass(frozen=True)
class Replay:
    """Play the recorded actions of an episode in a world, open loop, and say how far the states depart from the record.

    The world begins at the episode's seed where its info has one, else at the first recorded state where the world can
    be set to it (pusht: at rest), else at its seed 0, which is said.
    """

    path: tyro.conf.Positional[DatasetPath]
    """The dataset: a folder, or a URL such as s3://bucket/name."""
    world: str
    """World to play in: pusht or lift."""
    episode: int = 0
    """Its number; negative counts from the last."""
    fast: bool = False
    """As fast as possible, not in real time."""
    video: Path | None = None
    """MP4 to write."""
    tolerance: float = 0.02
    """A component departs when it is off by this share of its recorded range (at least 1e-3 in its unit)."""


def replay(options: Replay) -> int:
    """play recorded actions in a world and compare the states"""
    import numpy as np

    from robolearn.evaluation.video import write_video
    from robolearn_data.dataset import Dataset
    from robolearn_data.statistics import component_name
    from robolearn_sim.worlds import WORLDS, make_world

    dataset = Dataset.open(options.path)
    rows = dataset.rows(options.episode)
    with closing(make_world(options.world, max_steps=rows.stop - rows.start + 1)) as world:
        streams = world.spec.schema.streams
        # "action_sent" is what was carried out where it differs from what is learned.
        name = "action_sent" if "action_sent" in dataset.schema.streams else "action"
        recorded = dataset.schema.streams.get(name)
        shared = [n for n in world.spec.schema.of_kind("state") if _shape(dataset, n) == streams[n].shape]
        if recorded is None or recorded.shape != streams["action"].shape or not shared:
            raise ReplayError(
                f"{options.path} does not fit {options.world}: it needs 'action' of {streams['action'].shape} and a "
                f"state stream of it ({', '.join(world.spec.schema.of_kind('state'))}); valid worlds: "
                + ", ".join(WORLDS)
            )
        actions = dataset.read(name, rows)
        states = {n: dataset.read(n, rows).astype(np.float64) for n in shared}
        observation, start = _begin(world, dataset, options.episode)
        frames = [world.render()] if options.video else []
        period = 1.0 / world.spec.schema.rate_hz
        begun = time.monotonic()
        reached = {n: [np.asarray(observation[n], np.float64)] for n in shared}
        best, success = 0.0, False
        for i, action in enumerate(actions):
            step = world.step(action)
            best, success = max(best, step.score), success or step.success
            if options.video:
                frames.append(world.render())
            if i + 1 < len(actions):
                for n in shared:
                    reached[n].append(np.asarray(step.observation[n], np.float64))
            if not options.fast:
                time.sleep(max(begun + (i + 1) * period - time.monotonic(), 0.0))
    print(
        f"{dataset.location}, episode {options.episode}: {len(actions)} steps of {name!r} in {options.world}, {start}"
    )
    for n in shared:
        stream = streams[n]
        off = np.abs(np.stack(reached[n]) - states[n])
        for i in stream.wraps:
            off[:, i] = np.minimum(off[:, i] % (2 * np.pi), 2 * np.pi - off[:, i] % (2 * np.pi))
        units = stream.unit.split(",")
        departs = []
        worst: dict[str, float] = {}
        for index in np.ndindex(stream.shape):
            at = (slice(None), *index)
            unit = (units[index[-1]] if index and len(units) == stream.shape[-1] else stream.unit).removeprefix("1")
            worst[unit] = max(worst.get(unit, 0.0), float(off[at].max()))
            wrong = off[at] > max(options.tolerance * float(np.ptp(states[n][at])), 1e-3)
            if wrong.any():
                label = component_name(n, stream, index)
                departs.append(
                    f"{label} departs from step {int(np.argmax(wrong))} on, {off[at][-1]:.3g} {unit} at the end"
                )
        if not departs:
            most = ", ".join(f"{value:.3g} {unit}".rstrip() for unit, value in worst.items())
            exact = "bit for bit" if not any(worst.values()) else f"at most {most} off"
            print(f"  {n}: all {stream.size} components follow the record, {exact}")
        for line in departs:
            print(f"  {line}")
    noted = dataset.episode_info(options.episode).get("success")
    noted = f"; recorded as a {'success' if noted else 'failure'}" if isinstance(noted, bool) else ""
    print(f"best score {best:.3f}, {'success' if success else 'no success'}{noted}")
    if options.video:
        write_video(options.video, frames, world.spec.schema.rate_hz)
        print(f"{options.video}: {len(frames)} frames")
    return 0


def _begin(world: World, dataset: Dataset, episode: int) -> tuple[Observation, str]:
    info = dataset.episode_info(episode)
    seed = info.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and info.get("world") == world.spec.name:
        return world.reset(seed), f"from its seed {seed}"
    restore = getattr(world, "restore", None)
    if restore is not None:
        first = dataset.read("state", slice(dataset.rows(episode).start, dataset.rows(episode).start + 1))[0]
        return restore(first), "from its first state, at rest"
    return world.reset(0), "from seed 0: the episode holds no start that this world can be set to, expect it to depart"


def _shape(dataset: Dataset, name: str) -> tuple[int, ...] | None:
    stream = dataset.schema.streams.get(name)
    return None if stream is None else stream.shape


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"replay": (Replay, replay)}
