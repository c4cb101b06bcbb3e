"""`robolearn collect --teleop scripted`: a program that solves a simulated world demonstrates."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from robolearn.cli.collect import CollectError
from robolearn.cli.parse import stderr_line
from robolearn.cli.progress import attempts_bar

if TYPE_CHECKING:
    from robolearn.cli.collect import Collect
    from robolearn_data.schema import Schema
    from robolearn_data.writer import DatasetWriter


def collect_scripted(options: Collect) -> int:
    """Record demonstrations that end in success; failed ones are done again. Returns the exit code."""
    from robolearn_data import journal
    from robolearn_data.dataset import Dataset
    from robolearn_sim.demonstrations import demonstration_schema, demonstrations
    from robolearn_sim.experts import make_expert

    for name, least in (("episodes", 1), ("seed", 0), ("noise", 0), ("workers", 1)):
        if not getattr(options, name) >= least:
            raise CollectError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    world = options.world or "lift"
    make_expert(world)
    world_options = {"images": True} if options.images else {}
    schema = demonstration_schema(world, world_options)
    how = {"world": world, "teleop": "scripted", "seed": options.seed, "noise": options.noise}

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
            world,
            world_options,
            first_seed=seed,
            noise=options.noise,
            workers=min(options.workers, options.episodes),
        )
        with closing(attempts), attempts_bar("recording", options.episodes) as show:
            while writer.episodes < options.episodes:
                demonstration = next(attempts)
                if demonstration.success:
                    # Simulated time: ticks are exactly one control period apart, counted from the moment of saving.
                    ticks = [round(i * 1e9 / schema.rate_hz) for i in range(len(demonstration.streams["action"]))]
                    start = time.monotonic_ns()
                    writer.extend(demonstration.streams, time_ns=[start + tick for tick in ticks])
                    task = demonstration.task or world
                    writer.save_episode({**how, "task": task, "success": True, "seed": demonstration.seed})
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
    return 0


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
