"""A keyboard: keys that move the tool along and about its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import DeviceError, Intent
from robolearn_hardware.teleop.keys import KEY_CODES, EventKeys, keys_of
from robolearn_hardware.teleop.relative import AXES, Deflection, RateConfig, RateMotion
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.keyboard import KeyboardTwin

Direction = Literal["+x", "-x", "+y", "-y", "+z", "-z", "+roll", "-roll", "+pitch", "-pitch", "+yaw", "-yaw"]
KEYS: dict[str, Direction] = {
    "up": "+x",
    "down": "-x",
    "left": "+y",
    "right": "-y",
    "page_up": "+z",
    "page_down": "-z",
    "i": "+pitch",
    "k": "-pitch",
    "j": "+yaw",
    "l": "-yaw",
    "u": "-roll",
    "o": "+roll",
}
"""None that the command line uses for itself."""


@dataclass(frozen=True)
class KeyboardConfig(RateConfig):
    """A keyboard. In a terminal a key that is held is the deadman; by its event node, a key beside it is.

    A terminal repeats only the key that was pressed last, after a pause, so that one axis moves at a time and a held
    key stops ``keys.TAP_S`` after it was let go. An event node knows better, and hears what is typed in other windows
    too: hence its deadman.
    """

    device: str = ""
    """Empty: the terminal that this runs in. /dev/input/by-id/...-event-kbd: that keyboard, see `robolearn find
    teleoperators`. /dev/pts/3: another terminal. Or twin: an event node; or twin terminal."""
    deadman: str = "left_shift"
    """The key that must be held, of an event node."""
    gripper_key: str = "tab"
    keys: Mapping[str, Direction] = field(default_factory=lambda: dict(KEYS))
    """Key -> the axis that it moves along or about, and which way."""
    speed_m_s: float = 0.08
    speed_rad_s: float = 0.5
    rise_s: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in (self.deadman, self.gripper_key, *self.keys):
            if key not in KEY_CODES:
                raise DeviceError(f"no key {key!r}; valid: {', '.join(KEY_CODES)}")
        if self.gripper == "axis":
            raise DeviceError("a keyboard has no trigger for gripper: axis; valid: toggle, hold")
        if self.gripper_key in self.keys or self.deadman in self.keys or self.deadman == self.gripper_key:
            raise DeviceError("one key is for two things: see deadman, gripper_key and keys")

    def open(self, name: str) -> Keyboard:
        return Keyboard(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.device not in _TWINS:
            return self
        return replace(self, device=twins.start(name, _TWINS[self.device]).address)


def _event_twin() -> KeyboardTwin:
    return KeyboardTwin("events")


def _terminal_twin() -> KeyboardTwin:
    return KeyboardTwin("terminal")


_TWINS = {"twin": _event_twin, "twin terminal": _terminal_twin}


class Keyboard:
    """See ``devices.Teleoperator``."""

    def __init__(self, name: str, config: KeyboardConfig) -> None:
        self._config = config
        self._motion = RateMotion(config)
        self._keys = keys_of(name, config.device)
        self._ways = {key: (AXES.index(way[1:]), 1.0 if way[0] == "+" else -1.0) for key, way in config.keys.items()}

    def connect(self) -> None:
        """
        Raises:
            DeviceError: it is not there, or may not be opened.
        """
        self._keys.connect()
        self._motion.forget()

    def read(self) -> Intent:
        """Does not wait."""
        now = now_ns()
        down = self._keys.down(now)
        axes = np.zeros(6)
        for key in down & self._ways.keys():
            axis, sign = self._ways[key]
            axes[axis] += sign
        gripper = self._config.gripper_key in down
        held = self._config.deadman in down if isinstance(self._keys, EventKeys) else bool(axes.any()) or gripper
        return self._motion.intent(Deflection(now, axes, held, gripper))

    def close(self) -> None:
        """May be called twice."""
        self._keys.close()
