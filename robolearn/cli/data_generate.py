"""`robolearn data generate`: many demonstrations from few, in simulation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from robolearn.cli.parse import DatasetPath, UsageError, stderr_line
from robolearn.cli.progress import attempts_bar

if TYPE_CHECKING:
    from robolearn_data.dataset import Dataset
    from robolearn_data.schema import Schema
    from robolearn_data.writer import DatasetWriter
    from robolearn_sim.generate import Attempt, Source


@dataclass(frozen=True)
class Generate:
    """Make many demonstrations from few: the motion relative to each object is carried over to new starts.

    Demonstrations are cut where the tool's relation to objects changes: reach and grasp, carry and place. For a new
    start, each segment is moved with its object; in simulation the tool goes to where the segment begins and follows
    it, disturbed by noise. Episodes that succeed are kept. The dataset has the streams of `robolearn collect --teleop
    scripted`: `robolearn data merge` joins the two. Ctrl-C or a kill lose at most the episode in flight.
    """

    source: tyro.conf.Positional[DatasetPath]
    """Demonstrations recorded in a simulated world, each from a seed."""
    out: tyro.conf.Positional[DatasetPath]
    """Dataset to make."""
    world: str | None = None
    """Where OUT is made: lift, can, square, stack, door, so101_tabletop; by default the world that SOURCE was recorded
    in. A variant of that world has other starts: lift/wide."""
    task: str | None = None
    """Which of its tasks, where the world has several: "put the red cube on the plate"."""
    episodes: int = 200
    """Episodes the dataset shall hold in the end."""
    seed: int = 10_000
    """Seed of the first start; each following attempt takes the next number. The result depends on it alone, not on the
    number of workers. Recordings begin at 0, evaluations at 100000."""
    noise: float = 0.005
    """Standard deviation of the disturbance of the tool at each step, m; it turns by 3 rad for each metre. The action
    learned is the undisturbed one. 0 for none."""
    corrections: float = 0.0
    """Part of the segments, 0 to 1, in which the tool is once pushed aside by 2.5 to 5 cm, and comes back."""
    nearest: int = 3
    """Draw each segment's source from so many that need the least change, because object and tool were where they are
    now; 0: from all."""
    mirror: bool = False
    """Use the mirror images of the demonstrations too, where the world looks the same in a mirror: lift, stack."""
    images: bool = False
    """Record the camera too."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that simulate at the same time."""
    resume: bool = False
    """Go on with OUT, which the same command began."""


def generate(options: Generate) -> int | None:
    """make many demonstrations from few by carrying their segments over to new starts"""
    import numpy as np

    from robolearn_data.dataset import Dataset
    from robolearn_sim.demonstrations import demonstration_schema
    from robolearn_sim.generate import Recipe, attempts, check_world
    from robolearn_sim.worlds import world_spec

    _check(options)
    recipe = Recipe(options.noise, options.corrections, options.nearest)
    source = Dataset.open(options.source)
    recorded = source.metadata.get("world") or (source.episodes and source.episode_info(0).get("world"))
    world = options.world or recorded
    if not isinstance(world, str):
        raise UsageError(f"{options.source} does not say which world it was recorded in; name it with --world")
    recorded = recorded or world
    check_world(world, recorded)
    world_options: dict[str, Any] = {"task": options.task} if options.task else {}
    world_spec(world, **world_options)
    sources = _read_sources(options, recorded, world_options, source)
    how = {"world": world, "generated_from": source.fingerprint(), "seed": options.seed, **asdict(recipe)}
    how |= {"mirror": options.mirror, **world_options}
    # A person takes his time, and so will what follows him.
    longest = int(np.diff(source.episode_ends, prepend=0).max())
    world_options["max_steps"] = max(world_spec(world, **world_options).max_steps, 2 * longest)
    world_options |= {"images": True} if options.images else {}
    schema = demonstration_schema(world, world_options)

    saved = failed = 0
    with _open(options, schema, how) as writer:
        published = Dataset.open(options.out)
        first = published.episode_info(published.episodes - 1)["seed"] + 1 if published.episodes else options.seed
        begun = time.monotonic()
        running = attempts(
            world,
            world_options,
            sources,
            recipe,
            first_seed=first,
            workers=min(options.workers, options.episodes),
        )
        with closing(running), attempts_bar("generating", options.episodes) as show:
            while writer.episodes < options.episodes:
                attempt = next(running)
                if attempt.success:
                    _save(writer, attempt, how)
                    saved += 1
                else:
                    failed += 1
                    if failed > 30 + 19 * saved:
                        raise UsageError(
                            f"{failed} of {saved + failed} attempts failed; lower --noise (now {options.noise:g}), "
                            "or add demonstrations of other starts"
                        )
                show(writer.episodes, saved, failed)
        took = time.monotonic() - begun
        rate = f", {saved / (saved + failed):.0%} of the attempts" if saved + failed else ""
        print(
            f"{options.out}: {writer.episodes} episodes, {writer.steps} steps; saved {saved} and discarded {failed} "
            f"failed attempts{rate} in {took:.1f} s"
        )
    return None


def _check(options: Generate) -> None:
    for name, least in (("episodes", 1), ("seed", 0), ("nearest", 0), ("workers", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    if not (math.isfinite(options.noise) and options.noise >= 0):
        raise UsageError(f"--noise must be a length in m, 0 or more, not {options.noise}")
    if not 0 <= options.corrections <= 1:
        raise UsageError(f"--corrections must be from 0 to 1, not {options.corrections}")


def _read_sources(options: Generate, name: str, world_options: dict[str, Any], dataset: Dataset) -> list[Source]:
    """The source's episodes in segments; says on standard error which could not be used."""
    from robolearn_sim.generate import manipulation_world, sources_from

    with closing(manipulation_world(name, **world_options)) as world:
        sources, faults = sources_from(world, dataset, mirror=options.mirror)
    for fault in faults:
        stderr_line(f"left out: {fault}")
    return sources


def _open(options: Generate, schema: Schema, how: dict[str, Any]) -> DatasetWriter:
    from robolearn_data.dataset import Dataset
    from robolearn_data.writer import DatasetWriter

    # No journal: an episode is written at once, and one that is lost can be generated again.
    if not options.resume:
        return DatasetWriter.create(options.out, schema, metadata=how, durable=False)
    before = Dataset.open(options.out)
    if before.metadata != how or before.schema != schema:
        begun = ", ".join(f"{k} {v}" for k, v in before.metadata.items())
        raise UsageError(f"{options.out} was begun with other options ({begun}); give the same ones or another path")
    return DatasetWriter.append(options.out, durable=False)


def _save(writer: DatasetWriter, attempt: Attempt, how: dict[str, Any]) -> None:
    # Simulated time: ticks are exactly one control period apart, counted from the moment of saving.
    start = time.monotonic_ns()
    ticks = [start + round(i * 1e9 / writer.schema.rate_hz) for i in range(len(attempt.streams["action"]))]
    writer.extend(attempt.streams, time_ns=ticks)
    writer.save_episode(
        {
            **how,
            "task": how.get("task", how["world"]),
            "success": True,
            "seed": attempt.seed,
            "source_episodes": [episode for episode, _ in attempt.sources],
            "mirrored": [mirrored for _, mirrored in attempt.sources],
            "pushes": attempt.pushes,
        }
    )


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"generate": (Generate, generate)}
