"""What a device is to the rest of the stack: arms, cameras, force sensors, teleoperators; real, twin or simulated.

Units are SI: metres, radians, newtons, seconds; instants are ns of CLOCK_MONOTONIC. Rotations are unit quaternions
(w, x, y, z). J = number of joints, without the gripper.

A driver is used by one thread. Nothing in it waits longer than the deadline that its docstring names: what does not
answer by then is an error or a named condition, never a hang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

import numpy as np

from robolearn_data.schema import UserError


class DeviceError(UserError):
    """A device did not do what was asked. The message names the device, what happened, and what to do about it."""


class DeviceTimeoutError(DeviceError):
    """It did not answer in time. It may answer the next time."""


class DeviceGoneError(DeviceError):
    """It is unplugged, or its connection has broken. ``connect`` again when it is back."""


class NotReadyError(DeviceError):
    """It is there and refuses: a protective stop, an emergency stop, brakes, another program in control."""


class LimitError(DeviceError):
    """A command that the device must not be given: NaN, a wrong shape, a position outside its limits."""


class Condition(IntEnum):
    """What an arm says of itself. Whatever is not READY or DEGRADED holds the arm where it is."""

    DISCONNECTED = 0
    READY = 1
    """It follows commands."""
    DEGRADED = 2
    """It follows commands, and the last reading is not new, or not of every joint: a packet was lost."""
    PROTECTIVE_STOP = 3
    """It stopped by itself (a collision, a limit, a late packet); ``recover`` brings it back."""
    EMERGENCY_STOP = 4
    """A person pressed the button, and a person must release it."""
    FAULT = 5
    """Over-temperature, overload, a motor that is silent; the message of ``recover`` says what."""
    RELEASED = 6
    """Its motors are off, or a person guides it by hand: it takes no commands."""


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Of each joint, (J,). Infinite where nothing is published."""

    low: np.ndarray
    """rad"""
    high: np.ndarray
    """rad"""
    velocity: np.ndarray
    """rad/s"""
    acceleration: np.ndarray
    """rad/s^2"""
    jerk: np.ndarray
    """rad/s^3"""

    @property
    def joints(self) -> int:
        return len(self.low)

    def check(self, name: str, positions: np.ndarray, *, slack: float = 1e-6) -> np.ndarray:
        """Return ``positions`` as (J,) float64.

        Raises:
            LimitError: a wrong shape, NaN or infinity, or a joint more than ``slack`` (rad) outside its limits.
        """
        array = np.asarray(positions, np.float64)
        if array.shape != self.low.shape:
            raise LimitError(f"{name}: a command has shape {array.shape}, the arm {self.low.shape}")
        if not np.isfinite(array).all():
            raise LimitError(f"{name}: a command holds NaN or infinity; the arm keeps its last target")
        wrong = np.flatnonzero((array < self.low - slack) | (array > self.high + slack))
        if wrong.size:
            j = int(wrong[0])
            raise LimitError(
                f"{name}: joint {j} is told to go to {array[j]:.3f} rad, its limits are {self.low[j]:.3f} to "
                f"{self.high[j]:.3f}; the arm keeps its last target"
            )
        return array


@dataclass(frozen=True)
class ArmInfo:
    """What an arm is; complete once it is connected."""

    name: str
    """In the rig."""
    model: str
    """"so101" or "ur5e": the key of ``limits.LIMITS`` and of ``kinematics``."""
    joint_names: tuple[str, ...]
    limits: JointLimits
    has_gripper: bool
    rate_hz: float
    """At which commands and readings make sense."""
    serial: str = ""
    firmware: str = ""

    @property
    def joints(self) -> int:
        return len(self.joint_names)


@dataclass(frozen=True, eq=False)
class ArmState:
    """One reading."""

    capture_ns: int
    """When the joints were there; the device's clock mapped to this machine's where it has one."""
    received_ns: int
    condition: Condition
    positions: np.ndarray
    """(J,) rad"""
    velocities: np.ndarray
    """(J,) rad/s"""
    efforts: np.ndarray
    """(J,) in the unit that the device has (N m, or A of motor current); NaN where it has none."""
    gripper: float = np.nan
    """0 closed, 1 open; NaN where there is none."""
    wrench: np.ndarray | None = None
    """(6,) force (N) and torque (N m) at the tool centre point, in the base frame; None where it has no such sensor."""
    temperatures: np.ndarray | None = None
    """(J,) deg C, as last read; None where they are not read."""
    fault: str = ""
    """Why it has stopped, in words, where its driver knows."""


class Arm(Protocol):
    """One arm and its gripper. Made unconnected; use it as a context manager or call ``close``."""

    info: ArmInfo

    def connect(self) -> None:
        """Find the device and make it ready for commands, without moving it. At most 10 s. May be called again after
        DeviceGoneError.

        Raises:
            DeviceError: it is not there, is another model, is in use, may not be opened, stands outside its limits.
            NotReadyError: it is there and stopped; ``recover`` may help.
        """
        ...

    def state(self) -> ArmState:
        """Read it now. At most 0.1 s. A reading that is not new has condition DEGRADED and its own capture time.

        Raises:
            DeviceGoneError: unplugged, or silent for longer than 0.5 s (a servo bus: 1 s, and to five readings).
        """
        ...

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        """Go to joint ``positions`` (J,) rad, to be there at ``effect_ns`` (0: as soon as it can). Does not wait.

        Where the device interpolates by itself, it is told to be there by then; where it only takes goals, the goal is
        written at once. When no command comes any more, it holds the last one.

        Raises:
            LimitError: not finite, a wrong shape, outside the limits. The arm keeps its last target.
            NotReadyError: it is stopped or released.
            DeviceGoneError: as ``state``.
        """
        ...

    def hold(self) -> None:
        """Stay where it is now."""
        ...

    def release(self) -> None:
        """Let a person move it: motors off, or hand guiding. Gravity may take it down."""
        ...

    def recover(self) -> None:
        """Come back from a protective stop, a fault or a reboot, without a jump: the target is where it stands. At most
        10 s.

        Raises:
            NotReadyError: it cannot, and the message says what a person must do.
        """
        ...

    def close(self) -> None:
        """Leave it held and let go of it. May be called twice."""
        ...


@dataclass(frozen=True, eq=False)
class CameraInfo:
    """What a camera is; complete once it is connected."""

    name: str
    width: int
    height: int
    rate_hz: float
    has_depth: bool = False
    serial: str = ""
    matrix: np.ndarray | None = None
    """(3, 3) intrinsics of the colour picture, pixels; None where they are not known."""
    distortion: np.ndarray | None = None
    """OpenCV's k1, k2, p1, p2, k3."""
    depth_m: float = 0.001
    """Metres per unit of depth."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture."""

    capture_ns: int
    """Middle of the exposure where the device tells it, otherwise when the first byte was there, less the latency that
    the rig states."""
    received_ns: int
    number: int
    """Counted by the device where it counts: a gap means lost frames."""
    colour: np.ndarray
    """(H, W, 3) uint8, RGB"""
    depth: np.ndarray | None = None
    """(H, W) uint16 in ``CameraInfo.depth_m``, aligned to the colour picture; 0 = not known."""


class Camera(Protocol):
    """One camera. ``cameras.CameraProcess`` runs it in a process of its own."""

    info: CameraInfo

    def connect(self) -> None:
        """Open it and let exposure and white balance settle. At most 10 s. Raises DeviceError."""
        ...

    def read(self) -> Frame:
        """The next picture; older ones that nobody fetched are skipped.

        Raises:
            DeviceTimeoutError: none came within 1 s.
            DeviceGoneError: it is unplugged.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Forces:
    """Samples of a force sensor since the last call, at its own rate. n may be 0."""

    capture_ns: np.ndarray
    """(n,) int64"""
    received_ns: np.ndarray
    """(n,) int64"""
    wrench: np.ndarray
    """(n, 6) force (N) and torque (N m) in the sensor's frame"""


class ForceSensor(Protocol):
    rate_hz: float

    def connect(self) -> None: ...

    def read(self) -> Forces:
        """What came since the last call; does not wait. Raises DeviceGoneError."""
        ...

    def tare(self) -> None:
        """Call what it measures now zero."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Intent:
    """What a person wants at one instant. One of ``positions``, ``twist`` and ``displacement`` is there."""

    capture_ns: int
    enabled: bool
    """The deadman is held: without it nothing moves."""
    positions: np.ndarray | None = None
    """(J,) rad, of a leader arm"""
    twist: np.ndarray | None = None
    """(6,) m/s and rad/s of the tool, along the axes of the base frame; or, with ``tool_axes``, along its own"""
    tool_axes: bool = False
    displacement: np.ndarray | None = None
    """(6,) how far the hand has come since ``clutch`` was taken, in the arm's base frame and scaled as the tool shall
    move: m, and a rotation vector in rad. A reading that is lost loses no motion, as one of ``twist`` does."""
    clutch: int = 0
    """Counts how often the deadman was taken: a ``displacement`` begins anew with each."""
    gripper: float = np.nan
    """0 closed, 1 open"""
    buttons: Mapping[str, bool] = field(default_factory=dict)


class Teleoperator(Protocol):
    """What a person holds."""

    def connect(self) -> None: ...

    def read(self) -> Intent:
        """What is wanted now. At most 0.1 s. Raises DeviceGoneError."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class ForceReflecting(Protocol):
    """A teleoperator that a person's hand can feel the follower through."""

    def feel(self, behind: np.ndarray) -> None:
        """How far (J,) rad the follower is from where this wants it. It resists until the follower follows, or says no
        more. Returns at once; it acts in ``read``."""
        ...
