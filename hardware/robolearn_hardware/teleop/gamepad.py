"""A gamepad, by SDL: it knows several hundred models and gives them all one layout, the Xbox controller's."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, Intent
from robolearn_hardware.teleop.relative import Deflection, RateConfig, RateMotion
from robolearn_hardware.twins.gamepad import GamepadTwin, VirtualPad
from robolearn_hardware.twins.host import Twins

Button = Literal[
    "a", "b", "x", "y", "back", "guide", "start", "left_stick", "right_stick", "left_shoulder", "right_shoulder",
    "up", "down", "left", "right"
]  # fmt: skip
BUTTONS: tuple[Button, ...] = get_args(Button)
"""In SDL's order (SDL_gamecontroller.h). a is the lower one of the four, b the right one."""
_LEFT_X, _LEFT_Y, _RIGHT_X, _RIGHT_Y, _LEFT_TRIGGER, _RIGHT_TRIGGER = range(6)
_FULL = 32767.0


@dataclass(frozen=True)
class GamepadConfig(RateConfig):
    """A gamepad. Left stick: forward, back, left, right; right stick: up, down, yaw; cross: pitch, roll.

    Take a cable where you can: a wireless one whose battery ends goes on saying its last until the kernel notices,
    which takes seconds.
    """

    device: str = ""
    """Part of its name, as `robolearn find teleoperators` shows it; empty: the only one connected. Or twin."""
    deadman: Button = "left_shoulder"
    gripper_button: Button = "a"
    """Not for gripper: axis, which is the right trigger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deadman == self.gripper_button:
            raise DeviceError(f"deadman and gripper_button are both {self.deadman!r}; change one of them")

    def open(self, name: str) -> Gamepad:
        return Gamepad(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return replace(self, device=twins.start(name, partial(GamepadTwin)).address) if self.device == "twin" else self


class Gamepad:
    """See ``devices.Teleoperator``. ``Intent.buttons``: by their names in ``BUTTONS``, without the two of the rig file.

    One thread of a process uses SDL: the one that opens the first of them.
    """

    def __init__(self, name: str, config: GamepadConfig) -> None:
        self._name, self._config = name, config
        self._motion = RateMotion(config)
        self._virtual: VirtualPad | None = None
        self._pad: Any = None

    def connect(self) -> None:
        """
        Raises:
            DeviceError: there is none, or more than one of that name.
        """
        self.close()
        controller = sdl()
        wanted = self._config.device
        if wanted.startswith("/"):
            self._virtual = VirtualPad(self._name, wanted)
            wanted = self._virtual.label
        pump()
        there = {i: str(controller.name_forindex(i)) for i in _indices(controller)}
        found = [i for i, label in there.items() if wanted.lower() in label.lower()]
        if not found:
            self.close()
            names = ", ".join(there.values()) or "none"
            raise DeviceGoneError(
                f"{self._name}: no gamepad {wanted!r} is connected (there: {names}); "
                "`robolearn find teleoperators` says why one may be missing"
            )
        if len(found) > 1:
            self.close()
            raise DeviceError(
                f"{self._name}: {len(found)} gamepads are called {wanted!r}: {', '.join(there[i] for i in found)}; "
                "give more of its name in the rig (device), or unplug one"
            )
        self._pad = controller.Controller(found[0])
        self._motion.forget()

    def read(self) -> Intent:
        """Does not wait."""
        if self._pad is None:
            raise DeviceGoneError(f"{self._name} is not connected; connect first")
        pump()
        if not self._pad.attached():
            self.close()
            raise DeviceGoneError(f"{self._name}: the gamepad was unplugged; plug it in again")
        pad, config = self._pad, self._config
        axis = [max(pad.get_axis(i) / _FULL, -1.0) for i in range(6)]
        down = {button: bool(pad.get_button(i)) for i, button in enumerate(BUTTONS)}
        axes = np.array(
            (
                -axis[_LEFT_Y],
                -axis[_LEFT_X],
                -axis[_RIGHT_Y],
                down["right"] - down["left"],
                down["up"] - down["down"],
                -axis[_RIGHT_X],
            ),
            np.float64,
        )
        held, gripper = down.pop(config.deadman), down.pop(config.gripper_button)
        trigger = axis[_RIGHT_TRIGGER] if config.gripper == "axis" else math.nan
        return self._motion.intent(Deflection(now_ns(), axes, held, gripper, trigger), down)

    def close(self) -> None:
        """May be called twice."""
        pad, self._pad = self._pad, None
        if pad is not None:
            with contextlib.suppress(Exception):  # SDL's own errors, of a pad that has gone
                pad.quit()
        if self._virtual is not None:
            self._virtual.close()
            self._virtual = None


def list_gamepads() -> list[str]:
    """The names of those that SDL knows the layout of. Raises DeviceError without pygame."""
    controller = sdl()
    pump()
    return [str(controller.name_forindex(i)) for i in _indices(controller)]


def sdl() -> Any:
    """pygame's module of game controllers, ready. It needs no screen, and leaves signals alone.

    Raises:
        DeviceError: pygame is not installed.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    os.environ.setdefault("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")  # it has no window that could be in front
    try:
        import pygame
        from pygame._sdl2 import controller
    except ImportError as error:
        raise DeviceError(f"a gamepad needs pygame ({error}): pip install pygame") from None
    if not pygame.display.get_init():
        pygame.display.init()
    if not controller.get_init():
        controller.init()
    return controller


def pump() -> None:
    """Let SDL hear what its devices say. Its queue of events, which nobody reads, is emptied."""
    import pygame

    pygame.event.clear()


def _indices(controller: Any) -> list[int]:
    import pygame

    return [i for i in range(pygame.joystick.get_count()) if controller.is_controller(i)]
