"""A person moves the arm while a policy would: what the teleoperator wants, as targets of the arm.

Nothing jumps at a take-over. A leader arm stands elsewhere than its follower: its *changes* count, from the instant of
the take-over on. So do those of a hand (phone, VR controller): its displacement since the clutch was taken moves the
tool from where it was then. A twist (SpaceMouse, gamepad, keyboard) is a change anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_deploy.rotations import conjugate, exp, product, rotated, unit
from robolearn_deploy.stall import TELEOPERATOR_NS as STALE_NS
from robolearn_deploy.tracking import Tracker
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import ArmInfo, DeviceError, Intent, LimitError
from robolearn_hardware.kinematics import DifferentialIK, Kinematics, Pose, Twist, pose_error
from robolearn_hardware.ring import Field

JUMP_M, JUMP_RAD = 0.1, 0.5
"""A displacement that changes by more from one reading to the next is an error of tracking. It is not followed until
the clutch is taken again."""
_THERE_M, _THERE_RAD = 1e-4, 1e-3
"""So near to where the hand wants it, the tool stays: a joint too many would creep towards the middle of its range."""
_SHORTEST_S = 1e-3


def intent_fields(joints: int) -> dict[str, Field]:
    """The ring record in which a teleoperator's process publishes what a person wants."""
    return {
        "capture_ns": ("i8", ()),
        "enabled": ("u1", ()),
        "positions": ("f8", (joints,)),  # NaN without
        "twist": ("f8", (6,)),  # NaN without
        "tool_axes": ("u1", ()),
        "displacement": ("f8", (6,)),  # NaN without
        "clutch": ("i8", ()),
        "gripper": ("f8", ()),
    }


def intent_record(intent: Intent, joints: int) -> Mapping[str, Any]:
    """``intent`` as such a record.

    Raises:
        DeviceError: a leader of another number of joints.
    """
    positions = np.full(joints, np.nan) if intent.positions is None else intent.positions
    if positions.shape != (joints,):
        raise DeviceError(f"a leader of {len(positions)} joints cannot move an arm of {joints}; they must be of a kind")
    return {
        "capture_ns": intent.capture_ns,
        "enabled": intent.enabled,
        "positions": positions,
        "twist": np.full(6, np.nan) if intent.twist is None else intent.twist,
        "tool_axes": intent.tool_axes,
        "displacement": np.full(6, np.nan) if intent.displacement is None else intent.displacement,
        "clutch": intent.clutch,
        "gripper": intent.gripper,
    }


class TakeOver:
    """Targets of one arm while a person moves it."""

    def __init__(self, arm: ArmInfo) -> None:
        self._limits, self._model, self._firmware = arm.limits, arm.model, arm.firmware
        self._ik: DifferentialIK | None = None
        self._target = np.zeros(arm.joints)
        self._gripper = np.nan
        self._leader: np.ndarray | None = None
        self._hand: Hand | None = None
        self._capture_ns = self._asked_ns = 0
        self.tracker = Tracker(arm.limits)
        """Of the targets, reading by reading."""

    def prepare(self) -> None:
        """Make ready for twists and displacements: too long for a tick. An arm without a kinematic model does not
        follow them."""
        with contextlib.suppress(DeviceError):
            self._ik = DifferentialIK(Kinematics(self._model), limits=self._limits, firmware=self._firmware)

    def begin(self, positions: np.ndarray, gripper: float) -> None:
        """Changes count from ``positions`` (J,) rad, where the arm comes to rest, its gripper at ``gripper``."""
        self._target, self._gripper = positions.copy(), gripper
        self._leader = self._hand = None
        self._capture_ns = 0
        self.tracker.begin(positions)

    def rest(self, positions: np.ndarray) -> None:
        """Nobody holds the arm, which comes to rest at ``positions`` (J,) rad: from there they go on."""
        self._target = positions.copy()
        self.tracker.begin(positions)

    def target(self, record: np.void | None, now_ns: int) -> tuple[np.ndarray, float, bool]:
        """Joint targets (J,), gripper, and whether somebody holds the deadman. Without, the targets mean nothing: the
        arm stops, and ``rest`` is to be told where.

        Args:
            record: the newest of the ring, None while there is none.
        """
        since_s = min(now_ns - self._asked_ns, STALE_NS) / SECOND_NS
        self._asked_ns = now_ns
        capture_ns = 0 if record is None else int(record["capture_ns"])
        stale = now_ns - capture_ns > STALE_NS
        if record is None or not record["enabled"] or stale:
            self._leader = self._hand = None  # whoever comes back takes over from where they are then
            self._capture_ns = 0 if stale else capture_ns  # a twist counts from here
            return self._target, self._gripper, False
        if np.isfinite(record["positions"]).all():
            leader = record["positions"]
            if self._leader is not None:
                moved = self._target + (leader - self._leader)
                self._target = np.clip(moved, self._limits.low, self._limits.high)
            self._leader = leader.copy()
        elif self._ik is not None and np.isfinite(record["displacement"]).all():
            clutch = int(record["clutch"])
            if self._hand is None or self._hand.clutch != clutch:
                tool = self._ik.kinematics.forward(self._target)
                self._hand = Hand(clutch, tool, record["displacement"].copy(), record["displacement"].copy())
            pose = self._hand.moved(record["displacement"])
            if pose is None:
                return self._target, self._gripper, False
            distance, angle = pose_error(self._ik.kinematics.forward(self._target), pose)
            if distance > _THERE_M or angle > _THERE_RAD:
                self._step(self._ik, pose, since_s)
        elif self._ik is not None and np.isfinite(record["twist"]).all() and 0 < self._capture_ns < capture_ns:
            since_s = min(capture_ns - self._capture_ns, STALE_NS) / SECOND_NS
            if record["twist"].any():  # without, a joint too many would creep
                self._step(self._ik, self._twist(self._ik, record), since_s)
        if capture_ns > self._capture_ns:
            self.tracker.measure(capture_ns, self._target, now_ns)
        self._capture_ns = capture_ns
        if np.isfinite(record["gripper"]):
            self._gripper = float(np.clip(record["gripper"], 0, 1))
        return self._target, self._gripper, True

    def _twist(self, ik: DifferentialIK, record: np.void) -> Twist:
        parts = record["twist"][:3], record["twist"][3:]
        if record["tool_axes"]:
            turn = ik.kinematics.forward(self._target).quaternion
            parts = rotated(turn, parts[0]), rotated(turn, parts[1])
        return Twist(*parts)

    def _step(self, ik: DifferentialIK, towards: Pose | Twist, since_s: float) -> None:
        with contextlib.suppress(LimitError):  # no step that way: it stays
            self._target = ik.step(self._target, towards, max(since_s, _SHORTEST_S))


@dataclass(eq=False)
class Hand:
    """A hand that moves the tool since a clutch was taken."""

    clutch: int
    tool: Pose
    """Where the tool was then."""
    start: np.ndarray
    last: np.ndarray
    """(6,) displacements: the first and the newest that this has seen."""
    lost: bool = False

    def moved(self, displacement: np.ndarray) -> Pose | None:
        """Where the tool shall be; None after a jump."""
        step = displacement - self.last
        self.lost |= bool(np.linalg.norm(step[:3]) > JUMP_M or np.linalg.norm(step[3:]) > JUMP_RAD)
        if self.lost:
            return None
        self.last = displacement.copy()
        turn = product(exp(displacement[3:]), conjugate(exp(self.start[3:])))
        return Pose(self.tool.position + displacement[:3] - self.start[:3], unit(product(turn, self.tool.quaternion)))
