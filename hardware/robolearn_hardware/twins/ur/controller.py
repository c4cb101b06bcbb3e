"""The robot behind the ports: its modes, its program, its registers and its joints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.twins.plant import Plant
from robolearn_hardware.twins.ur.fields import OUTPUTS, REGISTERS, width


class RobotMode(IntEnum):
    """RTDE ``robot_mode``."""

    POWER_OFF = 3
    IDLE = 5
    RUNNING = 7


class Safety(IntEnum):
    """The bit of RTDE ``safety_status_bits``."""

    NORMAL = 0
    PROTECTIVE_STOP = 2
    ROBOT_EMERGENCY_STOP = 6


_SAFETY_MODE = {Safety.NORMAL: 1, Safety.PROTECTIVE_STOP: 3, Safety.ROBOT_EMERGENCY_STOP: 7}
_STOPPED_BY_SAFETY = 1 << 10
_EMERGENCY_STOPPED = 1 << 7
_STOPPED, _PLAYING = 1, 2  # RTDE runtime_state

# Commands of ur_rtde's control script, in input_int_register_0. The answer is in output_int_register_0.
NO_COMMAND = 0
MOVEJ, SERVOJ, SERVO_STOP, SET_WATCHDOG, STOPJ = 1, 11, 16, 35, 34
FREEDRIVE, END_FREEDRIVE, TEACH, END_TEACH = 52, 53, 18, 19
STOP_SCRIPT = 255
_REAL_TIME = frozenset({6, 9, 10, SERVOJ, 24, 25, 26, 27, 38, 58})
_READY_FOR_COMMAND, _DONE = 1, 2
_BOOT_TIMESTAMP_S = 100.0

UNLOCK_AFTER_S = 5.0
"""How long a controller refuses to unlock a protective stop: the cause should be looked at."""


class Controller:
    """Used by the threads of all ports; ``lock`` is held by every method."""

    def __init__(self, plant: Plant, *, unlock_after_s: float = UNLOCK_AFTER_S) -> None:
        self.lock = threading.RLock()
        self.uploads = 0
        self.commands = 0
        self.frozen = False
        self._plant = plant
        self._unlock_after_ns = round(unlock_after_s * SECOND_NS)
        self._frozen_values: dict[str, Any] = {}
        self._start(RobotMode.RUNNING)

    def _start(self, mode: RobotMode) -> None:
        self.mode = mode
        self.safety = Safety.NORMAL
        self._stopped_ns = 0
        self._emergency = False
        self._booted_ns = now_ns()
        self._playing = False
        self._executing = False
        self._watchdog_ns = 0
        self._kicked_ns = 0
        self._inputs: dict[str, Any] = {f"input_int_register_{i}": 0 for i in range(REGISTERS)}
        self._outputs = {"output_int_register_0": 0}
        self._hold()

    @property
    def playing(self) -> bool:
        with self.lock:
            self._advance()
            return self._playing

    def truth(self) -> dict[str, Any]:
        with self.lock:
            self._advance()
            return {
                "positions": self._plant.positions.copy(),
                "mode": self.mode.name,
                "safety": self.safety.name,
                "playing": self._playing,
                "uploads": self.uploads,
                "commands": self.commands,
            }

    # --- what RTDE reads and writes

    def values(self, names: Sequence[str]) -> list[float]:
        """Of the outputs ``names``, one after the other, as they are now."""
        with self.lock:
            self._advance()
            if not self.frozen:
                self._frozen_values = self._snapshot()
            found = self._frozen_values
            flat: list[float] = []
            for name in names:
                value = found.get(name)
                if value is None:
                    value = self._outputs.get(name, 0)
                    flat += [value] * width(OUTPUTS[name])
                else:
                    flat += value
            return flat

    def _snapshot(self) -> dict[str, list[float]]:
        plant = self._plant
        positions, velocities = plant.positions.tolist(), plant.velocities.tolist()
        return {
            "timestamp": [_BOOT_TIMESTAMP_S + (now_ns() - self._booted_ns) / SECOND_NS],
            "actual_q": positions,
            "target_q": positions,
            "actual_qd": velocities,
            "target_qd": velocities,
            "actual_current": (plant.efforts * 2.0).tolist(),
            "actual_TCP_force": plant.wrench.tolist(),
            "joint_temperatures": [30.0] * 6,
            "joint_mode": [253] * 6,
            "speed_scaling": [1.0],
            "target_speed_fraction": [1.0],
            "robot_mode": [int(self.mode)],
            "safety_mode": [_SAFETY_MODE[self.safety]],
            "safety_status": [_SAFETY_MODE[self.safety]],
            "safety_status_bits": [self._safety_bits()],
            "robot_status_bits": [int(self.mode == RobotMode.RUNNING) | 2 * self._playing],
            "runtime_state": [_PLAYING if self._playing else _STOPPED],
        }

    def _safety_bits(self) -> int:
        bits = 1 << self.safety
        if self.safety != Safety.NORMAL:
            bits |= _STOPPED_BY_SAFETY
        if self.safety == Safety.ROBOT_EMERGENCY_STOP:
            bits |= _EMERGENCY_STOPPED
        return bits

    def write(self, inputs: dict[str, Any]) -> None:
        """A data package from a client."""
        with self.lock:
            self._advance()
            self._inputs.update(inputs)
            if "input_int_register_0" in inputs:
                self._kicked_ns = now_ns()
                if self._playing:
                    self._script_loop(int(inputs["input_int_register_0"]))

    # --- ur_rtde's control script

    def upload(self, script: str) -> None:
        """A program from ports 30001-30003."""
        with self.lock:
            self.uploads += 1
            if self.mode != RobotMode.RUNNING or self.safety != Safety.NORMAL:
                return
            self._hold()
            self._playing = "read_input_integer_reg" in script
            self._executing = False
            self._watchdog_ns = 0
            self._outputs["output_int_register_0"] = _READY_FOR_COMMAND

    def _script_loop(self, command: int) -> None:
        """One round of the script's main loop."""
        state = _READY_FOR_COMMAND
        if command in _REAL_TIME:
            self._execute(command)
        elif command == NO_COMMAND:
            self._executing = False
        else:
            if not self._executing:
                self._execute(command)
            self._executing = True
            state = _DONE
        if self._playing:
            self._outputs["output_int_register_0"] = state

    def _execute(self, command: int) -> None:
        self.commands += 1
        joints = [float(self._inputs.get(f"input_double_register_{i}", 0.0)) for i in range(6)]
        if command in (SERVOJ, MOVEJ):
            self._plant.target(np.array(joints))
        elif command in (SERVO_STOP, STOPJ):
            self._hold()
        elif command in (FREEDRIVE, TEACH):
            self._hold()
            self._plant.limp(np.ones(6, bool))
        elif command in (END_FREEDRIVE, END_TEACH):
            self._plant.limp(np.zeros(6, bool))
            self._hold()
        elif command == SET_WATCHDOG:
            self._watchdog_ns = round(SECOND_NS / joints[0]) if joints[0] > 0 else 0
        elif command == STOP_SCRIPT:
            self._stop()

    def _advance(self) -> None:
        now = now_ns()
        if self._playing and self._watchdog_ns and now - self._kicked_ns > self._watchdog_ns:
            self._stop()
        self._plant.advance(now)

    def _hold(self) -> None:
        self._plant.target(self._plant.positions.copy())
        self._plant.limp(np.full(6, self.mode != RobotMode.RUNNING))

    def _stop(self) -> None:
        self._playing = False
        self._hold()

    # --- what the dashboard and a person do

    def stop_program(self) -> None:
        with self.lock:
            self._stop()

    def power(self, mode: RobotMode) -> bool:
        with self.lock:
            if self._emergency:
                return False
            if mode == RobotMode.POWER_OFF or self.safety == Safety.ROBOT_EMERGENCY_STOP:
                self.safety = Safety.NORMAL
            self.mode = mode
            self._stop()
            return True

    def unlock(self) -> bool:
        """Out of the protective stop; False while it is too early."""
        with self.lock:
            if self.safety == Safety.PROTECTIVE_STOP:
                if now_ns() - self._stopped_ns < self._unlock_after_ns:
                    return False
                self.safety = Safety.NORMAL
            return True

    def protective_stop(self) -> None:
        with self.lock:
            self.safety = Safety.PROTECTIVE_STOP
            self._stopped_ns = now_ns()
            self._stop()

    def emergency_stop(self, pressed: bool) -> None:
        """The button. Released, the arm is without power and waits for a person, or the dashboard."""
        with self.lock:
            self._emergency = pressed
            if pressed:
                self.safety = Safety.ROBOT_EMERGENCY_STOP
                self.mode = RobotMode.POWER_OFF
                self._stop()
            elif self.safety == Safety.ROBOT_EMERGENCY_STOP:
                self.safety = Safety.NORMAL

    def boot(self) -> None:
        with self.lock:
            self._start(RobotMode.POWER_OFF)
