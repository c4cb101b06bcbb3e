"""A person moves the arm while a policy would: what the teleoperator wants, as targets of the arm.

Nothing jumps at a take-over. A leader arm stands elsewhere than its follower: its *changes* count, from the instant of
the take-over on. A twist (SpaceMouse, gamepad, page) is a change anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import ArmInfo, DeviceError, Intent, LimitError
from robolearn_hardware.kinematics import DifferentialIK, Kinematics, Twist
from robolearn_hardware.ring import Field

STALE_NS = SECOND_NS // 5
"""A teleoperator that has said nothing for so long is not followed any more: the arm holds."""


def intent_fields(joints: int) -> dict[str, Field]:
    """The ring record in which a teleoperator's process publishes what a person wants."""
    return {
        "capture_ns": ("i8", ()),
        "enabled": ("u1", ()),
        "positions": ("f8", (joints,)),  # NaN without
        "twist": ("f8", (6,)),  # NaN without
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
        self._capture_ns = 0

    def prepare(self) -> None:
        """Make ready for twists: too long for a tick. An arm without a kinematic model does not follow them."""
        with contextlib.suppress(DeviceError):
            self._ik = DifferentialIK(Kinematics(self._model), limits=self._limits, firmware=self._firmware)

    def begin(self, positions: np.ndarray, gripper: float) -> None:
        """The arm is at ``positions`` (J,) rad as last commanded, its gripper at ``gripper``."""
        self._target, self._gripper, self._leader = positions.copy(), gripper, None

    def target(self, record: np.void | None, now_ns: int) -> tuple[np.ndarray, float, bool]:
        """Joint targets (J,), gripper, and whether somebody holds the deadman; without, the target stays.

        Args:
            record: the newest of the ring, None while there is none.
        """
        if record is None or not record["enabled"] or now_ns - int(record["capture_ns"]) > STALE_NS:
            self._leader = None  # a clutch: the leader may move on its own and takes over from where it is then
            return self._target, self._gripper, False
        capture_ns = int(record["capture_ns"])
        if np.isfinite(record["positions"]).all():
            leader = record["positions"]
            if self._leader is not None:
                moved = self._target + (leader - self._leader)
                self._target = np.clip(moved, self._limits.low, self._limits.high)
            self._leader = leader.copy()
        elif self._ik is not None and np.isfinite(record["twist"]).all() and capture_ns > self._capture_ns:
            since_s = min(capture_ns - self._capture_ns, STALE_NS) / SECOND_NS
            twist = Twist(record["twist"][:3], record["twist"][3:])
            with contextlib.suppress(LimitError):  # no step that way: it stays
                self._target = self._ik.step(self._target, twist, max(since_s, 1e-3))
        self._capture_ns = capture_ns
        if np.isfinite(record["gripper"]):
            self._gripper = float(np.clip(record["gripper"], 0, 1))
        return self._target, self._gripper, True
