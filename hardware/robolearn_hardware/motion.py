"""Joint motion with bounded velocity, acceleration and jerk, by Ruckig (Berscheid and Kröger, RSS 2021).

Every target is a place to come to rest at, in the shortest time that the limits allow; it may change at every tick, in
mid-motion too, and the motion goes on without a jump in position, velocity or acceleration.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from robolearn_hardware.devices import DeviceError, JointLimits, LimitError

RAMP_S = 0.2
"""Where no acceleration is published: full speed is reached in this time; where no jerk is, full acceleration in half
of it."""


class Setpoint(NamedTuple):
    positions: np.ndarray
    """(J,) rad"""
    velocities: np.ndarray
    """(J,) rad/s"""
    accelerations: np.ndarray
    """(J,) rad/s^2"""


class Trajectory:
    """A motion from rest to rest, as a function of time."""

    def __init__(self, trajectory: Any) -> None:
        self._trajectory = trajectory
        self.duration_s: float = trajectory.duration

    def at(self, time_s: float) -> Setpoint:
        """Where to be ``time_s`` after the beginning; before and after it, the ends."""
        return Setpoint(*map(np.array, self._trajectory.at_time(min(max(time_s, 0.0), self.duration_s))))

    def ticks(self, rate_hz: float) -> Iterator[Setpoint]:
        """One setpoint per tick; the first is one period after the beginning, the last is the end."""
        count = int(np.ceil(self.duration_s * rate_hz))
        for i in range(1, count + 1):
            yield self.at(i / rate_hz)


class JointMotion:
    """Setpoints at a fixed rate towards a target. ``begin`` first."""

    def __init__(self, limits: JointLimits, rate_hz: float, *, speed: float = 1.0) -> None:
        """
        Args:
            limits: of the arm; those on velocity must be finite.
            speed: above 0 to 1, the share of the limits on velocity, acceleration and jerk that is used.

        Raises:
            DeviceError: values that make no sense; ruckig is not installed.
        """
        if not (0 < speed <= 1 and rate_hz > 0):
            raise DeviceError(f"speed must lie above 0 and up to 1, rate_hz above 0; got {speed} and {rate_hz}")
        if not (np.isfinite(limits.velocity) & (limits.velocity > 0)).all():
            raise DeviceError("joint motion needs a finite velocity limit above 0 for every joint")
        self.limits = limits
        self.velocity = speed * limits.velocity
        acceleration = np.where(np.isfinite(limits.acceleration), limits.acceleration, limits.velocity / RAMP_S)
        self.acceleration = speed * acceleration
        self.jerk = speed * np.where(np.isfinite(limits.jerk), limits.jerk, 2 * acceleration / RAMP_S)
        self._ruckig = _ruckig()
        self._online = self._ruckig.Ruckig(limits.joints, 1 / rate_hz)
        self._output = self._ruckig.OutputParameter(limits.joints)
        self._input: Any = None
        self.arrived = True
        """Whether the last setpoint is the target, at rest."""

    def begin(self, positions: np.ndarray) -> None:
        """The arm rests at ``positions`` (J,) rad. Raises LimitError."""
        self._input = self._rest_at(positions)
        self._online.reset()
        self.arrived = True

    def update(self, target: np.ndarray) -> Setpoint:
        """The setpoint one tick after the last one, on the way to ``target`` (J,) rad.

        Raises:
            LimitError: not finite, a wrong shape, outside the limits. The motion towards the last target can go on.
            DeviceError: ``begin`` was not called.
        """
        self._begun().target_position = self._inside(target)
        self._input.control_interface = self._ruckig.ControlInterface.Position
        return self._tick()

    def stop(self) -> Setpoint:
        """The setpoint one tick after the last one, on the shortest way to rest."""
        self._begun().control_interface = self._ruckig.ControlInterface.Velocity
        return self._tick()

    def plan(self, start: np.ndarray, goal: np.ndarray) -> Trajectory:
        """The whole motion from rest at ``start`` (J,) to rest at ``goal`` (J,) rad. Nothing of ``update`` changes.

        Raises:
            LimitError: as ``update``.
        """
        parameters, trajectory = self._rest_at(start), self._ruckig.Trajectory(self.limits.joints)
        parameters.target_position = self._inside(goal)
        result = self._ruckig.Ruckig(self.limits.joints).calculate(parameters, trajectory)
        self._check(result)
        return Trajectory(trajectory)

    def _rest_at(self, positions: np.ndarray) -> Any:
        parameters = self._ruckig.InputParameter(self.limits.joints)
        parameters.max_velocity, parameters.max_acceleration = self.velocity, self.acceleration
        parameters.max_jerk = self.jerk
        # An arm may stand outside its limits, and be led back.
        parameters.current_position = self.limits.check("joint motion, start", positions, slack=np.inf)
        parameters.target_position = parameters.current_position
        return parameters

    def _inside(self, target: np.ndarray) -> np.ndarray:
        return np.clip(self.limits.check("joint motion", target), self.limits.low, self.limits.high)

    def _begun(self) -> Any:
        if self._input is None:
            raise DeviceError("joint motion has not begun; call begin with where the arm is")
        return self._input

    def _tick(self) -> Setpoint:
        result = self._online.update(self._input, self._output)
        self._check(result)
        self._output.pass_to_input(self._input)
        self.arrived = result == self._ruckig.Result.Finished
        out = self._output
        return Setpoint(np.array(out.new_position), np.array(out.new_velocity), np.array(out.new_acceleration))

    def _check(self, result: Any) -> None:
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            raise LimitError(f"ruckig found no motion within the limits ({result})")


def _ruckig() -> Any:
    try:
        return importlib.import_module("ruckig")
    except ImportError as error:
        raise DeviceError(f"joint motion needs ruckig ({error}): pip install 'robolearn[kinematics]'") from None
