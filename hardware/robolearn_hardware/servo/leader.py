"""A leader arm of servo motors: a person moves it, a follower goes along."""

from __future__ import annotations

from typing import Literal

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, DeviceTimeoutError, Intent
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration
from robolearn_hardware.servo.chain import ChainState, ServoChain
from robolearn_hardware.servo.models import ServoArmModel
from robolearn_hardware.servo.registers import FEETECH_STS, MOTORS

_RATE_HZ = 100.0
_DEADLINE_S = 9.0
HOLD_SHARE = 0.4
"""Of its motors' greatest torque, with which it holds its pose: enough for its weight, less than a person's hand."""
TAKEN_RAD = 0.1
"""A leader that holds its pose is taken by moving a joint so far, or its grip by a fifth of its way."""
_TAKEN_GRIP = 0.2
FREE_RAD, FULL_RAD = 0.15, 0.5
"""A follower is always a little behind: only what it is held up by more is felt, growing up to the second."""
_FELT_NS = SECOND_NS // 5
"""A follower that has said nothing for so long is not felt."""


class ServoLeader:
    """See ``devices.Teleoperator``. Enabled while every motor answers, none has a fault, and a person has taken it.

    A leader whose motors are on when it is connected (or that ``holds``) keeps its pose, so that it does not fall; when
    a person moves it, its motors let go.
    """

    def __init__(
        self,
        name: str,
        model: ServoArmModel,
        calibration: Calibration,
        bus: ServoBus,
        *,
        holds: bool = False,
        reflect: float = 0.0,
    ) -> None:
        """
        Args:
            holds: keep its pose from ``connect`` until a person takes it, and from ``close`` on.
            reflect: share of its motors' greatest torque with which it resists where its follower is held up, see
                ``feel``; 0: never.

        Raises:
            DeviceError: its motors cannot bound their torque.
        """
        self._chain = ServoChain(name, model, calibration, bus)
        self.info = self._chain.info(_RATE_HZ)
        """Its joints and their limits."""
        self._holds, self._reflect = holds, reflect
        self._held: ChainState | None = None
        kinds = [MOTORS[motor.motor] for motor in self._chain.motors]
        self._feetech = model.table is FEETECH_STS
        self._bounded = [
            motor for motor, kind in zip(self._chain.ids, kinds, strict=True) if self._feetech or kind.current_control
        ]
        """Motors whose torque can be bounded."""
        self._full = {
            motor: 1000.0 if self._feetech else kind.stall_current / kind.current_unit
            for motor, kind in zip(self._chain.ids, kinds, strict=True)
        }
        """What the register of their bound holds for all their torque."""
        if reflect and not self._bounded:
            raise DeviceError(f"{name}: its motors cannot bound their torque; leave reflect out of the rig")
        self._behind, self._behind_ns = np.zeros(self.info.joints), 0
        self._pulling: frozenset[int] = frozenset()

    def __enter__(self) -> ServoLeader:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Its motors go off, unless they are on (or it ``holds``): then it keeps its pose until a person takes it.

        Raises:
            DeviceError: as ``Arm.connect``.
        """
        bus = self._chain.bus
        self._held, self._behind_ns, self._pulling = None, 0, frozenset()
        try:
            with bus.within(_DEADLINE_S):
                self._chain.connect()
                stands = [bus.read(motor, "torque_enable") == 1 for motor in self._chain.ids]
                if self._holds or any(stands):
                    self._hold(keep=all(stands))
                else:
                    self._let_go()
        except BaseException:
            bus.close()
            raise

    def read(self) -> Intent:
        """At most 0.1 s."""
        if not self._chain.bus.is_open:
            raise DeviceGoneError(f"{self._chain.name} is not connected; connect first")
        state = self._chain.read()
        if self._held is not None:
            if state.whole and _taken(self._held, state):
                self._held = None
                with self._chain.bus.within(_DEADLINE_S):
                    self._let_go()
        elif self._reflect:
            self._resist(state)
        return Intent(
            state.capture_ns,
            enabled=state.whole and not self._chain.faults and self._held is None,
            positions=state.positions,
            gripper=min(max(state.gripper, 0.0), 1.0),
        )

    def feel(self, behind: np.ndarray) -> None:
        """How far (J,) rad its follower is from where this leader wants it. From the next ``read`` on its motors pull
        towards the follower, within ``reflect``, until the follower follows or says no more."""
        if behind.shape == self._behind.shape and np.isfinite(behind).all():
            self._behind, self._behind_ns = behind.copy(), now_ns()

    def close(self) -> None:
        """Its motors stay as they are, off; or hold it where it is. May be called twice."""
        bus = self._chain.bus
        if bus.is_open:
            try:
                with bus.within(1.0):
                    if self._holds and self._held is None:
                        self._chain.read()
                        self._hold(keep=False)
                    elif self._pulling:
                        self._let_go()
            except (DeviceGoneError, DeviceTimeoutError):
                pass  # who is gone cannot be told
        bus.close()

    def _hold(self, *, keep: bool) -> None:
        """``keep``: all motors are on already, and go on with what they do: their goal may be some way off."""
        if not keep:
            for motor in self._chain.ids:
                self._chain.bus.write(motor, "torque_enable", 0)
                self._configure(motor, HOLD_SHARE)
            for motor, goal in self._chain.stand().items():
                self._chain.bus.write(motor, "goal_position", goal)
                self._chain.bus.write(motor, "torque_enable", 1)
        self._held = self._chain.read()

    def _let_go(self) -> None:
        for motor in self._chain.ids:
            self._chain.bus.write(motor, "torque_enable", 0)
            if self._reflect and motor in self._bounded:
                self._configure(motor, 0.0)
        self._pulling = frozenset()

    def _configure(self, motor: int, share: float) -> None:
        """Of a motor that is off: it goes to positions, with ``share`` of its torque where that can be bounded."""
        bus = self._chain.bus
        if self._feetech:
            settings = {"lock": 1, "operating_mode": 0}
        else:
            settings = {"operating_mode": 5 if motor in self._bounded else 4}
        for register, value in settings.items():
            if bus.read(motor, register) != value:
                bus.write(motor, register, value)
        if motor in self._bounded:
            bus.write(motor, self._bound, round(share * self._full[motor]))

    @property
    def _bound(self) -> Literal["torque_limit", "goal_current"]:
        return "torque_limit" if self._feetech else "goal_current"

    def _resist(self, state: ChainState) -> None:
        alive = state.whole and now_ns() - self._behind_ns < _FELT_NS
        behind = self._behind if alive else np.zeros_like(self._behind)
        felt = np.clip((np.abs(behind) - FREE_RAD) / (FULL_RAD - FREE_RAD), 0.0, 1.0) * self._reflect
        goals = self._chain.goals(state.positions + behind, None)
        shares = {motor: felt[joint] for motor, joint in self._chain.joint_of().items() if motor in self._bounded}
        pulling = frozenset(motor for motor, share in shares.items() if share > 0)
        bus = self._chain.bus
        if pulling:
            bus.write_all(self._bound, {motor: round(shares[motor] * self._full[motor]) for motor in pulling})
            bus.write_all("goal_position", {motor: goals[motor] for motor in pulling})
        if pulling != self._pulling:
            bus.write_all("torque_enable", {motor: int(motor in pulling) for motor in pulling | self._pulling})
            if pulling - self._pulling and not self._feetech:  # a Dynamixel forgets its goal when its torque comes on
                bus.write_all("goal_position", {motor: goals[motor] for motor in pulling})
            self._pulling = pulling


def _taken(held: ChainState, state: ChainState) -> bool:
    moved = float(np.abs(state.positions - held.positions).max())
    grip = abs(state.gripper - held.gripper)
    return moved > TAKEN_RAD or grip > _TAKEN_GRIP  # NaN, without a grip: no
