"""Many demonstrations from few: segments of recorded ones, carried over to new starts and carried out in simulation.

``sources_from`` goes through the recorded episodes again and cuts them (``generate_segments``), ``attempt`` tries a new
start with their segments, and ``attempts`` does so in processes. What succeeds is a demonstration.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.schema import UserError
from robolearn_sim.generate_segments import Source, Trace, Traits, choose, fit, sources_of, way_between
from robolearn_sim.manipulation import ManipulationWorld, pose_of, rotation, rotation_of
from robolearn_sim.workers import in_order
from robolearn_sim.worlds import WORLDS, make_world

TRAITS: dict[str, Traits] = {
    "lift": Traits({"cube": 4}, tool=2, mirror=True),
    "can": Traits({"can": 0}, tool=2),
    "square": Traits({"peg": 4}, tool=2),
    "stack": Traits({"red": 4, "green": 4}, tool=2, mirror=True),
    "door": Traits(tool=2),
    "so101_tabletop": Traits({"red": 4, "green": 4, "blue": 4, "plate": 0}, closed=0.0, open=1.0),
}
"""World -> what must be known of it, in all of its variants."""

SPEED_M_S, SPEED_RAD_S = 0.4, 2.0
"""Of the tool on its way to a segment."""
NOISE_RAD_M = 3.0
"""Rotation that goes with a disturbance of the position, rad for a metre."""
WAIT_S = 0.5
"""How long the last pose is held, for the world to see that it is solved."""
PUSH_M, PUSH_STEPS = 0.05, 4
"""A push displaces the tool's target by this much, at least half of it, for so many steps."""
SAME = 1e-3
"""Largest difference between the states recorded and gone through again."""


class GenerateError(UserError):
    """Demonstrations cannot be generated from this dataset in this world."""


@dataclass(frozen=True)
class Recipe:
    """How demonstrations are generated."""

    noise_m: float = 0.005
    """Standard deviation of the disturbance of the tool's position at each step; it turns by ``NOISE_RAD_M`` times it.
    The action learned is the undisturbed one."""
    corrections: float = 0.0
    """Part of the segments in which the tool is pushed aside once and comes back to where it was."""
    nearest: int = 3
    """Draw a segment's source from so many that need the least change; 0: from all."""


@dataclass(frozen=True)
class Attempt:
    seed: int
    streams: dict[str, np.ndarray]
    """Stream -> (T, *shape), as of ``demonstrations.Demonstration``."""
    success: bool
    sources: tuple[tuple[int, bool], ...]
    """For each segment: the episode that it comes from, and whether its mirror image was followed."""
    pushes: int
    """How often the tool was pushed aside."""


def check_world(name: str, recorded: str) -> None:
    """That demonstrations recorded in the world ``recorded`` can become ones in the world ``name``.

    Raises:
        GenerateError: it has no tool and objects, or is another world and no variant.
    """
    base, original = name.partition("/")[0], recorded.partition("/")[0]
    if base in WORLDS and base not in TRAITS:
        raise GenerateError(f"the world {name!r} has no tool that picks up objects; valid: {', '.join(TRAITS)}")
    if base in WORLDS and base != original:
        raise GenerateError(f"these demonstrations were recorded in the world {recorded!r}; {name!r} is another")


def manipulation_world(name: str, **options: Any) -> ManipulationWorld:
    """Start the world ``name``, as ``make_world``.

    Raises:
        WorldError: as of ``make_world``.
    """
    return cast(ManipulationWorld, make_world(name, **options))


def traits_of(world: ManipulationWorld) -> Traits:
    return TRAITS[world.spec.name.partition("/")[0]]


def trace_of(world: ManipulationWorld, dataset: Dataset, episode: int) -> Trace:
    """Go through a recorded episode again, from its seed with the actions that were carried out.

    Raises:
        GenerateError: no seed is noted, or the world goes elsewhere than it did.
    """
    info = dataset.episode_info(episode)
    if not isinstance(info.get("seed"), int):
        raise GenerateError(f"episode {episode} of {dataset.location} has no seed; record it in a simulated world")
    states = world.spec.schema.of_kind("state")
    names = [name for name in (*states, "action", "action_sent") if name in dataset.schema.streams]
    recorded = {name: dataset.read(name, dataset.rows(episode)) for name in names}
    meant = recorded["action"]
    sent = recorded.get("action_sent", meant)
    rows: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    observation = world.reset(info["seed"])
    for t in range(len(meant)):
        apart = max(float(np.abs(observation[name] - recorded[name][t]).max()) for name in states)
        if apart > SAME:
            raise GenerateError(
                f"episode {episode} of {dataset.location} cannot be gone through again: at step {t} the state differs "
                f"by {apart:.2g}; it was recorded in another version of the world, or its actions were changed"
            )
        rows.append((world.tool_pose(), world.target_of(meant[t]), world.objects()))
        observation = world.step(sent[t]).observation
    tool, target, objects = zip(*rows, strict=True)
    gripper, traits = meant[:, -1].astype(np.float64), traits_of(world)
    return Trace(
        np.stack(tool),
        np.stack(target),
        gripper,
        np.abs(gripper - traits.closed) < np.abs(gripper - traits.open),
        {name: np.stack([each[name] for each in objects]) for name in objects[0]},
    )


def sources_from(world: ManipulationWorld, dataset: Dataset, *, mirror: bool) -> tuple[list[Source], list[str]]:
    """The segments of all episodes of ``dataset`` that did not fail, and why others cannot be used, a line each.

    Raises:
        GenerateError: streams that are not the world's, a mirror where the world has none, or nothing that can be used.
    """
    name = world.spec.name
    for stream in world.spec.schema.of_kind("state", "action"):
        if dataset.schema.streams.get(stream) != world.spec.schema.streams[stream]:
            raise GenerateError(
                f"the stream {stream!r} of {dataset.location} is not that of the world {name!r}; "
                "name the world that it was recorded in with --world"
            )
    if mirror and not traits_of(world).mirror:
        able = ", ".join(world for world, traits in TRAITS.items() if traits.mirror)
        raise GenerateError(f"the world {name!r} does not look the same in a mirror; --mirror is for {able}")
    found: list[Source] = []
    faults: list[str] = []
    for episode in range(dataset.episodes):
        if dataset.episode_info(episode).get("success") is False:
            continue
        try:
            found += sources_of(episode, trace_of(world, dataset, episode), mirror=mirror)
        except GenerateError as error:
            faults.append(str(error))
    if not found:
        raise GenerateError(faults[0] if faults else f"{dataset.location} has no episode that succeeded")
    return found, faults


def attempt(world: ManipulationWorld, sources: Sequence[Source], recipe: Recipe, seed: int) -> Attempt:
    """Solve the start ``seed`` with segments of ``sources``; determined by the arguments alone."""
    run = _Run(world, recipe, seed)
    course = sources[int(run.rng.integers(len(sources)))].course
    alike = [source for source in sources if source.course == course]
    used: list[tuple[int, bool]] = []
    for i in range(len(course)):
        objects, tool = world.objects(), world.tool_pose()
        fits = [fit(source.segments[i], objects, tool, traits_of(world)) for source in alike]
        chosen = choose([each.way for each in fits], recipe.nearest, run.rng)
        used.append((alike[chosen].episode, alike[chosen].mirrored))
        segment = alike[chosen].segments[i]
        run.follow(fits[chosen].poses(segment.target), segment.gripper)
    run.wait()
    return run.result(tuple(used))


class _Run:
    """An episode that is carried out, and what it recorded."""

    def __init__(self, world: ManipulationWorld, recipe: Recipe, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 2])  # apart from those of the start and of scripted experts
        self._world, self._recipe, self._seed = world, recipe, seed
        self._rate = world.spec.schema.rate_hz
        self._observation = world.reset(seed)
        self._rows: list[dict[str, np.ndarray]] = []
        self._done = self._success = False
        self._last = (world.tool_pose(), traits_of(world).open)
        self._pushes = 0

    def follow(self, targets: np.ndarray, gripper: np.ndarray) -> None:
        """Go to the first of the poses ``targets`` (T, 7), then along them, with ``gripper`` (T,)."""
        self._go(targets[0], gripper[0])
        push = int(self.rng.integers(len(targets)))
        pushed = self.rng.random() < self._recipe.corrections
        for t, (target, grip) in enumerate(zip(targets, gripper, strict=True)):
            if pushed and t == push:
                self._push(target, grip)
            self._step(target, grip)

    def wait(self) -> None:
        """Stay at the last pose until the world counts success, ``WAIT_S`` at most."""
        for _ in range(round(WAIT_S * self._rate)):
            self._step(*self._last)

    def result(self, sources: tuple[tuple[int, bool], ...]) -> Attempt:
        streams = {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        return Attempt(self._seed, streams, self._success, sources, self._pushes)

    def _go(self, pose: np.ndarray, grip: float) -> None:
        speeds = {"move_m": SPEED_M_S / self._rate, "turn_rad": SPEED_RAD_S / self._rate}
        for target in way_between(self._world.tool_pose(), pose, **speeds):
            self._step(target, grip)

    def _push(self, target: np.ndarray, grip: float) -> None:
        """Push the tool aside while the action learned says how to stay; then back to ``target``."""
        away = self.rng.standard_normal(3)
        away *= PUSH_M * self.rng.uniform(0.5, 1) / np.linalg.norm(away)
        self._pushes += 1
        for _ in range(PUSH_STEPS):
            self._step(target, grip, away)
        self._go(target, grip)

    def _step(self, target: np.ndarray, grip: float, away: np.ndarray | None = None) -> None:
        if self._done:
            return
        noise = self._recipe.noise_m * self.rng.standard_normal(6)
        shift = noise[:3] if away is None else away
        disturbed = pose_of(target[:3] + shift, rotation(NOISE_RAD_M * noise[3:]) @ rotation_of(target))
        world = self._world
        action = world.action_towards(target, grip).astype(np.float32)
        sent = world.action_towards(disturbed, grip).astype(np.float32)
        self._rows.append({**self._observation, "action": action, "action_sent": sent})
        step = world.step(sent)
        self._observation, self._done, self._success = step.observation, step.done, step.success
        self._last = (target, grip)


def attempts(
    world: str, options: Mapping[str, Any], sources: Sequence[Source], recipe: Recipe, *, first_seed: int, workers: int
) -> Generator[Attempt, None, None]:
    """Attempts at the seeds ``first_seed``, ``first_seed + 1``, ... in this order, without end. Close the iterator to
    stop the processes."""
    arguments = (world, dict(options), list(sources), recipe)
    return in_order(_work, first_seed=first_seed, workers=workers, begin=_begin, arguments=arguments)


_job: tuple[ManipulationWorld, list[Source], Recipe] | None = None
"""In a worker process: the world it started and what it follows."""


def _begin(world: str, options: dict[str, Any], sources: list[Source], recipe: Recipe) -> None:
    global _job
    _job = manipulation_world(world, **options), sources, recipe


def _work(seed: int) -> Attempt:
    assert _job is not None  # set by the pool's initializer
    return attempt(*_job, seed)
