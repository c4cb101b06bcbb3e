"""`robolearn collect`: record demonstrations into a dataset."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from robolearn.cli.parse import stderr_line
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn_data.schema import Schema
    from robolearn_data.writer import DatasetWriter


class CollectError(UserError):
    """Demonstrations cannot be recorded as asked."""


@dataclass(frozen=True)
class Collect:
    """Record demonstrations into a dataset. Only episodes that end in success are kept; failed ones are done again.

    The dataset is whole at every moment: Ctrl-C, a kill or a full disk lose at most the episode in flight, and the same
    command with --resume goes on from there.
    """

    out: tyro.conf.Positional[Path]
    """Dataset to write, for example lift.zarr."""
    world: str = "lift"
    """Simulated world to act in."""
    teleop: Literal["scripted"] = "scripted"
    """Who demonstrates: scripted is a program that solves the world."""
    episodes: int = 100
    """Episodes the dataset shall hold in the end."""
    seed: int = 0
    """Seed of the first attempt; each following attempt takes the next number. The result depends on it alone, not on
    the number of workers."""
    noise: float = 0.2
    """Standard deviation of the disturbance added to the actions carried out, so that the demonstrations show how to
    come back; the action learned is the undisturbed one. 0 for none."""
    images: bool = False
    """Record the camera too."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that simulate at the same time."""
    resume: bool = False
    """Go on with OUT, which the same command began."""


def run(options: Collect) -> int | None:
    """Record demonstrations into a dataset."""
    from robolearn_data import journal
    from robolearn_data.dataset import Dataset
    from robolearn_sim.demonstrations import demonstration_schema, demonstrations
    from robolearn_sim.experts import make_expert

    for name, least in (("episodes", 1), ("seed", 0), ("noise", 0), ("workers", 1)):
        if not getattr(options, name) >= least:
            raise CollectError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    make_expert(options.world)
    world_options = {"images": True} if options.images else {}
    schema = demonstration_schema(options.world, world_options)
    how = {"world": options.world, "teleop": options.teleop, "seed": options.seed, "noise": options.noise}

    saved = discarded = 0
    with _open(options, schema, how) as writer:
        if journal.unfinished(options.out):
            stderr_line(
                "an earlier recording was stopped in the middle of an episode; "
                f"when this one is over, `robolearn data recover {options.out}` saves it"
            )
        before = Dataset.open(options.out)
        infos = (before.episode_info(i) for i in reversed(range(before.episodes)))
        # One that was recovered has no seed.
        seed = next((info["seed"] + 1 for info in infos if "seed" in info), options.seed)
        begun = time.monotonic()
        attempts = demonstrations(
            options.world,
            world_options,
            first_seed=seed,
            noise=options.noise,
            workers=min(options.workers, options.episodes),
        )
        with closing(attempts), _progress(options.episodes) as show:
            while writer.episodes < options.episodes:
                demonstration = next(attempts)
                if demonstration.success:
                    # Simulated time: ticks are exactly one control period apart, counted from the moment of saving.
                    ticks = [round(i * 1e9 / schema.rate_hz) for i in range(len(demonstration.streams["action"]))]
                    start = time.monotonic_ns()
                    writer.extend(demonstration.streams, time_ns=[start + tick for tick in ticks])
                    writer.save_episode({**how, "task": options.world, "success": True, "seed": demonstration.seed})
                    saved += 1
                else:
                    discarded += 1
                    if discarded > 10 + 9 * saved:
                        raise CollectError(
                            f"{discarded} of {saved + discarded} attempts failed; lower --noise (now {options.noise})"
                        )
                show(writer.episodes, saved, discarded)
        minutes = (time.monotonic() - begun) / 60
        print(
            f"{options.out}: {writer.episodes} episodes, {writer.steps} steps; saved {saved} and discarded {discarded} "
            f"failed attempts in {minutes * 60:.1f} s ({saved / minutes:.0f} a minute)"
        )
    return None


def _open(options: Collect, schema: Schema, how: dict[str, Any]) -> DatasetWriter:
    from robolearn_data.dataset import Dataset
    from robolearn_data.writer import DatasetWriter

    if not options.resume:
        return DatasetWriter.create(options.out, schema, metadata=how)
    before = Dataset.open(options.out)
    if before.metadata != how or before.schema != schema:
        begun = ", ".join(f"{k} {v}" for k, v in before.metadata.items())
        raise CollectError(f"{options.out} was begun with other options ({begun}); give the same ones or another path")
    return DatasetWriter.append(options.out)


@contextmanager
def _progress(episodes: int) -> Iterator[Callable[[int, int, int], None]]:
    """Yields a function that takes the episodes there are, those saved now and those discarded now."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("recording"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("starting the simulator", total=episodes)

        def show(done: int, saved: int, discarded: int) -> None:
            bar.update(task, completed=done, description=f"{saved} of {saved + discarded} attempts succeeded")

        yield show


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Collect, run)}
