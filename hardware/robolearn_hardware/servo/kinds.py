"""What a rig file can name: arms and leaders of servo motors, real or twins."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.servo.arm import ServoArm
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration, default_calibration, load_calibration, save_calibration
from robolearn_hardware.servo.dynamixel import DynamixelWire
from robolearn_hardware.servo.feetech import FeetechWire
from robolearn_hardware.servo.leader import ServoLeader
from robolearn_hardware.servo.models import MODELS, ServoArmModel
from robolearn_hardware.servo.registers import FEETECH_STS
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.servo_bus import ServoBusTwin


@dataclass(frozen=True)
class ServoConfig:
    """An arm on a servo bus."""

    port: str
    """Device file, such as /dev/ttyACM0 or better one of /dev/serial/by-id; or "twin"."""
    calibration: Path | None = None
    """Made by `robolearn calibrate`; looked for beside the rig file. Interbotix arms and twins can do without."""
    baud: int | None = None
    """Of the bus; None: as the arm is usually set up."""
    reply_s: float = 0.02
    """The longest that the adapter and a motor may take to answer, besides the bytes' own time."""
    plant: str = "first_order"
    """What moves behind a twin, see ``twins.plant.make_plant``."""
    usb_latency_s: float = 0.001
    """How long a twin's adapter holds an answer back."""
    wire_time: bool = True
    """Whether bytes take their time on a twin's wire."""

    model_name: ClassVar[str]
    leads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.001 <= self.reply_s <= 0.03:
            raise DeviceError(f"reply_s is {self.reply_s}; valid: 0.001 to 0.03 s")
        if self.baud is not None and self.baud <= 0:
            raise DeviceError(f"baud is {self.baud}; leave it out, or give the rate of the motors, such as 1000000")

    @property
    def model(self) -> ServoArmModel:
        return MODELS[self.model_name]

    def with_twin(self, name: str, twins: Twins) -> Self:
        """A twin holds the given calibration in its motors, or the arm's default one."""
        if self.port != "twin":
            return self
        calibration = self._calibration(name) if self.calibration else default_calibration(self.model)
        make = functools.partial(
            ServoBusTwin,
            calibration,
            baud=self._baud,
            plant=self.plant,
            usb_latency_s=self.usb_latency_s,
            wire_time=self.wire_time,
            hand_hz=0.1 if self.leads else 0.0,
        )
        address = twins.start(name, make).address
        path = Path(address).with_name("calibration.yaml")  # in the twin's folder, which goes with it
        save_calibration(path, calibration)
        return replace(self, port=address, calibration=path)

    def bus(self, name: str) -> ServoBus:
        """The closed bus of this arm: what `robolearn calibrate` works on."""
        wire = FeetechWire() if self.model.table is FEETECH_STS else DynamixelWire()
        return ServoBus(name, wire, self.port, self._baud, reply_s=self.reply_s)

    @property
    def _baud(self) -> int:
        return self.baud or self.model.baud

    def _calibration(self, name: str) -> Calibration:
        if self.calibration is not None:
            return load_calibration(self.calibration, self.model)
        if self.model.factory_calibrated:
            return default_calibration(self.model)
        raise DeviceError(f"{name}: the rig names no calibration for it; `robolearn calibrate` makes one")


@dataclass(frozen=True)
class ServoArmConfig(ServoConfig):
    def open(self, name: str) -> ServoArm:
        return ServoArm(name, self.model, self._calibration(name), self.bus(name))


@dataclass(frozen=True)
class ServoLeaderConfig(ServoConfig):
    """A leader arm. One whose motors are on when it is connected keeps its pose until a person takes it."""

    holds: bool = False
    """Its motors hold it until a person takes it, by moving a joint by 6 degrees, and from the end on."""
    reflect: float = 0.0
    """Share of its motors' greatest torque, up to 0.4, with which it resists where its follower is held up. 0: never.
    Feetech, and Dynamixel motors that measure their current."""

    leads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.reflect <= 0.4:
            raise DeviceError(f"reflect is {self.reflect}; valid: 0 (off) to 0.4 of the motors' torque")

    def open(self, name: str) -> ServoLeader:
        calibration, bus = self._calibration(name), self.bus(name)
        return ServoLeader(name, self.model, calibration, bus, holds=self.holds, reflect=self.reflect)


class So100Config(ServoArmConfig):
    """SO-100 follower: six Feetech STS3215."""

    model_name = "so100"


class So101Config(ServoArmConfig):
    """SO-101 follower: six Feetech STS3215."""

    model_name = "so101"


class KochConfig(ServoArmConfig):
    """Koch v1.1 follower: two Dynamixel XL430-W250, four XL330-M288."""

    model_name = "koch"


class WidowXConfig(ServoArmConfig):
    """WidowX-250 with 6 degrees of freedom: Dynamixel XM430-W350 and XL430-W250; shoulder and elbow have two motors."""

    model_name = "widowx"


class ViperXConfig(ServoArmConfig):
    """ViperX-300 with 6 degrees of freedom (ALOHA's follower): Dynamixel XM540-W270 and XM430-W350."""

    model_name = "viperx"


class So100LeaderConfig(ServoLeaderConfig):
    """SO-100 leader."""

    model_name = "so100"


class So101LeaderConfig(ServoLeaderConfig):
    """SO-101 leader."""

    model_name = "so101"


class KochLeaderConfig(ServoLeaderConfig):
    """Koch v1.1 leader: six Dynamixel XL330-M077."""

    model_name = "koch_leader"


class WidowXLeaderConfig(ServoLeaderConfig):
    """WidowX-250 as the leader of an ALOHA."""

    model_name = "widowx"


@dataclass(frozen=True)
class GelloConfig(ServoLeaderConfig):
    """GELLO: a small Dynamixel XL330 copy of a larger arm, with a trigger."""

    joints: int = 6
    """6 (UR, xArm6) or 7 (Franka, xArm7)"""

    @property
    def model(self) -> ServoArmModel:
        if self.joints not in (6, 7):
            raise DeviceError(f"a GELLO has 6 or 7 joints, not {self.joints}")
        return MODELS[f"gello{self.joints}"]
