"""`robolearn deploy CHECKPOINT --world lift --seconds 30`: runs a policy against a world in real time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from robolearn.cli.parse import stderr_line
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn_deploy.log import Measurements
    from robolearn_deploy.runtime import Processes


@dataclass(frozen=True)
class Deploy:
    """Run a checkpoint against a world in real time, and say how well the clock was kept.

    The policy runs in one process, the world in another that never waits for it: at each tick of the control rate it
    carries out the action whose time has come, and holds still when there is none. Ctrl-C ends the run in order.
    The exit code is 1 when a process failed on the way.
    """

    checkpoint: Positional[Path]
    """A checkpoint folder, or the folder of a training run (then its newest checkpoint)."""
    world: str
    """Where to run it: pusht, lift."""
    seconds: float = 30.0
    """How long."""
    episodes: int | None = None
    """Stop after this many episodes too. A new one begins whenever the world says that the last is over."""
    out: Path | None = None
    """Record what happens as a dataset here, one episode for each of the world's."""
    seed: int = 0
    """Start of the first episode; the next ones follow. Also seeds the policy's noise."""
    steps: int | None = None
    """Denoising or integration steps of the sampler; by default those the policy was configured with."""
    sampler: Literal["ddim", "ddpm"] | None = None
    """For a diffusion policy: ddim (few steps) or ddpm (all of them)."""
    replan: int | None = None
    """Control steps between the observations of two chunks. 1 replans as fast as it can; by default the number of
    actions the policy was configured to carry out of each chunk."""
    device: str = "cpu"
    """Where the policy runs: cpu, cuda."""
    json: Path | None = None
    """Write the summary to this file too."""


def run(options: Deploy) -> int:
    """Run a checkpoint against a world in real time."""
    _check(options)
    from robolearn.policies.checkpoint import load_spec, resolve_checkpoint
    from robolearn_deploy.local_policy import LocalPolicy
    from robolearn_deploy.runtime import RunOptions
    from robolearn_deploy.runtime import run as run_policy
    from robolearn_sim.worlds import make_world, world_spec

    checkpoint = resolve_checkpoint(options.checkpoint)
    policy_spec = load_spec(checkpoint)
    observes_images = any(s.kind == "image" for s in policy_spec.observation.values())
    world_options = {"images": True} if observes_images else {}
    world = world_spec(options.world, **world_options)
    policy_spec.check_fits(world.schema, f"world {options.world}")
    metadata = {"source": "robolearn deploy", "world": options.world, "checkpoint": str(options.checkpoint)}
    with _Bar(options.seconds) as watcher:
        report = run_policy(
            functools.partial(make_world, options.world, **world_options),
            world,
            functools.partial(
                LocalPolicy,
                checkpoint,
                steps=options.steps,
                sampler=options.sampler,
                seed=options.seed,
                device=options.device,
            ),
            policy_spec,
            RunOptions(
                seconds=options.seconds,
                episodes=options.episodes,
                seed=options.seed,
                replan_steps=options.replan,
                relative=world.schema.stream("action").relative,
                out=options.out,
                metadata=metadata,
            ),
            watcher,
        )
    print(report)
    if options.out is not None:
        print(f"saved     {options.out}   look at it with: robolearn data info {options.out}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"checkpoint": str(checkpoint), **report.to_json()}, indent=1) + "\n")
    if report.failure:
        stderr_line(f"error: {report.failure}")
        return 1
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Deploy, run)}


def _check(options: Deploy) -> None:
    if not 0 < options.seconds < float("inf"):
        raise UserError(f"--seconds {options.seconds:g} is not possible; give a positive number")
    for name, least in (("episodes", 1), ("seed", 0), ("steps", 1), ("replan", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} is too small; give {least} or more")


class _Bar:
    """A progress bar of the run's time, with what the control loop is doing. Fulfils robolearn_deploy's Watcher."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), TimeRemainingColumn())
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, TextColumn("{task.description}"), console=self._console)
        self._task = self._progress.add_task("starting policy and world", total=seconds)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def started(self, processes: Processes) -> None:
        pass

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        if measured.state is not None:
            solved = sum(e.success for e in measured.episodes)
            text = f"{measured.state.name}   {len(measured.episodes)} episodes, {solved} solved"
            self._progress.update(self._task, completed=elapsed_s, description=text)

    def message(self, text: str) -> None:
        self._console.print(f"robolearn: {text}", highlight=False)
