"""The twin of a UFACTORY control box: commands at port 502, reports at ports 30001 to 30003. (xArm developer manual;
layouts as xarm-python-sdk reads them.)

A request is transaction, protocol and length (three u16, big-endian), a function number and its arguments; the answer
repeats the first three, then the function, a byte of state bits, and values. Arguments and values that are floats are
little-endian. Known are the functions that a position stream needs (``_FUNCTIONS``), and of the tool's RS-485 bus the
xArm gripper; Cartesian motion, inputs and outputs and force sensors are not there.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.limits import limits_of
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.loopback import Listeners
from robolearn_hardware.twins.plant import Motor, PlantSpec, make_plant

COMMANDS, NORMAL, RICH, REAL = 502, 30001, 30002, 30003
FAULTS = frozenset(
    ["lose", "truncate", "latency_s", "spikes", "hot", "unplugged", "protective_stop", "emergency_stop", "reboot"]
)
GRIPPER_PULSES = 850
"""The xArm gripper's own unit at fully open."""
EMERGENCY, SERVO_1, JOINT_LIMIT, COLLISION = 1, 11, 23, 31
"""Error codes."""

_RATES_HZ = {NORMAL: 5.0, RICH: 5.0, REAL: 100.0}
_READY, _STOPPED, _MODE_CHANGED = 2, 4, 5
_SERVO_MODE, _MANUAL_MODE = 1, 2
_HEADER = struct.Struct(">HHHB")
_SPIKE_S = 0.05
_MOTOR = Motor(time_constant_s=0.02, speed=np.pi, acceleration=20.0)
_BEYOND = 0.2  # rad; the mechanical stops lie beyond the limits
_GRIPPER_ID, _BAUD_2M = 8, 11
_POSITION_REGISTER, _TARGET_REGISTER = 0x0702, 0x0700
_DIGITAL_OUT = 0x0A15
_TORQUE = 30.0  # N m, of a motor at its limit


@dataclass(frozen=True)
class Model:
    axes: int
    type: int
    """As the control box reports it."""
    serial: str
    start: tuple[float, ...]


MODELS = {
    "xarm5": Model(5, 5, "XF130412000001", (0.0, -0.5, -0.6, 1.1, 0.0)),
    "xarm6": Model(6, 6, "XI130412000001", (0.0, -0.5, -0.6, 0.0, 1.1, 0.0)),
    "xarm7": Model(7, 7, "XS130412000001", (0.0, -0.5, 0.0, 0.8, 0.0, 1.3, 0.0)),
    "lite6": Model(6, 9, "LI100612000001", (0.0, 0.2, 0.8, 0.0, 0.6, 0.0)),
}


class XarmTwin:
    """A ``TwinServer``. ``address`` is an IP address. ``observe``: "positions" (J,), "gripper", "mode", "state",
    "error", "commands" (setpoints so far).

    Faults: a protective stop is a collision (error 31), ``hot`` the error of that joint's servo; both last until they
    are cleared. An emergency stop lasts as long as it is set. ``reboot``: every connection closes, and the arm comes
    back not enabled.
    """

    def __init__(
        self,
        model: str,
        plant: str = "first_order",
        *,
        reports: str = "",
        serial: str = "",
        start: tuple[float, ...] = (),
        reboot_s: float = 1.0,
        error: int = 0,
    ) -> None:
        """``model``, a key of ``MODELS``; it reports to be ``reports`` and of ``serial`` number where these are
        given. ``error``: with which code it starts."""
        self._model = MODELS[reports or model]
        self._serial = serial or self._model.serial
        limits = limits_of(model)
        self._limits = limits
        self._joints = limits.joints
        low = np.append(limits.low - _BEYOND, 0.0)
        high = np.append(limits.high + _BEYOND, 1.0)
        positions = np.append(start or MODELS[model].start, 0.0)
        self._plant = make_plant(plant, PlantSpec(model, positions, low, high, has_gripper=True, motor=_MOTOR))
        self._lock = threading.RLock()
        self._faults = Faults()
        self._reboot_s = reboot_s
        self._commands = 0
        self._boot()
        self._error = error
        ports: dict[int, Callable[[socket.socket], None]] = {COMMANDS: self._serve_commands}
        ports |= {port: self._reporter(port) for port in (NORMAL, RICH, REAL)}
        self._listeners = Listeners(ports)
        self.address = self._listeners.address

    def start(self) -> None:
        self._listeners.open()

    def fault(self, faults: Faults) -> None:
        faults.check("an xArm", FAULTS)
        with self._lock:
            self._faults = faults
            if faults.protective_stop:
                self._stop(COLLISION)
            if faults.hot:
                self._stop(SERVO_1 + faults.hot[0])
            if faults.emergency_stop:
                self._stop(EMERGENCY)
        if faults.reboot:
            threading.Thread(target=self._reboot, daemon=True).start()
        elif faults.unplugged:
            self._listeners.refuse()
        else:
            self._listeners.open()

    def observe(self) -> dict[str, Any]:
        with self._lock:
            self._plant.advance(now_ns())
            return {
                "positions": self._plant.positions[: self._joints].copy(),
                "gripper": float(self._plant.positions[-1]),
                "mode": self._mode,
                "state": self._state,
                "error": self._error,
                "commands": self._commands,
            }

    def close(self) -> None:
        self._listeners.close()
        self._plant.close()

    # --- the arm

    def _boot(self) -> None:
        self._mode, self._state, self._error, self._enabled = 0, _STOPPED, 0, False
        self._plant.target(self._plant.positions)

    def _reboot(self) -> None:
        self._listeners.close()
        time.sleep(self._reboot_s)
        with self._lock:
            self._boot()
        self._listeners.open()

    def _stop(self, error: int) -> None:
        self._error, self._state = error, _STOPPED
        self._enabled = self._enabled and error != EMERGENCY
        self._hold()

    def _hold(self) -> None:
        self._plant.advance(now_ns())
        stay = self._plant.positions.copy()
        stay[-1] = np.nan
        self._plant.target(stay)

    def _limp(self) -> None:
        off = np.full(self._joints + 1, self._mode == _MANUAL_MODE or not self._enabled)
        off[-1] = False
        self._plant.limp(off)

    def _seven(self, values: np.ndarray) -> list[float]:
        """Of every arm the box speaks of seven joints."""
        return [*values[: self._joints].tolist(), *[0.0] * (7 - self._joints)]

    # --- port 502

    def _serve_commands(self, client: socket.socket) -> None:
        received = b""
        while got := client.recv(4096):
            received += got
            while len(received) >= _HEADER.size:
                transaction, protocol, length, function = _HEADER.unpack_from(received)
                if len(received) < 6 + length:
                    break
                arguments, received = received[_HEADER.size : 6 + length], received[6 + length :]
                if (reply := self._answer(transaction, protocol, function, arguments)) is not None:
                    client.sendall(reply)

    def _answer(self, transaction: int, protocol: int, function: int, arguments: bytes) -> bytes | None:
        faults = self._faults
        late_s = faults.latency_s + _SPIKE_S * (random.random() < faults.spikes)
        if late_s:
            time.sleep(late_s)
        if faults.unplugged or random.random() < faults.lose:
            return None
        with self._lock:
            self._plant.advance(now_ns())
            known = _FUNCTIONS.get(function)
            values = known(self, arguments) if known else b""
            state = 0x40 * (self._error != 0) | 0x10 * (self._state >= _STOPPED) | 0x08 * (known is None)
        reply = _HEADER.pack(transaction, protocol, 2 + len(values), function) + bytes([state]) + values
        if random.random() < faults.truncate:
            reply = reply[: random.randrange(1, len(reply))]
        return reply

    def _version(self, _: bytes) -> bytes:
        model = self._model
        return f"{model.axes},{model.type},{self._serial},AC1300,v2.5.0".encode().ljust(40, b"\0")

    def _serial_number(self, _: bytes) -> bytes:
        return self._serial.encode().ljust(40, b"\0")

    def _enable(self, arguments: bytes) -> bytes:
        self._enabled = bool(arguments[1]) and not self._faults.emergency_stop
        self._limp()
        return b""

    def _set_state(self, arguments: bytes) -> bytes:
        wanted = arguments[0]
        if wanted == 0 and self._error == 0 and self._enabled:
            self._state = _READY
        elif wanted == 4:
            self._state = _STOPPED
        self._hold()
        self._limp()
        return b""

    def _set_mode(self, arguments: bytes) -> bytes:
        self._mode, self._state = arguments[0], _MODE_CHANGED
        return b""

    def _clean(self, _: bytes) -> bytes:
        if not self._faults.emergency_stop:
            self._error = 0
        return b""

    def _servo_joints(self, arguments: bytes) -> bytes:
        wanted = np.array(struct.unpack_from("<7f", arguments)[: self._joints], np.float64)
        if self._state < _STOPPED and self._mode == _SERVO_MODE:
            if (wanted < self._limits.low - 1e-3).any() or (wanted > self._limits.high + 1e-3).any():
                self._stop(JOINT_LIMIT)
            else:
                self._commands += 1
                self._plant.target(np.append(wanted, np.nan))
        return b""

    def _joint_states(self, arguments: bytes) -> bytes:
        """Positions, velocities, torques: as many of them as the argument says."""
        many = (arguments[0] & 0x0F) if arguments else 1
        plant = self._plant
        found = np.zeros((3, 7), "<f4")
        for row, values in zip(found, (plant.positions, plant.velocities, plant.efforts * _TORQUE), strict=True):
            row[: self._joints] = values[: self._joints]
        return found[:many].tobytes()

    def _tool_bus(self, arguments: bytes) -> bytes:
        """Modbus RTU frames to the gripper: device, function (3 read, 16 write), register, count, values."""
        device, function, register, count = struct.unpack_from(">BBHH", arguments, 1)
        if device != _GRIPPER_ID:
            return arguments[:1]
        head = arguments[:3]
        if function == 16:
            if register == _TARGET_REGISTER:
                (pulses,) = struct.unpack_from(">i", arguments, 8)
                target = np.full(self._joints + 1, np.nan)
                target[-1] = pulses / GRIPPER_PULSES
                self._plant.target(target)
            return head + arguments[3:7]
        values = bytes(2 * count)
        if register == _POSITION_REGISTER:
            values = struct.pack(">i", round(float(self._plant.positions[-1]) * GRIPPER_PULSES))
        return head + bytes([2 * count]) + values

    def _tool_output(self, arguments: bytes) -> bytes:
        """The Lite 6 gripper: output 1 opens, output 2 closes."""
        (register,) = struct.unpack_from(">H", arguments, 1)
        (value,) = struct.unpack_from("<f", arguments, 3)
        if register == _DIGITAL_OUT:
            target = np.full(self._joints + 1, np.nan)
            if int(value) & 0x0101 == 0x0101:
                target[-1] = 1.0
            if int(value) & 0x0202 == 0x0202:
                target[-1] = 0.0
            self._plant.target(target)
        return b""

    # --- reports

    def _reporter(self, port: int) -> Callable[[socket.socket], None]:
        def serve(client: socket.socket) -> None:
            period, due = period_ns(_RATES_HZ[port]), now_ns()
            while True:
                due = max(due + period, now_ns())
                wait_until_ns(due)
                faults = self._faults
                if faults.unplugged or random.random() < faults.lose:
                    continue
                report = self._report(port)
                if random.random() < faults.truncate:
                    report = report[: random.randrange(1, len(report))]
                client.sendall(report)

        return serve

    def _report(self, port: int) -> bytes:
        with self._lock:
            self._plant.advance(now_ns())
            plant, model = self._plant, self._model
            bits = 0xFF if self._enabled else 0
            body = struct.pack(">BH", self._mode << 4 | self._state, 0)
            body += struct.pack("<7f", *self._seven(plant.positions)) + struct.pack("<6f", *[0.0] * 6)
            body += struct.pack("<7f", *self._seven(plant.efforts * _TORQUE))
            if port == REAL:
                body += struct.pack("<12f", *plant.wrench, *plant.wrench)
            else:
                body += bytes([bits, bits, self._error, 0])
                body += struct.pack("<10f", *[0.0] * 10) + bytes([3, 3]) + struct.pack("<3f", 0.0, 0.0, -1.0)
            if port == RICH:
                hot = [95 if j in self._faults.hot else 30 for j in range(7)]
                body += bytes([model.type, model.axes, 0, 0, 0, 0]) + b"v2.5.0".ljust(30, b"\0")
                body += struct.pack("<5f", 1000.0, 1.0, 50000.0, 0.1, 1000.0)
                body += struct.pack("<5f", 20.0, 0.01, 20.0, 0.0001, 4.0) + struct.pack("<2f", 2.3, 2.7)
                body += bytes(16) + bytes(hot) + struct.pack("<8f", 0.0, *self._seven(plant.velocities))
                body += struct.pack(">I", 0)
        return struct.pack(">I", 4 + len(body)) + body


def _nothing(_: XarmTwin, __: bytes) -> bytes:
    return b""


_FUNCTIONS: dict[int, Callable[[XarmTwin, bytes], bytes]] = {
    1: XarmTwin._version,
    2: XarmTwin._serial_number,
    11: XarmTwin._enable,
    12: XarmTwin._set_state,
    13: lambda twin, _: bytes([twin._state]),
    14: lambda twin, _: bytes(2),
    15: lambda twin, _: bytes([twin._error, 0]),
    16: XarmTwin._clean,
    17: _nothing,
    19: XarmTwin._set_mode,
    29: XarmTwin._servo_joints,
    42: XarmTwin._joint_states,
    124: XarmTwin._tool_bus,
    127: XarmTwin._tool_output,
    128: lambda twin, _: struct.pack(">i", _BAUD_2M),
}
"""Function number -> (arguments) -> values."""
