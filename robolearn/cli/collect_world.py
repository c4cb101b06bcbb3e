"""`robolearn collect --world pusht --teleop page OUT`: a person demonstrates in a simulated world."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robolearn.cli.collect import Collect, CollectError, page_of, tasks_of
from robolearn.cli.collect_terminal import SessionTerminal
from robolearn.cli.page import carry_out_marks
from robolearn.cli.parse import UsageError, stderr_line

if TYPE_CHECKING:
    from robolearn_data.world import WorldSpec
    from robolearn_deploy.collect_session import Tally
    from robolearn_deploy.dashboard.access import PageOptions
    from robolearn_deploy.world_people import PeopleOptions
    from robolearn_deploy.world_teleop import WorldTeleop
    from robolearn_hardware.registry import TeleoperatorConfig

TOOL_M_S, TOOL_RAD_S = 0.25, 2.2
"""What robosuite's operational-space controller makes of a full action, measured in Lift."""
PUSHT_PX_S = 2000.0
"""Faster than the human demonstrations move their target (1,365 px/s at the most)."""
VIEW_PX = {"pusht": 512}
"""Width and height of ``World.render``; 256 where it is not said."""


def collect_in_world_by_person(options: Collect, world: str) -> int:
    """Hold the session; the exit code: 1 when a process failed on the way."""
    from robolearn_data import journal
    from robolearn_deploy.collect_session import SessionOptions
    from robolearn_deploy.world_collect import WorldSession, collect_in_world
    from robolearn_sim.worlds import make_world, world_spec

    tasks = tasks_of(options) or (world,)
    # Nothing has to be set by hand: the next episode begins by itself, and moves when the deadman is held.
    reset_s = 0.0 if options.reset_s is None else options.reset_s
    course = SessionOptions(tasks, options.episodes, options.episode_s, options.countdown_s, reset_s)
    world_options = _world_options(options, world, tasks)
    spec = world_spec(world, **world_options)
    how = {"world": world, "teleop": ",".join(options.teleop)}
    make = functools.partial(make_world, world, **world_options)
    with people_of(spec, options.teleop, page_of(options)) as (people, typed):
        seed, tallies = _dataset(options, spec, how, tasks)
        session = WorldSession(
            session=course,
            people=people,
            out=options.out,
            seed=seed,
            tallies=tallies,
            info={**how, "operator": options.operator},
        )
        with SessionTerminal(options.key, bell=options.bell, typed=typed) as watcher:
            report = collect_in_world(make, spec, session, watcher)
    print(report)
    print(f"saved     {options.out}   look at it with: robolearn data info {options.out}")
    if journal.unfinished(options.out) or (options.out / journal.NAME).exists():
        stderr_line(f"the episode in flight was not saved; `robolearn data recover {options.out}` saves it")
    carry_out_marks(options.out)
    if report.failure:
        stderr_line(f"error: {report.failure}")
        return 1
    return 0


@contextmanager
def people_of(
    spec: WorldSpec, named: Sequence[str], page: PageOptions | None
) -> Iterator[tuple[PeopleOptions, Callable[[str], None]]]:
    """Who may move the world ``spec``: those at the page, and teleoperators as ``--teleop`` names them. Within, the
    function is to be told the keys typed at the terminal that are no commands, which a keyboard there moves it by.

    Raises:
        UsageError, CollectError: nobody could.
    """
    from robolearn_deploy.world_people import PeopleOptions
    from robolearn_hardware.teleop.shared_terminal import shared_keyboards
    from robolearn_hardware.twins.host import Twins

    teleop, devices = teleop_of(spec), teleoperators(named)
    if page is None and not devices:
        raise UsageError("nobody could move the world: leave --no-page out, or name a teleoperator of this machine")
    _mirrored(spec, teleop, devices)
    size = VIEW_PX.get(spec.name, 256)
    with Twins() as twins:
        reached = {name: config.with_twin(name, twins) for name, config in devices.items()}
        with shared_keyboards(reached) as (heard, typed):
            yield PeopleOptions(teleop, (size, size, 3), heard, page), typed


def _mirrored(spec: WorldSpec, teleop: WorldTeleop, devices: Mapping[str, TeleoperatorConfig]) -> None:
    """Raises UsageError: a leader arm, and no arm in the world that it is like."""
    from robolearn_deploy.world_teleop import JointTargets
    from robolearn_hardware.servo.kinds import ServoLeaderConfig

    joints = teleop.positions if isinstance(teleop, JointTargets) else 0
    for name, config in devices.items():
        if isinstance(config, ServoLeaderConfig) and len(config.model.joints) != joints:
            raise UsageError(
                f"--teleop {name}: the world {spec.name!r} has no arm whose joints could mirror a leader's; "
                "valid are page, gamepad, keyboard, spacemouse, or the world so101_tabletop with so101_leader"
            )


def teleop_of(spec: WorldSpec) -> WorldTeleop:
    """How a person moves the world ``spec``.

    Raises:
        CollectError: nobody has said how.
    """
    from robolearn_deploy.world_teleop import JointTargets, PlanarTarget, ToolDelta
    from robolearn_hardware.devices import ArmInfo
    from robolearn_hardware.limits import limits_of

    action = spec.schema.stream("action")
    if action.unit == "px" and action.frame == "table":
        return PlanarTarget((0.0, 0.0), (512.0, 512.0), speed=PUSHT_PX_S, per_metre=1000.0)
    if action.relative == (0, 1, 2, 3, 4, 5):
        return ToolDelta(TOOL_M_S, TOOL_RAD_S)
    if spec.name.startswith("so101"):
        names = action.names[:-1]  # the last is the gripper
        return JointTargets(ArmInfo("arm", "so101", names, limits_of("so101"), True, spec.schema.rate_hz))
    raise CollectError(f"a person cannot move the world {spec.name!r}; `--teleop scripted` may")


def teleoperators(named: Sequence[str]) -> dict[str, TeleoperatorConfig]:
    """Those of this machine, by kind: KIND, KIND:PORT (gamepads: part of the name), or KIND:twin.

    Raises:
        UsageError, DeviceError: there is no such kind, or it needs a port.
    """
    from robolearn_hardware.registry import TELEOPERATORS

    found: dict[str, TeleoperatorConfig] = {}
    for text in named:
        kind, _, where = text.partition(":")
        if kind == "page":
            continue
        if kind not in TELEOPERATORS:
            raise UsageError(f"--teleop {text}: valid are page, scripted, {', '.join(sorted(TELEOPERATORS))}")
        make: Any = TELEOPERATORS[kind]
        address = "port" if "port" in {field.name for field in dataclasses.fields(make)} else "device"
        try:
            found[kind] = make(**{address: where}) if where else make()
        except TypeError:
            raise UsageError(
                f"--teleop {text}: say where it is, as {kind}:PORT; {kind}:twin pretends that there is one"
            ) from None
    return found


def _world_options(options: Collect, world: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Of ``make_world``."""
    from robolearn_sim.worlds import world_spec

    found: dict[str, Any] = {"images": True} if options.images else {}
    if world == "so101_tabletop" and options.task:
        if len(tasks) > 1:
            raise UsageError("this world is about one task in a session: give --task once")
        found["task"] = tasks[0]
    rate_hz = world_spec(world, **found).schema.rate_hz
    return {**found, "max_steps": max(1, round(options.episode_s * rate_hz))}


def _dataset(
    options: Collect, spec: WorldSpec, how: Mapping[str, str], tasks: Sequence[str]
) -> tuple[int, dict[str, Tally]]:
    """Make the dataset, or see that it can be continued. The first seed, and task -> what it holds.

    Raises:
        DatasetError: it is there already, or not; another process writes to it.
        CollectError: it was begun with other options, or is complete.
    """
    from robolearn_data.dataset import Dataset
    from robolearn_data.selection import episode_infos
    from robolearn_data.writer import DatasetWriter
    from robolearn_deploy.collect_session import Tally
    from robolearn_deploy.world_collect import recorded_schema

    schema = recorded_schema(spec)
    if not options.resume:
        with DatasetWriter.create(options.out, schema, metadata={**how, "seed": options.seed}):
            return options.seed, {}
    with DatasetWriter.append(options.out):  # nobody else writes to it; and what was in flight is set aside
        pass
    before = Dataset.open(options.out)
    if before.metadata.get("world") != how["world"] or before.schema != schema:
        raise CollectError(f"{options.out} is of another world or other streams; give the options it was begun with")
    seed, tallies = options.seed, dict[str, Tally]()
    for info in episode_infos(before):
        seed = max(seed, int(info.get("seed", -1)) + 1)  # one that was recovered may have none
        tally = tallies.setdefault(str(info.get("task")), Tally())
        tally.saved += 1
        tally.successes += info.get("success") is True
    if sum(tallies.get(task, Tally()).saved for task in tasks) >= options.episodes:
        raise CollectError(f"{options.out} has its {options.episodes} episodes; give more --episodes to go on")
    return seed, tallies
