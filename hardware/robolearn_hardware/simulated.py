"""An arm that is nothing but a plant: no wire, no SDK. For models without a twin, and to try things out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import ArmInfo, ArmState, Condition, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.plant import Motor, Plant, PlantSpec, make_plant

READY: dict[str, tuple[float, ...]] = {
    "so101": (0.0, -1.0, 0.8, 0.6, 0.0),
    "widowx": (0.0, -0.9, 0.8, 0.0, 0.6, 0.0),
    "viperx": (0.0, -0.9, 0.8, 0.0, 0.6, 0.0),
    **dict.fromkeys(("ur3e", "ur5e", "ur10e", "ur16e", "ur20"), (0.0, -1.5, 1.5, -1.57, -1.57, 0.0)),
    **dict.fromkeys(("fer", "fr3"), (0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.78)),
    "xarm5": (0.0, -0.3, -0.8, 1.1, 0.0),
    "xarm6": (0.0, -0.3, -0.8, 0.0, 1.1, 0.0),
    "xarm7": (0.0, -0.3, 0.0, 1.0, 0.0, 1.3, 0.0),
    "lite6": (0.0, 0.1, 1.4, 0.0, 1.3, 0.0),
}
"""Where an arm stands first: bent, and clear of the table."""


@dataclass(frozen=True)
class SimulatedConfig:
    """A simulated arm in a rig file."""

    model: str
    """A key of ``limits.LIMITS``."""
    plant: str = "mujoco"
    """What moves, see ``twins.plant.make_plant``. MuJoCo has all but so100 and koch."""
    gripper: bool = True
    start: tuple[float, ...] | None = None
    """Joint positions, rad; by default bent and clear of the table, or the middle of the ranges."""
    rate_hz: float = 100.0

    def open(self, name: str) -> SimulatedArm:
        return SimulatedArm(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


class SimulatedArm:
    """An ``Arm``. Time passes for it when it is read or told something; at most 0.1 s are made up for."""

    def __init__(self, name: str, config: SimulatedConfig) -> None:
        limits = limits_of(config.model)
        names = tuple(f"joint{i + 1}" for i in range(limits.joints))
        self.info = ArmInfo(name, config.model, names, limits, config.gripper, config.rate_hz)
        middle = (limits.low + limits.high) / 2
        start: Sequence[float] | np.ndarray = config.start or READY.get(config.model, tuple(middle))
        self._start = limits.check(name, np.array(start))
        self._kind = config.plant
        self._plant: Plant | None = None
        self._released = False

    def connect(self) -> None:
        self.close()
        limits, more = self.info.limits, [1.0] * self.info.has_gripper
        spec = PlantSpec(
            self.info.model,
            np.array([*self._start, *more]),
            np.append(limits.low, np.zeros(len(more))),
            np.append(limits.high, more),
            self.info.has_gripper,
            Motor(time_constant_s=0.03, speed=float(limits.velocity.max())),
        )
        self._plant = make_plant(self._kind, spec)
        self._released = False

    def state(self) -> ArmState:
        plant, now = self._advanced(), now_ns()
        joints = self.info.joints
        return ArmState(
            now,
            now,
            Condition.RELEASED if self._released else Condition.READY,
            plant.positions[:joints].copy(),
            plant.velocities[:joints].copy(),
            plant.efforts[:joints].copy(),
            float(np.clip(plant.positions[joints], 0, 1)) if self.info.has_gripper else np.nan,
            plant.wrench.copy(),
        )

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        """``effect_ns`` is not looked at: it moves at once."""
        limits, name = self.info.limits, self.info.name
        target = np.clip(limits.check(name, positions), limits.low, limits.high)
        if gripper is not None and not 0 <= gripper <= 1:
            raise LimitError(f"{name}: a gripper is told to go from 0 (closed) to 1 (open), not {gripper}")
        plant = self._advanced()
        if self._released:
            raise NotReadyError(f"{name} is released; hold it first")
        fingers = [np.nan if gripper is None else gripper] * self.info.has_gripper
        plant.target(np.array([*target, *fingers]))

    def hold(self) -> None:
        plant = self._advanced()
        plant.limp(np.zeros(len(plant.positions), bool))
        plant.target(plant.positions.copy())
        self._released = False

    def release(self) -> None:
        plant = self._advanced()
        plant.limp(np.ones(len(plant.positions), bool))
        self._released = True

    def recover(self) -> None:
        self.hold()

    def close(self) -> None:
        if self._plant is not None:
            self._plant.close()
            self._plant = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advanced(self) -> Plant:
        if self._plant is None:
            raise DeviceGoneError(f"{self.info.name} is not connected; connect it")
        self._plant.advance(now_ns())
        return self._plant
