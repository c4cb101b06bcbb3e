"""What a person wants (``devices.Intent``), as the action of a simulated world: a small class for each kind of action.

No deadman, no motion: without it the action is the one that keeps the world's tool where it is. Nothing jumps: whatever
is wanted, the tool goes there no faster than the speed stated. No clock and no process: what is wanted comes in as a
record of ``takeover.intent_fields``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn_data.schema import Observation, SchemaError
from robolearn_data.world import WorldSpec
from robolearn_deploy.rotations import conjugate, exp, log, product
from robolearn_deploy.takeover import STALE_NS, Hand, TakeOver
from robolearn_hardware.devices import ArmInfo
from robolearn_hardware.kinematics import Pose

_STILL = np.array((1.0, 0.0, 0.0, 0.0))


class Driver(Protocol):
    """Makes the actions while a person is in charge."""

    def begin(self, observation: Observation, action: np.ndarray | None = None) -> None:
        """From here on, at ``observation``. ``action``: what was carried out last; None at the start of an episode."""
        ...

    def action(self, record: np.void | None, now_ns: int, observation: Observation) -> tuple[np.ndarray, bool]:
        """The action of a control period, and whether the deadman is held.

        Args:
            record: the newest of the ring of intents, None while there is none.
            observation: of now.
        """
        ...


class WorldTeleop(Protocol):
    """How a person moves a world. It can be pickled."""

    @property
    def positions(self) -> int:
        """How many values the field "positions" of its intents has."""
        ...

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Top left and bottom right of the plane that "positions" are in, where the world's picture shows it from
        straight above."""
        ...

    def driver(self, spec: WorldSpec) -> Driver:
        """Raises SchemaError: it does not fit the world."""
        ...


def held(record: np.void | None, now_ns: int) -> bool:
    """The deadman is held, and whoever holds it has said so lately."""
    return record is not None and bool(record["enabled"]) and now_ns - int(record["capture_ns"]) <= STALE_NS


@dataclass(frozen=True)
class PlanarTarget:
    """The action is where a tool in a plane shall be, as in PushT: x to the right and y down, as in its picture.

    "positions" of an intent are such a place: what a pointer in the picture points at.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    """The plane's corners, in the unit of the action."""
    speed: float
    """The target moves no faster, in that unit a second."""
    per_metre: float
    """That unit for a metre of a twist or a displacement; forward (x) is up in the picture, left (y) is left."""
    positions: int = 2

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return self.low, self.high

    def driver(self, spec: WorldSpec) -> Driver:
        return _PlanarDriver(self, spec)


class _PlanarDriver:
    def __init__(self, plane: PlanarTarget, spec: WorldSpec) -> None:
        action, state = spec.schema.stream("action"), spec.schema.stream("state").names
        if not action.names or not set(action.names) <= set(state):
            raise SchemaError(
                f"the state of the world {spec.name!r} does not say where the tool is that a person moves"
            )
        self._plane, self._rate_hz, self._dtype = plane, spec.schema.rate_hz, action.dtype
        self._where = [state.index(name) for name in action.names]
        self._target = self._base = np.zeros(2)
        self._held = False
        self._hand: Hand | None = None

    def begin(self, observation: Observation, action: np.ndarray | None = None) -> None:
        self._stay(observation)

    def action(self, record: np.void | None, now_ns: int, observation: Observation) -> tuple[np.ndarray, bool]:
        if record is None or not held(record, now_ns):
            if self._held:  # let go
                self._stay(observation)
            return self._target.astype(self._dtype), False
        if not self._held:
            self._stay(observation)
            self._held = True
        step, most = self._wanted(record), self._plane.speed / self._rate_hz
        step = step * min(1.0, most / max(float(np.linalg.norm(step)), 1e-12))
        self._target = np.clip(self._target + step, self._plane.low, self._plane.high)
        return self._target.astype(self._dtype), True

    def _stay(self, observation: Observation) -> None:
        where = observation["state"][self._where].astype(np.float64)
        self._target, self._held, self._hand = np.clip(where, self._plane.low, self._plane.high), False, None

    def _wanted(self, record: np.void) -> np.ndarray:
        """From the target of before to the one that is wanted, (2,)."""
        if np.isfinite(record["positions"]).all():
            return record["positions"] - self._target
        if np.isfinite(record["displacement"]).all():
            if self._hand is None or self._hand.clutch != int(record["clutch"]):
                self._hand, self._base = _hand(record), self._target
            pose = self._hand.moved(record["displacement"])
            return np.zeros(2) if pose is None else self._base + self._in_plane(pose.position) - self._target
        if np.isfinite(record["twist"]).all():
            return self._in_plane(record["twist"][:3] / self._rate_hz)
        return np.zeros(2)

    def _in_plane(self, move_m: np.ndarray) -> np.ndarray:
        return -self._plane.per_metre * move_m[[1, 0]]


@dataclass(frozen=True)
class ToolDelta:
    """The action is a displacement and a rotation vector of the tool from where it is, as shares of the most that one
    period allows, and a gripper that closes above 0: robosuite's operational-space control.

    "positions" are not used: a leader arm has no joints to mirror here.
    """

    speed_m_s: float
    """Of the tool at a full action. A controller that is always behind its goal moves slower than the goal does: this
    is what it does, not what the action's unit says."""
    turn_rad_s: float
    positions: int = 1
    corners: None = None

    def driver(self, spec: WorldSpec) -> Driver:
        return _ToolDriver(self, spec)


class _ToolDriver:
    def __init__(self, tool: ToolDelta, spec: WorldSpec) -> None:
        action = spec.schema.stream("action")
        if action.shape != (7,) or action.relative != tuple(range(6)):
            raise SchemaError(f"the world {spec.name!r} is not moved by displacements of a tool and a gripper")
        self._full = np.array([tool.speed_m_s] * 3 + [tool.turn_rad_s] * 3) / spec.schema.rate_hz
        self._rate_hz, self._dtype = spec.schema.rate_hz, action.dtype
        self._close = -1.0
        self._hand: Hand | None = None
        self._position, self._quaternion = np.zeros(3), _STILL

    def begin(self, observation: Observation, action: np.ndarray | None = None) -> None:
        self._close = -1.0 if action is None else float(action[6])
        self._hand = None

    def action(self, record: np.void | None, now_ns: int, observation: Observation) -> tuple[np.ndarray, bool]:
        share, enabled = np.zeros(6), held(record, now_ns)
        if record is None or not enabled:
            self._hand = None
        else:
            share = self._wanted(record) / self._full
            for part in (share[:3], share[3:]):  # views: what is too fast keeps its direction
                part /= max(1.0, float(np.linalg.norm(part)))
            self._move(share * self._full)
            if np.isfinite(record["gripper"]):
                self._close = 1.0 if record["gripper"] < 0.5 else -1.0
        return np.array([*share, self._close], self._dtype), enabled

    def _wanted(self, record: np.void) -> np.ndarray:
        """Move (m) and turn (rad) of this period, (6,)."""
        if np.isfinite(record["displacement"]).all():
            if self._hand is None or self._hand.clutch != int(record["clutch"]):
                self._hand = _hand(record)
                self._position, self._quaternion = np.zeros(3), _STILL
            pose = self._hand.moved(record["displacement"])
            if pose is None:
                return np.zeros(6)
            turn = log(product(pose.quaternion, conjugate(self._quaternion)))
            return np.concatenate([pose.position - self._position, turn])
        if np.isfinite(record["twist"]).all():
            return record["twist"] / self._rate_hz
        return np.zeros(6)

    def _move(self, step: np.ndarray) -> None:
        """What was asked of the tool since the clutch was taken: the rest of what the hand wants comes later."""
        self._position = self._position + step[:3]
        self._quaternion = product(exp(step[3:]), self._quaternion)


@dataclass(frozen=True)
class JointTargets:
    """The action is where the joints of an arm, then its gripper (0 closed, 1 open), shall be: as on a rig, and driven
    as there (``takeover.TakeOver``), by leader arms too."""

    arm: ArmInfo

    @property
    def positions(self) -> int:
        return self.arm.joints

    @property
    def corners(self) -> None:
        return None

    def driver(self, spec: WorldSpec) -> Driver:
        return _JointDriver(self.arm, spec)


class _JointDriver:
    def __init__(self, arm: ArmInfo, spec: WorldSpec) -> None:
        action, state = spec.schema.stream("action"), spec.schema.stream("state").names
        names = (*arm.joint_names, "gripper")
        if action.names != names or not set(names) <= set(state):
            raise SchemaError(f"the world {spec.name!r} is not moved by the joints of an arm {arm.model!r}")
        self._dtype = action.dtype
        self._where = [state.index(name) for name in names]
        self._most = arm.limits.velocity / spec.schema.rate_hz
        self._takeover = TakeOver(arm)
        self._takeover.prepare()
        self._sent = np.zeros(len(names))

    def begin(self, observation: Observation, action: np.ndarray | None = None) -> None:
        start = observation["state"][self._where] if action is None else action
        self._sent = start.astype(np.float64)
        self._takeover.begin(self._sent[:-1], float(self._sent[-1]))

    def action(self, record: np.void | None, now_ns: int, observation: Observation) -> tuple[np.ndarray, bool]:
        if not held(record, now_ns):  # what the arm is behind, it shall not catch up with
            self._takeover.begin(self._sent[:-1], float(self._sent[-1]))
            return self._sent.astype(self._dtype), False
        joints, gripper, enabled = self._takeover.target(record, now_ns)
        step = np.clip(joints - self._sent[:-1], -self._most, self._most)
        self._sent = np.append(self._sent[:-1] + step, gripper)
        return self._sent.astype(self._dtype), enabled


def _hand(record: np.void) -> Hand:
    """A hand that has just taken the clutch; where its tool is counts as the origin."""
    start = record["displacement"].copy()
    return Hand(int(record["clutch"]), Pose(np.zeros(3), _STILL), start, start)
