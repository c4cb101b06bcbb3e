"""Any robot or teleoperator of LeRobot, plug-ins included, as an Arm or a Teleoperator. Needs robolearn[lerobot].

LeRobot's joints are the entries "<name>.pos" of its dictionaries, in degrees, and "gripper.pos" from 0 to 100. It tells
neither times nor limits: the middle of the call is taken for the capture, and limits are those of ``model`` where it is
named. It must have been calibrated with LeRobot's own command before.
"""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Self, TypeVar

import numpy as np

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import (
    ArmInfo,
    ArmState,
    Condition,
    DeviceError,
    DeviceGoneError,
    Intent,
    JointLimits,
    NotReadyError,
)
from robolearn_hardware.limits import limits_of
from robolearn_hardware.twins.host import Twins

Unit = Literal["deg", "rad"]
T = TypeVar("T")


@dataclass(frozen=True)
class LeRobotArmConfig:
    """A robot of LeRobot with one arm."""

    type: str
    """LeRobot's name of it: "so101_follower", "koch_follower", ..."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its configuration there: port, id, ..."""
    model: str = ""
    """Whose joint limits to keep, see ``limits.LIMITS``; without it there are none."""
    unit: Unit = "deg"
    rate_hz: float = 30.0

    def open(self, name: str) -> LeRobotArm:
        return LeRobotArm(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


@dataclass(frozen=True)
class LeRobotTeleoperatorConfig:
    """A leader arm of LeRobot."""

    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    unit: Unit = "deg"

    def open(self, name: str) -> LeRobotTeleoperator:
        return LeRobotTeleoperator(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


class LeRobotArm:
    def __init__(self, name: str, config: LeRobotArmConfig) -> None:
        self._config = config
        self._robot: Any = _made("robots", name, config.type, config.settings)
        keys = [key for key in self._robot.action_features if key.endswith(".pos")]
        self._joints = tuple(key for key in keys if key != "gripper.pos")
        if len(keys) != len(self._robot.action_features) or not self._joints:
            raise DeviceError(
                f"{name}: {config.type} takes {', '.join(self._robot.action_features)}; "
                "only robots that take joint positions can be arms"
            )
        self._per_radian = 180 / np.pi if config.unit == "deg" else 1.0
        self.info = ArmInfo(
            name,
            config.model or config.type,
            tuple(key.removesuffix(".pos") for key in self._joints),
            limits_of(config.model) if config.model else _no_limits(len(self._joints)),
            has_gripper="gripper.pos" in keys,
            rate_hz=config.rate_hz,
        )
        if self.info.limits.joints != len(self._joints):
            raise DeviceError(f"{name}: {config.type} has {len(self._joints)} joints, {config.model} does not")

    def connect(self) -> None:
        _connect(self.info.name, self._robot)
        self._last = self.state()

    def state(self) -> ArmState:
        begun = now_ns()
        found = _asked(self.info.name, self._robot.get_observation)
        ended = now_ns()
        positions = np.array([found[key] for key in self._joints], np.float64) / self._per_radian
        unknown = np.full(len(positions), np.nan)
        self._last = ArmState(
            capture_ns=(begun + ended) // 2,
            received_ns=ended,
            condition=Condition.READY,
            positions=positions,
            velocities=unknown,
            efforts=unknown,
            gripper=found["gripper.pos"] / 100 if self.info.has_gripper else np.nan,
        )
        return self._last

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        wanted = self.info.limits.check(self.info.name, positions) * self._per_radian
        action = dict(zip(self._joints, wanted.tolist(), strict=True))
        if self.info.has_gripper:
            opening = self._last.gripper if gripper is None else gripper
            action["gripper.pos"] = float(np.clip(opening, 0, 1)) * 100
        _asked(self.info.name, lambda: self._robot.send_action(action))

    def hold(self) -> None:
        state = self.state()
        self.command(np.clip(state.positions, self.info.limits.low, self.info.limits.high))

    def release(self) -> None:
        raise NotReadyError(f"{self.info.name}: LeRobot has no call that lets go of every robot; close it instead")

    def recover(self) -> None:
        self.close()
        self.connect()

    def close(self) -> None:
        with contextlib.suppress(DeviceError):  # one that is gone cannot be told
            if self._robot.is_connected:
                _asked(self.info.name, self._robot.disconnect)


class LeRobotTeleoperator:
    def __init__(self, name: str, config: LeRobotTeleoperatorConfig) -> None:
        self._name = name
        self._teleoperator: Any = _made("teleoperators", name, config.type, config.settings)
        keys = [key for key in self._teleoperator.action_features if key.endswith(".pos")]
        self._joints = tuple(key for key in keys if key != "gripper.pos")
        if not self._joints:
            raise DeviceError(f"{name}: {config.type} does not give joint positions and is no leader arm")
        self._per_radian = 180 / np.pi if config.unit == "deg" else 1.0

    def connect(self) -> None:
        _connect(self._name, self._teleoperator)

    def read(self) -> Intent:
        begun = now_ns()
        found = _asked(self._name, self._teleoperator.get_action)
        return Intent(
            capture_ns=(begun + now_ns()) // 2,
            enabled=True,
            positions=np.array([found[key] for key in self._joints], np.float64) / self._per_radian,
            gripper=found.get("gripper.pos", np.nan) / 100,
        )

    def close(self) -> None:
        with contextlib.suppress(DeviceError):
            if self._teleoperator.is_connected:
                _asked(self._name, self._teleoperator.disconnect)


def _made(group: Literal["robots", "teleoperators"], name: str, kind: str, settings: Mapping[str, Any]) -> Any:
    """LeRobot's object of the registered ``kind``, not connected."""
    try:
        import draccus  # pyright: ignore[reportMissingImports]
        import lerobot.robots  # pyright: ignore[reportMissingImports]
        import lerobot.teleoperators  # pyright: ignore[reportMissingImports]
        from lerobot.robots import RobotConfig, make_robot_from_config  # pyright: ignore[reportMissingImports]
        from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config  # pyright: ignore[reportMissingImports]
        from lerobot.utils.import_utils import register_third_party_plugins  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DeviceError(f"{name}: needs LeRobot (Python 3.12 or later): pip install 'robolearn[lerobot]'") from None
    package = lerobot.robots if group == "robots" else lerobot.teleoperators
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.ispkg:  # each registers its configuration when it is imported
            try:
                import_module(module.name)
            except ImportError:
                continue  # its driver's package is not installed
    register_third_party_plugins()
    configs, make = (
        (RobotConfig, make_robot_from_config)
        if group == "robots"
        else (TeleoperatorConfig, make_teleoperator_from_config)
    )
    known = configs.get_known_choices()
    if kind not in known:
        raise DeviceError(f"{name}: LeRobot has no {kind!r} here; valid: {', '.join(sorted(known))}")
    try:
        return make(draccus.decode(known[kind], dict(settings)))
    except Exception as error:
        raise DeviceError(f"{name}: LeRobot refuses its settings: {_one_line(error)}") from error


def _connect(name: str, device: Any) -> None:
    if device.is_connected:
        return
    _asked(name, lambda: device.connect(calibrate=False))
    if not device.is_calibrated:
        _asked(name, device.disconnect)
        raise DeviceError(f"{name}: not calibrated as its file says; run `lerobot-calibrate` with the same type and id")


def _asked(name: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:  # whatever its drivers raise: connection errors, runtime errors, the SDK's own
        raise DeviceGoneError(f"{name}: LeRobot reports {_one_line(error)}; connect again when it is mended") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _no_limits(joints: int) -> JointLimits:
    infinite = np.full(joints, np.inf)
    return JointLimits(-infinite, infinite, infinite, infinite, infinite)
