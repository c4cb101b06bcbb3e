"""The kinds of devices that a rig file can name. Other packages add theirs by entry points of the same groups.

A kind is a frozen dataclass, whose fields are what a rig file says under the device's name. Its module imports the
vendor's SDK only when a device is opened.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol, Self

from robolearn_hardware.cameras.files import VideoConfig
from robolearn_hardware.cameras.mjpeg import MjpegConfig
from robolearn_hardware.cameras.realsense import RealSenseConfig, RealSenseFileConfig
from robolearn_hardware.cameras.rtsp import RtspConfig
from robolearn_hardware.cameras.uvc import UvcConfig
from robolearn_hardware.devices import Arm, Camera, DeviceError, ForceSensor, Teleoperator
from robolearn_hardware.lerobot_devices import LeRobotArmConfig, LeRobotTeleoperatorConfig
from robolearn_hardware.network.fer import FerConfig
from robolearn_hardware.network.fr3 import Fr3Config
from robolearn_hardware.network.ur import Ur3eConfig, Ur5eConfig, Ur10eConfig, Ur16eConfig, Ur20Config
from robolearn_hardware.network.xarm import Lite6Config, Xarm5Config, Xarm6Config, Xarm7Config
from robolearn_hardware.servo.kinds import (
    GelloConfig,
    KochConfig,
    KochLeaderConfig,
    So100Config,
    So100LeaderConfig,
    So101Config,
    So101LeaderConfig,
    ViperXConfig,
    WidowXConfig,
    WidowXLeaderConfig,
)
from robolearn_hardware.simulated import SimulatedConfig
from robolearn_hardware.teleop.gamepad import GamepadConfig
from robolearn_hardware.teleop.keyboard import KeyboardConfig
from robolearn_hardware.teleop.spacemouse import SpaceMouseConfig
from robolearn_hardware.twins.host import Twins


class DeviceConfig(Protocol):
    """Settings of one device. ``open`` returns it unconnected."""

    def with_twin(self, name: str, twins: Twins) -> Self:
        """Itself; or, where it names the address "twin", a copy that leads to a twin which this starts."""
        ...


class ArmConfig(DeviceConfig, Protocol):
    def open(self, name: str) -> Arm: ...


class CameraConfig(DeviceConfig, Protocol):
    def open(self, name: str) -> Camera: ...


class ForceSensorConfig(DeviceConfig, Protocol):
    def open(self, name: str) -> ForceSensor: ...


class TeleoperatorConfig(DeviceConfig, Protocol):
    def open(self, name: str) -> Teleoperator: ...


ARMS: dict[str, type[ArmConfig]] = {
    "koch": KochConfig,
    "lerobot": LeRobotArmConfig,
    "simulated": SimulatedConfig,
    "so100": So100Config,
    "so101": So101Config,
    "viperx": ViperXConfig,
    "widowx": WidowXConfig,
    "ur3e": Ur3eConfig,
    "ur5e": Ur5eConfig,
    "ur10e": Ur10eConfig,
    "ur16e": Ur16eConfig,
    "ur20": Ur20Config,
    "xarm5": Xarm5Config,
    "xarm6": Xarm6Config,
    "xarm7": Xarm7Config,
    "lite6": Lite6Config,
    "fer": FerConfig,
    "fr3": Fr3Config,
}
CAMERAS: dict[str, type[CameraConfig]] = {
    "mjpeg": MjpegConfig,
    "realsense": RealSenseConfig,
    "realsense_file": RealSenseFileConfig,
    "rtsp": RtspConfig,
    "uvc": UvcConfig,
    "video": VideoConfig,
}
FORCE_SENSORS: dict[str, type[ForceSensorConfig]] = {}
TELEOPERATORS: dict[str, type[TeleoperatorConfig]] = {
    "gamepad": GamepadConfig,
    "gello": GelloConfig,
    "keyboard": KeyboardConfig,
    "koch_leader": KochLeaderConfig,
    "lerobot": LeRobotTeleoperatorConfig,
    "so100_leader": So100LeaderConfig,
    "so101_leader": So101LeaderConfig,
    "spacemouse": SpaceMouseConfig,
    "widowx_leader": WidowXLeaderConfig,
}

SECTIONS = {
    "arms": ARMS,
    "cameras": CAMERAS,
    "force_sensors": FORCE_SENSORS,
    "teleoperators": TELEOPERATORS,
}


def kind_of(section: str, kind: str) -> type[DeviceConfig]:
    """The class behind ``kind`` in a section of a rig file.

    Raises:
        DeviceError: no such kind, here or in an installed package.
    """
    built_in = SECTIONS[section]
    if kind in built_in:
        return built_in[kind]
    added = {entry.name: entry for entry in entry_points(group=f"robolearn.{section}")}
    if kind not in added:
        raise DeviceError(f"no kind {kind!r} of {section}; valid: {', '.join(sorted([*built_in, *added]))}")
    try:
        return added[kind].load()
    except (ImportError, AttributeError) as error:
        raise DeviceError(f"the kind {kind!r} of the package {added[kind].value!r} cannot be loaded: {error}") from None
