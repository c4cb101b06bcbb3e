"""`robolearn collect --rig RIG.yaml --task TEXT OUT`: a person demonstrates on arms and cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robolearn.cli.collect import Collect, page_of, tasks_of
from robolearn.cli.collect_terminal import SessionTerminal
from robolearn.cli.keys import command_names
from robolearn.cli.page import carry_out_marks
from robolearn.cli.parse import UsageError, stderr_line

if TYPE_CHECKING:
    from robolearn_deploy.operator import Command
    from robolearn_deploy.rig_collect import CollectReport
    from robolearn_hardware.rig import Rig


def collect_on_rig_by_person(options: Collect, path: Path) -> int:
    """Hold the session; the exit code: 1 when a process failed on the way."""
    from robolearn_data import journal
    from robolearn_deploy.collect_session import SessionOptions
    from robolearn_deploy.driven_arm import ServoOptions
    from robolearn_deploy.rig_collect import collect_on_rig
    from robolearn_deploy.rig_options import RigOptions
    from robolearn_hardware.rig import load_rig, with_twins
    from robolearn_hardware.teleop.shared_terminal import shared_terminal

    if not 1 <= options.rate_hz <= 1000:
        raise UsageError(f"--rate-hz {options.rate_hz:g} is not possible; give 1 to 1000")
    rig = load_rig(path)
    session = SessionOptions(_tasks(options), options.episodes, options.episode_s, options.countdown_s, options.reset_s)
    pairs = teleoperators(rig, options.teleop, page=options.page)
    rig_options = RigOptions(
        float("inf"),
        rate_hz=options.rate_hz,
        teleoperators=pairs,
        buttons=_commands("--button", options.button),
        servo=ServoOptions(rate_hz=options.servo_hz, fifo=options.fifo, core=options.core),
        out=options.out,
        resume=options.resume,
        operator=options.operator,
        metadata={"source": "robolearn collect", "teleop": ", ".join(pairs)},
        page=page_of(options),
    )
    with (
        with_twins(rig) as (reachable, _),
        shared_terminal(reachable) as (heard, typed),
        SessionTerminal(options.key, bell=options.bell, typed=typed) as watcher,
    ):
        report = collect_on_rig(heard, rig_options, session, watcher, check=options.check)
    _conclude(options.out, report)
    carry_out_marks(options.out)
    if journal.unfinished(options.out) or (options.out / journal.NAME).exists():
        stderr_line(f"the episode in flight was not saved; `robolearn data recover {options.out}` saves it")
    if report.rig.failure:
        stderr_line(f"error: {report.rig.failure}")
        return 1
    return 0


def teleoperators(rig: Rig, named: Sequence[str], *, page: bool) -> dict[str, str]:
    """Teleoperator (or "page") -> arm: as told, or the only ones.

    Raises:
        UsageError: something else was named; two for one arm; or nothing, where there is a choice.
    """
    valid = [*rig.teleoperators, *(["page"] if page else [])]
    arms = list(rig.arms)
    if not named:
        if len(rig.teleoperators) > 1 or len(arms) != 1 or not valid:
            raise UsageError(
                f"say who moves which arm: --teleop NAME:ARM of {', '.join(valid) or 'none'} and {', '.join(arms)}"
            )
        return {valid[0]: arms[0]}
    pairs: dict[str, str] = {}
    for text in named:
        name, colon, arm = text.partition(":")
        arm = arm if colon else arms[0] if len(arms) == 1 else ""
        if name not in valid or arm not in arms:
            raise UsageError(
                f"--teleop {text}: valid are {', '.join(valid) or 'none'}"
                + (f", each with :ARM of {', '.join(arms)}" if len(arms) > 1 or colon else "")
            )
        if arm in pairs.values() or name in pairs:
            raise UsageError(f"--teleop {text}: one teleoperator moves one arm")
        pairs[name] = arm
    return pairs


def _tasks(options: Collect) -> tuple[str, ...]:
    from robolearn_data.dataset import Dataset

    tasks = tasks_of(options)
    if not tasks and options.resume:
        return tuple(map(str, Dataset.open(options.out).metadata.get("tasks", ())))
    return tasks


def _commands(option: str, words: Sequence[str]) -> Mapping[str, tuple[Command, ...]]:
    from robolearn_deploy.operator import Command

    return {name: tuple(Command[c] for c in told) for name, told in command_names(option, words).items()}


def _conclude(out: Path, report: CollectReport) -> None:
    from robolearn.cli.tables import new_table, show_table

    table = new_table("task", "episodes", "successes", numbers=("episodes", "successes"), wrap=("task",))
    for task, tally in report.tallies.items():
        table.add_row(task, str(tally.saved), str(tally.successes))
    show_table(table)
    minutes, recorded = report.elapsed_s / 60, report.recorded_s / 60
    print(
        f"{out}: saved {report.saved} and discarded {report.discarded} episodes in {minutes:.1f} minutes, of which "
        f"{recorded:.1f} were recorded   look at them with: robolearn data info {out}"
    )
