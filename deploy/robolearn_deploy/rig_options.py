"""What a run on a rig is told, and who wants to know what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from robolearn_deploy.dashboard.access import PageOptions
from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.fast import FastPolicy
from robolearn_deploy.instructions import Check, accept
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured


@dataclass(frozen=True)
class RigOptions:
    seconds: float
    """The run ends after this time, counted from the moment when everything is ready."""
    rate_hz: float = 30.0
    """Control steps a second that are recorded where no policy says how many."""
    scheduler: str = "naive"
    replan_steps: int | None = None
    """Control periods between the observations of two chunks; by default the scheduler's or the policy's own number."""
    instruction: str = ""
    check_instruction: Check = accept
    """The policy's own."""
    episodes: int | None = None
    """Episodic: so many, each from the reset pose to a person's verdict or ``episode_s``. None: one that goes on."""
    episode_s: float = 60.0
    reset_s: float = 5.0
    """Between two episodes, at the reset pose: for a person to set the scene."""
    teleoperators: Mapping[str, str] = field(default_factory=dict)
    """Teleoperator of the rig, or "page" -> arm that it takes over."""
    buttons: Mapping[str, tuple[Command, ...]] = field(default_factory=dict)
    """Of the teleoperators: what pressing one means, see ``rig_processes.Buttons``."""
    servo: ServoOptions = field(default_factory=ServoOptions)
    fast: FastPolicy | None = None
    out: Path | None = None
    """Record a dataset here."""
    resume: bool = False
    """``out`` exists, with the same streams, and is continued."""
    operator: str = "policy"
    """Who drives, for the records."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    page: PageOptions | None = None
    """Show the run on a page for browsers, with an e-stop."""


class RigWatcher(Protocol):
    """Whoever wants to know what happens while a run goes on."""

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        """Everything is ready and the run begins. ``operator`` and ``instruct`` are for the same thread; ``rings`` are
        what the page reads, for other processes too."""
        ...

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        """About fifty times a second."""
        ...

    def message(self, text: str) -> None:
        """Something a person should know, in one line."""
        ...
