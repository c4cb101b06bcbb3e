"""The last thing before an arm: what is asked for is followed as closely as the limits allow, and never closer.

Each joint has a state, the position, velocity and acceleration of the last setpoint. A setpoint is sent only if

1. the motion to it keeps the limits on velocity, acceleration and jerk throughout, and
2. from it, the quickest stop keeps them too, stays within the joint's range and within what the FR3 allows near the
   ends of it; and ends within the workspace and away from the arm's own links, or no worse than now.

Because the stop from the last setpoint was found good when that setpoint was, there is always something to send: the
next tick of that stop. So no limit is broken, whatever is asked, however many ticks are late.

Where position, velocity and acceleration that are asked for can be had in one tick (by three pieces of constant jerk),
they are reached exactly. Otherwise Ruckig (Berscheid and Kröger, RSS 2021) goes there in the shortest time.
"""

from __future__ import annotations

from enum import IntEnum
from math import isfinite
from typing import NamedTuple

import numpy as np

from robolearn_deploy.clearance import Clearance
from robolearn_deploy.joint_limiter import EndBraking, JointLimiter, State, along
from robolearn_deploy.selfdistance import SelfDistance
from robolearn_hardware.devices import ArmInfo, DeviceError
from robolearn_hardware.kinematics import Workspace
from robolearn_hardware.limits import LIMITS
from robolearn_hardware.motion import JointMotion, Setpoint

OK_RAD = 1e-6
"""A setpoint that is nearer than this to what was asked for is OK."""
_NOTHING = [0.0]


class Verdict(IntEnum):
    OK = 0
    """It is what was asked for."""
    LIMITED = 1
    """It is on the way to what was asked for, as far as the limits allow."""
    REJECTED = 2
    """What was asked for must not be: the setpoint is on the quickest way to rest."""


class Reason(IntEnum):
    NONE = 0
    MOTION = 1
    """Limited by a joint's velocity, acceleration or jerk."""
    RANGE = 2
    """Limited: outside a joint's range, taken to its end."""
    NON_FINITE = 3
    """Rejected: NaN or infinity."""
    WORKSPACE = 4
    """Rejected: it leaves the workspace."""
    SELF_DISTANCE = 5
    """Rejected: links come too near to each other."""


class Answer(NamedTuple):
    setpoint: Setpoint
    """To send. Its arrays belong to the limiter: the next call changes them."""
    verdict: Verdict
    reason: Reason


class Limiter:
    """One arm's limits, at one rate of ticks. ``begin`` first, then one call of ``follow``, ``approach`` or ``stop``
    for every setpoint that is sent. There is no way to switch it off: a dry run sends nothing."""

    def __init__(
        self,
        info: ArmInfo,
        rate_hz: float,
        *,
        workspace: Workspace | None = None,
        self_distance: SelfDistance | None = None,
        approach_speed: float = 0.1,
    ) -> None:
        """
        Args:
            info: of the arm, as its rig narrows it (``bounded.ArmBounds.apply``). Limits on acceleration and jerk that
                are not published have the meaning that ``motion.JointMotion`` gives them.
            rate_hz: of the setpoints.
            workspace: ``bounded.ArmBounds.workspace``.
            approach_speed: share of the limits that ``approach`` uses.

        Raises:
            DeviceError: values that make no sense; no kinematic model for a workspace; ruckig is not installed.
        """
        limits = info.limits
        fast, slow = JointMotion(limits, rate_hz), JointMotion(limits, rate_hz, speed=approach_speed)
        self.info, self.dt_s = info, 1 / rate_hz
        self.velocity, self.acceleration, self.jerk = fast.velocity, fast.acceleration, fast.jerk
        ranges = zip(limits.low.tolist(), limits.high.tolist(), strict=True)
        bounds, slow_bounds = (
            zip(m.velocity.tolist(), m.acceleration.tolist(), m.jerk.tolist(), strict=True) for m in (fast, slow)
        )
        ends = _end_braking(info)
        self._joints = [JointLimiter(self.dt_s, *each) for each in zip(ranges, bounds, slow_bounds, ends, strict=True)]
        bounded = workspace is not None or self_distance is not None
        self._clearance = Clearance(info.model, workspace, self_distance) if bounded else None
        self._sent = Setpoint(*(np.zeros(info.joints) for _ in range(3)))
        self._begun = False

    @property
    def rest_time_s(self) -> float:
        """The most time that ``stop`` takes to rest, from the first call of it to the setpoint at rest."""
        return max(j.rest_time_s for j in self._joints) + self.dt_s

    @property
    def sent(self) -> Setpoint:
        """The last setpoint. Its arrays are the limiter's own."""
        return self._sent

    @property
    def at_rest(self) -> bool:
        return all(joint.at_rest for joint in self._joints)

    @property
    def stop_positions(self) -> np.ndarray:
        """(J,) rad where ``stop`` would come to rest."""
        return np.array([along(j.state, j.braking(*j.state[1:]))[0] for j in self._joints])

    def begin(self, positions: np.ndarray) -> None:
        """The arm rests at ``positions`` (J,) rad, which may lie outside the limits: it is led back.

        Raises:
            LimitError: a wrong shape, NaN or infinity.
        """
        start = self.info.limits.check(f"{self.info.name}, limiter", positions, slack=np.inf)
        for joint, p in zip(self._joints, start.tolist(), strict=True):
            joint.state = (p, 0.0, 0.0)
        self._begun = True
        if self._clearance is not None:
            self._clearance.begin(start.tolist())
        self.stop()

    def follow(
        self, positions: np.ndarray, velocities: np.ndarray | None = None, accelerations: np.ndarray | None = None
    ) -> Answer:
        """The setpoint of this tick on the way to be at ``positions`` (J,) rad, with ``velocities`` and
        ``accelerations`` (J,) then (zero if None)."""
        p, v, a = (
            _NOTHING * self.info.joints if x is None else x.tolist() for x in (positions, velocities, accelerations)
        )
        if not all(map(isfinite, (*p, *v, *a))):
            return self._send([j.brake() for j in self._joints], Verdict.REJECTED, Reason.NON_FINITE)
        inside = [j.clip(x) for j, x in zip(self._joints, p, strict=True)]
        states = [
            j.follow(x, *((vx, ax) if x == asked else (0.0, 0.0)))
            for j, x, asked, vx, ax in zip(self._joints, inside, p, v, a, strict=True)
        ]
        answer = self._send_if_clear(states)
        if answer.verdict is Verdict.REJECTED:
            return answer
        if inside != p:
            return answer._replace(verdict=Verdict.LIMITED, reason=Reason.RANGE)
        if max(abs(state[0] - asked) for state, asked in zip(states, p, strict=True)) > OK_RAD:
            return answer._replace(verdict=Verdict.LIMITED, reason=Reason.MOTION)
        return answer

    def approach(self, positions: np.ndarray) -> Answer:
        """The setpoint of this tick on the way to rest at ``positions`` (J,) rad, slowly: OK once it is there."""
        p = positions.tolist()
        if not all(map(isfinite, p)):
            return self._send([j.brake() for j in self._joints], Verdict.REJECTED, Reason.NON_FINITE)
        inside = [j.clip(x) for j, x in zip(self._joints, p, strict=True)]
        answer = self._send_if_clear([j.approach(x) for j, x in zip(self._joints, inside, strict=True)])
        if answer.verdict is Verdict.REJECTED or (self.at_rest and inside == p):
            return answer
        reason = Reason.RANGE if inside != p else Reason.MOTION
        return answer._replace(verdict=Verdict.LIMITED, reason=reason)

    def stop(self) -> Answer:
        """The setpoint of this tick on the quickest way to rest; at rest, the last one again."""
        return self._send([j.brake() for j in self._joints], Verdict.OK, Reason.NONE)

    def _send_if_clear(self, states: list[State]) -> Answer:
        """Send ``states`` unless they, or the stop from them, leave the workspace or bring links too near."""
        if self._clearance is not None:
            stops = [(state, j.braking(*state[1:])) for j, state in zip(self._joints, states, strict=True)]

            def path(after_s: float) -> list[float]:
                return [along(state, pieces, after_s)[0] for state, pieces in stops]

            duration = max(sum(s for _, s in pieces) for _, pieces in stops)
            blocked = self._clearance.blocked(path, duration)
            if blocked:
                reason = Reason.WORKSPACE if blocked == "workspace" else Reason.SELF_DISTANCE
                return self._send([j.brake() for j in self._joints], Verdict.REJECTED, reason)
        return self._send(states, Verdict.OK, Reason.NONE)

    def _send(self, states: list[State], verdict: Verdict, reason: Reason) -> Answer:
        if not self._begun:
            raise DeviceError("the limiter has not begun; call begin with where the arm is")
        for joint, state in zip(self._joints, states, strict=True):
            joint.state = state
        if self._clearance is not None:
            self._clearance.moved([state[0] for state in states])
        self._sent.positions[:], self._sent.velocities[:], self._sent.accelerations[:] = zip(*states, strict=True)
        return Answer(self._sent, verdict, reason)


def _end_braking(info: ArmInfo) -> list[list[EndBraking]]:
    """For each joint: what ``limits.velocity_range`` looks up."""
    known = LIMITS.get(info.model, {})
    published = [known[info.firmware]] if info.firmware in known else list(known.values())
    found = {p.braking for p in published if p.braking}
    return [
        [EndBraking(b.offset[j], b.deceleration[j], b.low[j], b.high[j]) for b in found] for j in range(info.joints)
    ]
