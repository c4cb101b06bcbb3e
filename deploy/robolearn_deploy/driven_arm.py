"""One arm of the servo loop: its plan, its limits, and the one setpoint that it is sent at each tick."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from robolearn_deploy.limiter import Limiter, Reason, Verdict
from robolearn_deploy.selfdistance import SelfDistance
from robolearn_deploy.stall import Duty
from robolearn_deploy.takeover import TakeOver
from robolearn_deploy.trajectory import Spaces, Trajectory
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Arm, ArmState, Condition, DeviceError, DeviceGoneError
from robolearn_hardware.kinematics import Workspace
from robolearn_hardware.motion import Setpoint


@dataclass(frozen=True)
class ServoOptions:
    rate_hz: float | None = None
    """Ticks a second; by default what the slowest arm of the rig can do."""
    fifo: bool = True
    """Ask for real-time priority and locked memory."""
    core: int | None = None
    """To run on; by default any."""
    near_rad: float = 0.1
    """A plan begins where the arm is if no joint is farther from it than that."""
    approach: bool = True
    """Move slowly to where a plan begins; otherwise a person must resume."""
    approach_speed: float = 0.15
    """Share of the limits."""
    hold_s: float = 0.1
    """See ``stall``."""
    blend_s: float = 0.1
    """See ``trajectory``."""
    min_distance_m: float | None = 0.005
    """Between links of one arm that are not neighbours; None: not looked at. Arms without a model: not looked at."""
    reset: tuple[float, ...] | None = None
    """(N,) of the rig's vector: where RESET goes; by default where the arms were at the beginning."""


class DrivenArm:
    """One arm, its plan and its limits."""

    def __init__(
        self, arm: Arm, workspace: Workspace | None, latency_ns: int, options: ServoOptions, rate_hz: float
    ) -> None:
        self.arm, self.info, self.latency_ns = arm, arm.info, latency_ns
        self._options = options
        info = arm.info
        self.spaces = Spaces(info.joints + info.has_gripper, grippers=(info.joints,) if info.has_gripper else ())
        self.state = arm.state()
        self.limiter = Limiter(
            info,
            rate_hz,
            workspace=workspace,
            self_distance=_self_distance(info.model, options.min_distance_m),
            approach_speed=options.approach_speed,
        )
        self.trajectory: Trajectory
        self.takeover = TakeOver(info)
        self.gripper = self.state.gripper
        self.requested = self.vector(self.state)
        self.limited = self.sent = self.requested.copy()
        self.verdict, self.reason = Verdict.OK, Reason.NONE
        self.person = False
        self._actions: deque[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = deque(
            maxlen=2 + math.ceil(latency_ns * rate_hz / SECOND_NS)
        )  # (when it takes effect, requested, limited, sent), oldest first
        self.begin()
        self._actions.append((0, self.requested, self.limited, self.sent))

    def begin(self) -> None:
        """From where it is, at rest."""
        positions = np.clip(self.state.positions, self.info.limits.low, self.info.limits.high)
        self.limiter.begin(positions)
        self.gripper = self.state.gripper
        self.limited = self.sent = self.join(positions)

    def plan(self, horizon: int, period: int) -> None:
        self.trajectory = Trajectory(self.spaces, horizon, period, blend_s=self._options.blend_s)
        self.trajectory.begin(-1, self.sent)

    def join(self, positions: np.ndarray) -> np.ndarray:
        return np.append(positions, self.gripper) if self.info.has_gripper else np.array(positions)

    def vector(self, state: ArmState) -> np.ndarray:
        return np.append(state.positions, state.gripper) if self.info.has_gripper else state.positions.copy()

    def settle(self) -> None:
        """Read until the reading is new, a few times: packets get lost while processes start."""
        for _ in range(5):
            self.read()
            if self.state.condition is Condition.READY:
                return

    def read(self) -> None:
        """An arm that is gone is DISCONNECTED and stays where it was last."""
        try:
            self.state = self.arm.state()
        except DeviceGoneError as error:
            self._gone(error)
        except DeviceError:  # no answer in time: it may answer the next time
            self.state = dataclasses.replace(self.state, condition=Condition.DEGRADED)

    def _gone(self, error: DeviceGoneError) -> None:
        """From then on the driver says only that it is not connected."""
        if self.state.condition is not Condition.DISCONNECTED:
            self.state = dataclasses.replace(self.state, condition=Condition.DISCONNECTED, fault=str(error))

    def near(self, at_ns: int) -> bool:
        return self.trajectory.distance(at_ns, self.sent) <= self._options.near_rad

    def in_effect(self, time_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was requested, left by the limits and sent, for ``time_ns``: a command takes effect after the latency of
        the arm, and a recorded action belongs to the instant of its effect."""
        found = next((action for action in reversed(self._actions) if action[0] <= time_ns), self._actions[0])
        return found[1:]

    def drive(self, duty: Duty, anew: bool, at_ns: int, intent: np.void | None, reset: np.ndarray | None) -> None:
        """Decide and send one setpoint for the instant ``at_ns``."""
        self._decide(duty, anew, at_ns, intent, reset)
        self._actions.append((at_ns, self.requested, self.limited, self.sent))

    def _decide(self, duty: Duty, anew: bool, at_ns: int, intent: np.void | None, reset: np.ndarray | None) -> None:
        joints = self.info.joints
        self.verdict, self.reason, self.person = Verdict.OK, Reason.NONE, False
        if duty is Duty.SILENT:
            self.begin()
            self.requested = self.sent.copy()
            return
        last = self.limiter.sent
        gripper = self.gripper
        match duty:
            case Duty.FOLLOW:
                if anew:
                    self._restart(at_ns, last)
                target = self.trajectory.at(at_ns)
                self.requested = target.positions.copy()
                gripper = target.positions[joints] if self.info.has_gripper else np.nan
                answer = self.limiter.follow(*(part[:joints] for part in target))
            case Duty.APPROACH:
                self.requested = self.trajectory.pose(at_ns).copy()
                answer = self.limiter.approach(self.requested[:joints])
            case Duty.TELEOP:
                if anew:
                    self.takeover.begin(self.limiter.stop_positions, self.gripper)
                positions, gripper, self.person = self.takeover.target(intent, now_ns())
                if self.person:
                    towards = self.takeover.tracker.follow(at_ns - self.latency_ns, last, self.limiter.dt_s)
                    answer = self.limiter.stop() if towards is None else self.limiter.follow(*towards)
                    if towards is None:  # nothing new was heard: they go on from where it stops
                        self.takeover.tracker.rest(self.limiter.stop_positions)
                else:  # let go: what has not been followed yet is forgotten
                    answer = self.limiter.stop()
                    positions = self.limiter.stop_positions
                    self.takeover.rest(positions)
                self.requested = np.append(positions, gripper) if self.info.has_gripper else positions.copy()
            case _ if reset is not None and duty is Duty.STAY:
                self.requested = reset.copy()
                gripper = reset[joints] if self.info.has_gripper else np.nan
                answer = self.limiter.approach(reset[:joints])
            case _:
                answer = self.limiter.stop()
                self.requested = self.join(answer.setpoint.positions)
        self.verdict, self.reason = answer.verdict, answer.reason
        if self.info.has_gripper and np.isfinite(gripper):
            self.gripper = float(np.clip(gripper, 0, 1))
        self._send(answer.setpoint.positions, at_ns)

    def _restart(self, at_ns: int, last: Setpoint) -> None:
        if self.info.has_gripper:
            last = Setpoint(
                np.append(last.positions, self.gripper), np.append(last.velocities, 0), np.append(last.accelerations, 0)
            )
        self.trajectory.restart(at_ns, last)

    def _send(self, positions: np.ndarray, at_ns: int) -> None:
        self.limited = self.join(positions)
        gripper = self.gripper if self.info.has_gripper and np.isfinite(self.gripper) else None
        try:
            self.arm.command(positions, gripper, effect_ns=at_ns)
            self.sent = self.limited
        except DeviceGoneError as error:
            self._gone(error)
        except DeviceError:  # it has stopped since it was read: its next reading says why
            pass


def _self_distance(model: str, minimum_m: float | None) -> SelfDistance | None:
    if minimum_m is None:
        return None
    try:
        return SelfDistance(model, minimum_m=minimum_m)
    except DeviceError:  # no model of that arm
        return None
