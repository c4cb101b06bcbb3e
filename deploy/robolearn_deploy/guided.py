"""An arm that a person moves relative to where it is, without the processes of a run: `robolearn teleop`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robolearn_deploy.driven_arm import DrivenArm, ServoOptions
from robolearn_deploy.limiter import Verdict
from robolearn_deploy.stall import Duty
from robolearn_deploy.takeover import intent_fields, intent_record
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import (
    Arm,
    ArmState,
    Condition,
    DeviceError,
    DeviceGoneError,
    Intent,
    NotReadyError,
    Teleoperator,
)
from robolearn_hardware.kinematics import Kinematics, Workspace

_RETRY_NS = SECOND_NS // 2


@dataclass(frozen=True, eq=False)
class GuidedTick:
    """What happened in one tick."""

    said: str
    """In words."""
    requested: np.ndarray
    """(J,) rad"""
    measured: ArmState
    took_ns: int


class Guided:
    """One teleoperator and one arm, both connected. Call ``tick`` at ``rate_hz``.

    The arm is sent what it would be sent in a run: the same target of the same intents, through the same limiter. A
    teleoperator that was unplugged is nobody, and is connected again when it is back.
    """

    def __init__(self, teleoperator: Teleoperator, arm: Arm, rate_hz: float, workspace: Workspace | None) -> None:
        """
        Raises:
            DeviceError: the arm has no kinematic model, or its limits make no sense.
        """
        Kinematics(arm.info.model)
        self._teleoperator = teleoperator
        self._driven = DrivenArm(arm, workspace, 0, ServoOptions(rate_hz), rate_hz)
        self._driven.takeover.prepare()
        self._record = np.zeros(1, [(name, *of) for name, of in intent_fields(arm.info.joints).items()])
        self._gone_ns = 0
        self._anew = True

    def tick(self) -> GuidedTick:
        """Read both, move the arm by one tick.

        Raises:
            NotReadyError: the arm has stopped by itself, or is gone.
        """
        begun, one = now_ns(), self._driven
        intent = self._read(begun)
        one.read()
        if one.state.condition not in (Condition.READY, Condition.DEGRADED):
            name = one.state.condition.name.lower().replace("_", " ")
            raise NotReadyError(f"{one.info.name} does not move any more: {name}; clear it and start again")
        if intent is not None:
            for field, value in intent_record(intent, one.info.joints).items():
                self._record[field] = value
        one.drive(Duty.TELEOP, self._anew, now_ns(), None if intent is None else self._record[0], None)
        self._anew = False
        requested = one.requested[: one.info.joints]
        return GuidedTick(self._said(intent), requested, one.state, now_ns() - begun)

    def stop(self) -> bool:
        """One tick on the way to rest; whether it rests."""
        self._driven.drive(Duty.STAY, False, now_ns(), None, None)
        return self._driven.limiter.at_rest

    def _read(self, at_ns: int) -> Intent | None:
        """None while it is gone."""
        try:
            if self._gone_ns:
                if at_ns - self._gone_ns < _RETRY_NS:
                    return None
                self._gone_ns = at_ns
                self._teleoperator.connect()
                self._gone_ns = 0
            return self._teleoperator.read()
        except DeviceGoneError:
            self._gone_ns = at_ns
        except DeviceError:
            if not self._gone_ns:
                raise
        return None

    def _said(self, intent: Intent | None) -> str:
        if intent is None:
            return "holding: the teleoperator is unplugged"
        if self._driven.verdict is Verdict.REJECTED:
            return "stopped where its limits or its workspace end"
        return "following" if self._driven.person else "holding: the deadman is not held"
