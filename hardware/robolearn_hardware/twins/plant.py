"""What moves behind a twin: joints that follow targets as motors do. ``robolearn_sim`` has one with contacts."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceError


class Plant(Protocol):
    """Joints, and a gripper where ``has_gripper`` (its position, 0 closed to 1 open, is the last entry). n in all.

    A twin advances it before it answers, so that it stands where it would stand now.
    """

    joints: int
    has_gripper: bool
    positions: np.ndarray
    """(n,) rad; the gripper 0..1"""
    velocities: np.ndarray
    """(n,) rad/s"""
    efforts: np.ndarray
    """(n,) share of the greatest torque, -1..1"""
    wrench: np.ndarray
    """(6,) N, N m at the tool, base frame"""

    def advance(self, now_ns: int) -> None:
        """Move on to an instant of CLOCK_MONOTONIC; at most 0.1 s are made up for."""
        ...

    def target(self, positions: np.ndarray) -> None:
        """Where to go, (n,); NaN leaves an entry's target as it is."""
        ...

    def limp(self, off: np.ndarray) -> None:
        """Which motors (n,) bool are off."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Motor:
    """One kind of motor with its gear, as far as a first-order model goes."""

    time_constant_s: float = 0.05
    """Of the position loop."""
    speed: float = 4.0
    """Greatest, rad/s."""
    acceleration: float = 60.0
    """Greatest, rad/s^2."""
    backlash: float = 0.0
    """Play of the gear, rad: the joint follows the motor when that has crossed it."""


@dataclass(frozen=True, eq=False)
class PlantSpec:
    """What a twin asks of its plant."""

    model: str
    """As ``ArmInfo.model``."""
    start: np.ndarray
    """(n,)"""
    low: np.ndarray
    """(n,) mechanical stops"""
    high: np.ndarray
    """(n,)"""
    has_gripper: bool
    motor: Motor = field(default_factory=Motor)


def make_plant(kind: str, spec: PlantSpec) -> Plant:
    """A plant of ``kind``: "first_order", or one that a package offers under the entry point group "robolearn.plants"
    as a function of a PlantSpec ("mujoco" is in ``robolearn_sim``).

    Raises:
        DeviceError: no such kind.
    """
    if kind == "first_order":
        return FirstOrderPlant(spec.start, spec.low, spec.high, spec.motor, has_gripper=spec.has_gripper)
    found = {entry.name: entry for entry in entry_points(group="robolearn.plants")}
    if kind not in found:
        raise DeviceError(f"no plant {kind!r}; valid: {', '.join(['first_order', *sorted(found)])}")
    return found[kind].load()(spec)


class FirstOrderPlant:
    """Each motor approaches its target at a speed proportional to the distance, within its speed and acceleration."""

    _STEP_NS = 1_000_000
    _LONGEST_NS = 100_000_000

    def __init__(
        self, start: np.ndarray, low: np.ndarray, high: np.ndarray, motor: Motor | None = None, *, has_gripper: bool
    ) -> None:
        """``start``, and mechanical stops ``low`` and ``high``: (n,)."""
        self.has_gripper = has_gripper
        self.joints = len(start) - has_gripper
        self.positions = np.array(start, np.float64)
        self.velocities = np.zeros(len(start))
        self.efforts = np.zeros(len(start))
        self.wrench = np.zeros(6)
        self._motor = motor or Motor()
        self._low, self._high = np.array(low, np.float64), np.array(high, np.float64)
        self._shaft = self.positions.copy()
        self._target = self.positions.copy()
        self._off = np.zeros(len(start), bool)
        self._now_ns = 0

    def target(self, positions: np.ndarray) -> None:
        wanted = np.where(np.isnan(positions), self._target, positions)
        self._target = np.clip(wanted, self._low, self._high)

    def limp(self, off: np.ndarray) -> None:
        self._off = np.array(off, bool)

    def advance(self, now_ns: int) -> None:
        self._now_ns = max(self._now_ns, now_ns - self._LONGEST_NS)
        while self._now_ns < now_ns:
            step_ns = min(self._STEP_NS, now_ns - self._now_ns)
            self._step(step_ns / SECOND_NS)
            self._now_ns += step_ns

    def _step(self, dt_s: float) -> None:
        motor = self._motor
        wanted = np.clip((self._target - self._shaft) / motor.time_constant_s, -motor.speed, motor.speed)
        wanted[self._off] = 0.0
        change = np.clip(wanted - self.velocities, -motor.acceleration * dt_s, motor.acceleration * dt_s)
        self.velocities += change
        self.efforts = change / (motor.acceleration * dt_s)
        self._shaft = np.clip(self._shaft + self.velocities * dt_s, self._low, self._high)
        play = motor.backlash / 2
        self.positions = np.clip(self.positions, self._shaft - play, self._shaft + play)

    def close(self) -> None:
        pass
