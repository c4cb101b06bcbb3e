"""`robolearn deploy CHECKPOINT --rig RIG.yaml`: a policy on arms and cameras, with a person at the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robolearn.cli.keys import Keys
from robolearn.cli.page import page_options
from robolearn.cli.parse import UsageError

if TYPE_CHECKING:
    from robolearn.cli.deploy import Deploy, PolicySource
    from robolearn_deploy.dashboard.rings import RigRings
    from robolearn_deploy.operator import Operator
    from robolearn_deploy.rig_log import RigMeasured, RigReport
    from robolearn_hardware.rig import Rig

KEYS = {
    "e": ("E_STOP", "e-stop"),
    " ": ("PAUSE", "pause"),
    "g": ("RESUME", "go on"),
    "r": ("RELEASE", "release the e-stop"),
    "t": ("TAKE_OVER", "take over"),
    "b": ("HAND_BACK", "hand back"),
    "h": ("RESET", "reset pose"),
    "s": ("SUCCESS", "success"),
    "f": ("FAILURE", "failure"),
    "d": ("DISCARD", "discard"),
    "q": ("END", "end"),
}
"""Key -> name of an ``operator.Command``, and what it is for."""


def run_on_rig(options: Deploy, path: Path, source: PolicySource) -> RigReport:
    """Run it on the rig at ``path``; what is said about it at the end."""
    from robolearn_deploy.driven_arm import ServoOptions
    from robolearn_deploy.rig_options import RigOptions
    from robolearn_deploy.rig_runtime import run_rig
    from robolearn_hardware.rig import load_rig, with_twins
    from robolearn_hardware.teleop.shared_terminal import shared_terminal

    rig = load_rig(path)
    servo = ServoOptions(rate_hz=options.servo_hz, fifo=options.fifo, core=options.core, approach=options.approach)
    rig_options = RigOptions(
        seconds=options.seconds,
        scheduler=source.scheduler,
        replan_steps=options.replan,
        instruction=options.instruction,
        check_instruction=source.check,
        episodes=options.episodes,
        episode_s=options.episode_s,
        reset_s=options.reset_s,
        teleoperators=_pairs(rig, options.teleop),
        servo=servo,
        fast=source.fast,
        out=options.out,
        page=page_options(options) if options.page else None,
        metadata={"source": "robolearn deploy", **source.named},
    )
    with (
        with_twins(rig) as (reachable, _),
        shared_terminal(reachable) as (heard, typed),
        _Terminal(options.seconds, typed) as watcher,
    ):
        return run_rig(heard, source.make, source.spec, rig_options, watcher)


def _pairs(rig: Rig, named: tuple[str, ...]) -> dict[str, str]:
    """Teleoperator -> arm: as told, or the only ones."""
    if not named:
        only = len(rig.teleoperators) == 1 and len(rig.arms) == 1
        return {next(iter(rig.teleoperators)): next(iter(rig.arms))} if only else {}
    pairs = {}
    for text in named:
        teleoperator, colon, arm = text.partition(":")
        if not colon or teleoperator not in rig.teleoperators or arm not in rig.arms:
            raise UsageError(
                f"--teleop {text}: valid are TELEOPERATOR:ARM of {', '.join(rig.teleoperators) or 'none'} and "
                f"{', '.join(rig.arms)}"
            )
        pairs[teleoperator] = arm
    return pairs


_CAUSE = 60
"""Characters of a cause that are shown beside the state."""


class _Terminal:
    """A line that says what the robot does, and keys that tell it. Fulfils robolearn_deploy's RigWatcher."""

    def __init__(self, seconds: float, typed: Callable[[str], None] = lambda key: None) -> None:
        """``typed``: is told the keys that are no commands."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(20), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, TextColumn("{task.description}", markup=False), console=self._console)
        self._task = self._progress.add_task("starting cameras, arms and policy", total=seconds)
        self._keys, self._typed = Keys(), typed
        self._operator: Operator | None = None
        self._instruct: Callable[[str], None] = lambda text: None
        self._cause = ""

    def __enter__(self) -> _Terminal:
        self._keys.__enter__()
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()
        self._keys.cooked()

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self._operator, self._instruct = operator, instruct
        named = "   ".join(f"[b]{_shown(key)}[/b] {meaning}" for key, (_, meaning) in KEYS.items())
        self._console.print(named, highlight=False)

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        from robolearn_deploy.operator import Command

        while key := self._keys.pressed():
            if key not in KEYS:
                self._typed(key)
            elif self._operator is not None:
                self._operator.tell(Command[KEYS[key][0]])
        if measured.state is not None:
            hand = " (deadman held)" if measured.person else ""
            text = f"{measured.state.name}{hand}: {measured.cause}   episode {episode + 1}"
            if len(measured.cause) > _CAUSE and measured.cause != self._cause:  # the line would not hold it
                self.message(f"{measured.state.name}: {measured.cause}")
            self._cause = measured.cause
            self._progress.update(self._task, completed=elapsed_s, description=text)

    def message(self, text: str) -> None:
        # Viewers of the page write some of it: none of it is markup. Addresses stay in one piece.
        self._console.print(f"robolearn: {text}", highlight=False, markup=False, soft_wrap=True)


def _shown(key: str) -> str:
    return "space" if key == " " else key
