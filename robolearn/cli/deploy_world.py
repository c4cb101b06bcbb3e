"""`robolearn deploy CHECKPOINT --world lift`: a policy against a simulated world, in real time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robolearn.cli.deploy_rig import KEYS
from robolearn.cli.keys import Keys, shown_key
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn.cli.deploy import Deploy, PolicySource
    from robolearn_data.world import WorldSpec
    from robolearn_deploy.log import Measurements
    from robolearn_deploy.operator import Operator
    from robolearn_deploy.report import Report
    from robolearn_deploy.runtime import Running
    from robolearn_deploy.world_people import PeopleOptions

_KEYS = "tb gerq"
"""Of the keys of a run on a rig, those that mean something in a world, where it says itself how an episode went."""


def run_in_world(options: Deploy, world_name: str, source: PolicySource) -> Report:
    """Run it; what is said about it at the end."""
    from robolearn_deploy.runtime import RunOptions
    from robolearn_deploy.runtime import run as run_policy
    from robolearn_sim.worlds import make_world, world_spec

    observes_images = any(s.kind == "image" for s in source.spec.observation.values())
    world_options: dict[str, Any] = {"images": True} if observes_images else {}
    world = world_spec(world_name, **world_options)
    make = functools.partial(make_world, world_name, **world_options)
    texts = {name for name, s in source.spec.observation.items() if s.kind == "text"} - world.schema.streams.keys()
    if texts and not options.instruction and not (options.teleop and options.page):
        raise UserError(
            f"the policy reads the text {min(texts)!r}, and the world {world_name} says nothing: tell it what to do "
            "with --instruction, or on a page with --teleop page"
        )
    with _people(options, world) as (people, typed), _Bar(options.seconds, typed) as watcher:
        run_options = RunOptions(
            seconds=options.seconds,
            episodes=options.episodes,
            seed=options.seed,
            scheduler=source.scheduler,
            replan_steps=options.replan,
            instruction=options.instruction,
            check_instruction=source.check,
            relative=world.schema.stream("action").relative,
            people=people,
            fast=source.fast,
            out=options.out,
            metadata={"source": "robolearn deploy", "world": world_name, **source.named},
        )
        return run_policy(make, world, source.make, source.spec, run_options, watcher)


@contextmanager
def _people(options: Deploy, world: WorldSpec) -> Iterator[tuple[PeopleOptions | None, Callable[[str], None]]]:
    """Those who may take over, and who is told what they type; nobody without --teleop."""
    if not options.teleop:
        yield None, lambda key: None
        return
    from robolearn.cli.collect_world import people_of
    from robolearn.cli.page import page_options

    with people_of(world, options.teleop, page_options(options) if options.page else None) as found:
        yield found


class _Bar:
    """A progress bar of the run's time, with what the control loop is doing; and keys, where a person may take over.
    Fulfils robolearn_deploy's Watcher."""

    def __init__(self, seconds: float, typed: Callable[[str], None]) -> None:
        """``typed`` is told the keys that are no commands."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), TimeRemainingColumn())
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, TextColumn("{task.description}", markup=False), console=self._console)
        self._task = self._progress.add_task("starting policy and world", total=seconds)

        self._keys, self._typed = Keys(), typed
        self._operator: Operator | None = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        self._keys.cooked()

    def started(self, running: Running) -> None:
        if running.operator is not None:
            self._operator = running.operator
            self._keys.__enter__()
            named = "   ".join(f"[b]{shown_key(key)}[/b] {KEYS[key][1]}" for key in _KEYS)
            self._console.print(named, highlight=False)

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        from robolearn_deploy.operator import Command

        while key := self._keys.pressed():
            if key not in _KEYS:
                self._typed(key)
            elif self._operator is not None:
                self._operator.tell(Command[KEYS[key][0]])
        if measured.state is not None:
            solved = sum(e.success for e in measured.episodes)
            text = f"{measured.state.name}   {len(measured.episodes)} episodes, {solved} solved"
            self._progress.update(self._task, completed=elapsed_s, description=text)

    def message(self, text: str) -> None:
        self._console.print(f"robolearn: {text}", highlight=False, markup=False, soft_wrap=True)
