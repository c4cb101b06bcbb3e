"""`robolearn collect`: record demonstrations into a dataset, of a person or a program, on a rig or in a world."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from robolearn.cli.parse import UsageError
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn_deploy.dashboard.access import PageOptions

Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""An option that may be given several times."""


class CollectError(UserError):
    """Demonstrations cannot be recorded as asked."""


@dataclass(frozen=True)
class Collect:
    """Record demonstrations into a dataset: a person's on a rig (--rig) or in a simulated world (--world), or those of
    a program that solves the world (--teleop scripted).

    The dataset is whole at every moment: Ctrl-C, a kill or a full disk lose at most the episode in flight, which
    `robolearn data recover` saves, and the same command with --resume goes on from there.
    """

    out: tyro.conf.Positional[Path]
    """Dataset to write, for example lift.zarr."""
    rig: Path | None = None
    """A rig file (hardware/rigs; those that end in _twin need no robot)."""
    world: str | None = None
    """Or a simulated world: lift, pusht, ... By default lift."""
    teleop: Several = ()
    """Who demonstrates. On a rig: a teleoperator of it, or page, with :ARM where there are several arms; by default the
    only one of the rig. In a world: page, KIND or KIND:PORT of a teleoperator at this machine (gamepad, keyboard,
    so101_leader:/dev/ttyACM0; KIND:twin pretends that there is one), or scripted (the default)."""
    task: Several = ()
    """What the person does, in words: --task "put the banana on the plate". Given several times, the tasks take
    turns."""
    task_file: Path | None = None
    """A text file with one task on each line."""
    episodes: int = 100
    """Episodes the dataset shall hold in the end."""
    episode_s: float = 60.0
    """The longest that one takes."""
    countdown_s: float = 3.0
    """Before each episode."""
    reset_s: float | None = None
    """Time to set the scene, after which the next episode begins by itself. By default it waits for the start on a rig,
    and is 0 in a world."""
    resume: bool = False
    """Go on with OUT, which the same command began."""
    operator: str = "person"
    """Who demonstrates, for the records."""
    rate_hz: float = 30.0
    """Rig: control steps a second that are recorded. Cameras, arms and force sensors keep their own rates."""
    key: Several = ()
    """KEY=COMMAND for the terminal, and so for a pedal that types a key: --key b=start+success. Of several commands
    the one that makes sense at the time is meant."""
    button: Several = ()
    """Rig: BUTTON=COMMAND for the buttons of a teleoperator."""
    check: bool = True
    """Rig: begin only if the warm-up checks find no failure."""
    bell: bool = True
    """Ring the terminal's bell as a cue."""
    servo_hz: float | None = None
    """Rig: ticks of the servo loop a second; by default what the slowest arm can do."""
    fifo: bool = True
    """Rig: ask for real-time priority and locked memory."""
    core: int | None = None
    """Rig: the processor core of the servo loop; by default any."""
    page: bool = True
    """Show the session on a page for browsers: cameras, controls, teleoperation, e-stop."""
    page_host: str = "127.0.0.1"
    """Address to show it on; 0.0.0.0 for every one of this machine. Its viewers need a token: that of --token-file or
    ROBOLEARN_TOKEN, or else one that is made, kept, and said with the address."""
    page_port: int = 8040
    """0: any free one."""
    page_cert: Path | None = None
    """Certificate (PEM) with which the page is at https, with --page-key."""
    page_key: Path | None = None
    """Its private key (PEM)."""
    page_self_signed: bool = False
    """https with a certificate of our own making, for phones and headsets: their browsers ask once whether to go on."""
    token_file: Path | None = None
    """The page's token. Without this option the environment variable ROBOLEARN_TOKEN holds it."""
    seed: int = 0
    """World: seed of the first attempt; each following attempt takes the next number. Scripted: the result depends on
    it alone, not on the number of workers."""
    images: bool = False
    """World: record the camera too."""
    noise: float = 0.2
    """Scripted: standard deviation of the disturbance added to the actions carried out, so that the demonstrations show
    how to come back; the action learned is the undisturbed one. 0 for none. Only episodes that end in success are
    kept."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Scripted: processes that simulate at the same time."""


def run(options: Collect) -> int | None:
    """Record demonstrations into a dataset."""
    if options.rig is not None and options.world is not None:
        raise UsageError("give a rig (--rig) or a simulated world (--world), not both")
    if options.rig is not None:
        from robolearn.cli.collect_rig import collect_on_rig_by_person

        return collect_on_rig_by_person(options, options.rig)
    if options.teleop in ((), ("scripted",)):
        from robolearn.cli.collect_scripted import collect_scripted

        return collect_scripted(options)
    from robolearn.cli.collect_world import collect_in_world_by_person

    return collect_in_world_by_person(options, options.world or "lift")


def tasks_of(options: Collect) -> tuple[str, ...]:
    """Those of --task and of the file.

    Raises:
        OSError: there is no such file.
    """
    lines = options.task_file.read_text().splitlines() if options.task_file else []
    return (*options.task, *(line.strip() for line in lines if line.strip()))


def page_of(options: Collect) -> PageOptions | None:
    """Where the page is, None without one."""
    from robolearn.cli.page import page_options

    if not 0 <= options.page_port < 1 << 16:
        raise UsageError(f"--page-port {options.page_port} does not exist; give one from 1 to 65535, or 0 for any")
    return page_options(options) if options.page else None


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Collect, run)}
