"""One terminal for two: the command line, whose keys are commands, and a keyboard that moves an arm."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from robolearn_hardware.registry import TeleoperatorConfig
from robolearn_hardware.rig import Rig
from robolearn_hardware.teleop.keyboard import KeyboardConfig


@contextmanager
def shared_terminal(rig: Rig) -> Iterator[tuple[Rig, Callable[[str], None]]]:
    """For a program that reads the keys of its terminal itself: the rig whose keyboards hear what the function given
    beside it is told, instead of that terminal. Tell it every key that is not a command."""
    with shared_keyboards(rig.teleoperators) as (teleoperators, typed):
        yield dataclasses.replace(rig, teleoperators=teleoperators), typed


@contextmanager
def shared_keyboards(
    teleoperators: Mapping[str, TeleoperatorConfig],
) -> Iterator[tuple[Mapping[str, TeleoperatorConfig], Callable[[str], None]]]:
    """The same for teleoperators without a rig."""
    with tempfile.TemporaryDirectory(prefix="robolearn-keys-") as folder, contextlib.ExitStack() as stack:
        heard: dict[str, TeleoperatorConfig] = {}
        ends: list[int] = []
        for name, config in teleoperators.items():
            if isinstance(config, KeyboardConfig) and not config.device:
                path = Path(folder) / f"keys-{len(ends)}"
                os.mkfifo(path)
                ends.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                stack.callback(os.close, ends[-1])
                heard[name] = dataclasses.replace(config, device=str(path))

        def typed(key: str) -> None:
            for end in ends:
                with contextlib.suppress(BlockingIOError):  # its process is not there
                    os.write(end, key.encode("latin-1"))

        yield {**teleoperators, **heard}, typed
