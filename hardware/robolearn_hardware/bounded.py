"""An arm within the limits that its rig sets: narrower than what its maker publishes, and never wider.

limits:
  follower:
    joints: {shoulder_lift: [-1.2, 1.0]}      # rad; the others keep the published range
    speed: 0.5                                # share of the published velocities
    workspace_low: [0.05, -0.3, 0.0]          # m, base frame, of the tool centre
    workspace_high: [0.4, 0.3, 0.4]
    floor: 0.03                               # m, of the tool centre and the joints from the third on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from robolearn_hardware.devices import Arm, ArmInfo, ArmState, DeviceError, LimitError
from robolearn_hardware.kinematics import Kinematics, Workspace
from robolearn_hardware.limits import narrowed

_OUTSIDE_RAD = 0.05
"""How far outside these limits a joint may stand at connect, as a driver allows for its own."""
_CLOSER_M = 1e-6


@dataclass(frozen=True)
class ArmBounds:
    """What a rig file says of one arm's limits."""

    joints: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Joint name -> lowest and highest position, rad."""
    speed: float = 1.0
    """Share of the published velocities, above 0."""
    workspace_low: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    workspace_high: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    floor: float = -np.inf
    """The three as of ``kinematics.Workspace``."""

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise ValueError(f"speed must lie above 0 and up to 1, got {self.speed:g}")
        if not np.less(self.workspace_low, self.workspace_high).all():
            raise ValueError(f"a workspace from {self.workspace_low} to {self.workspace_high} m is empty")

    @property
    def workspace(self) -> Workspace | None:
        """None where it is not bounded."""
        bounded = np.isfinite([*self.workspace_low, *self.workspace_high, self.floor]).any()
        return Workspace(self.workspace_low, self.workspace_high, self.floor) if bounded else None

    def apply(self, info: ArmInfo) -> ArmInfo:
        """``info`` with these limits.

        Raises:
            DeviceError: a joint that it does not have, or nothing is left of a joint's range.
        """
        unknown = set(self.joints) - set(info.joint_names)
        if unknown:
            raise DeviceError(
                f"{info.name}: the rig limits {', '.join(map(repr, sorted(unknown)))}, no joint of it; "
                f"valid: {', '.join(info.joint_names)}"
            )
        published = info.limits
        ranges = [self.joints.get(name, (-np.inf, np.inf)) for name in info.joint_names]
        low, high = np.array(ranges).T
        try:
            limits = narrowed(
                published, dataclasses.replace(published, low=low, high=high, velocity=self.speed * published.velocity)
            )
        except DeviceError as error:
            raise DeviceError(f"{info.name}, limits in the rig: {error}") from None
        return dataclasses.replace(info, limits=limits)


class BoundedArm:
    """An ``Arm`` that refuses, with LimitError, what lies outside its bounds; otherwise the arm in it.

    A command may leave the workspace no further than the command before it, or at first the arm itself, so that an arm
    that stands outside can come back.
    """

    def __init__(self, arm: Arm, bounds: ArmBounds) -> None:
        """
        Raises:
            DeviceError: as ``ArmBounds.apply``; a workspace for an arm that has no kinematic model.
        """
        self._arm, self._bounds = arm, bounds
        self.info = bounds.apply(arm.info)
        workspace = bounds.workspace
        self._workspace = workspace or Workspace()
        self._kinematics = Kinematics(arm.info.model) if workspace else None
        self._outside: np.ndarray | None = None

    def connect(self) -> None:
        self._arm.connect()
        self.info = self._bounds.apply(self._arm.info)
        self._outside = None
        try:
            positions = self._arm.state().positions
            self.info.limits.check(f"{self.info.name}, where it stands", positions, slack=_OUTSIDE_RAD)
        except LimitError as error:
            self._arm.close()
            raise DeviceError(f"{error} (limits of the rig file); move it back by hand, then connect") from None
        except DeviceError:
            self._arm.close()
            raise

    def state(self) -> ArmState:
        return self._arm.state()

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        wanted = self.info.limits.check(self.info.name, positions)
        if self._kinematics is None:
            self._arm.command(wanted, gripper, effect_ns=effect_ns)
            return
        if self._outside is None:
            self._outside = self._kinematics.outside(self._arm.state().positions, self._workspace)
        outside = self._kinematics.outside(wanted, self._workspace)
        if (outside > self._outside + _CLOSER_M).any():
            tool = self._kinematics.forward(wanted).position.round(3)
            raise LimitError(
                f"{self.info.name}: a command puts the tool at {tool} m, {1000 * outside.max():.0f} mm outside the "
                "workspace of the rig file (or a joint below its floor); the arm keeps its last target"
            )
        self._arm.command(wanted, gripper, effect_ns=effect_ns)
        self._outside = outside

    def hold(self) -> None:
        self._outside = None
        self._arm.hold()

    def release(self) -> None:
        self._outside = None
        self._arm.release()

    def recover(self) -> None:
        self._outside = None
        self._arm.recover()

    def close(self) -> None:
        self._arm.close()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
