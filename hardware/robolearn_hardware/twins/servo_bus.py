"""The twin of a servo bus: motors behind a pseudo-terminal, which answer the vendors' SDKs.

Its address is a link to the terminal, so that the same path leads there again after it was unplugged. It answers at its
own baud rate only, after the time that the bytes take on the wire and the adapter holds them back.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import tempfile
import termios
import threading
import tty
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.servo.calibration import Calibration
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.servo.registers import FEETECH_STS, MOTORS
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.plant import Motor, PlantSpec, make_plant
from robolearn_hardware.twins.servo_motor import TwinMotor
from robolearn_hardware.twins.servo_packets import BROADCAST, DynamixelPackets, FeetechPackets, Packets, Request

_SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()}
_POSSIBLE = frozenset(
    {"lose", "corrupt", "truncate", "latency_s", "spikes", "silent", "hot", "frozen", "unplugged", "reboot"}
)
_IDLE_S = 0.02
"""How often the motors move on while nobody asks them anything."""
_SPIKE_NS = 50_000_000
_STOP_MARGIN_RAD = 0.1
"""Between the calibrated ends of a joint and its mechanical stops."""
_PLAY_RAD = math.radians(0.25)
"""Of the gears: X series, 15 arcmin (e-Manual); STS3215, at most 0.5 deg (data sheet)."""
_GIVE_RAD = 0.3
"""By which a person's hand gives way to a motor that pulls with all it has."""
_GAP_NS = 5_000_000
"""A request with a longer pause in it is given up."""
_RETURN_DELAY_UNIT_NS = 2_000
_PRIORITY = 40
"""SCHED_FIFO, where it is permitted: below the servo loop's 50, above whatever else runs."""


class ServoBusTwin:
    """See ``TwinServer``. What it says of itself in ``observe``:

    positions: (n,) of the plant; temperatures: (n,); torque, registers: by motor ID; requests: how many it has seen.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        baud: int,
        plant: str = "first_order",
        usb_latency_s: float = 0.001,
        wire_time: bool = True,
        start: Sequence[float] | None = None,
        stops: Mapping[str, tuple[float, float]] | None = None,
        numbers: Mapping[int, int] | None = None,
        duplicates: Mapping[int, int] | None = None,
        missing: Sequence[int] = (),
        hand_hz: float = 0.0,
        reach: float = 0.5,
        seed: int = 0,
    ) -> None:
        """A bus of the motors of ``calibration``, which hold what it says in their EEPROM.

        Args:
            plant: what moves, see ``make_plant``.
            usb_latency_s: how long the adapter holds an answer back (FTDI: 16 ms as delivered, 1 ms when told to).
            wire_time: False: bytes take no time.
            start: where the joints and the gripper stand (n,); the middle of their ranges if not given.
            stops: name of a joint -> where it is blocked, rad.
            numbers: ID -> another model number than its own.
            duplicates: ID -> the ID that it wrongly has.
            missing: IDs of motors that are not there.
            hand_hz: how often a person moves the arm to and fro, giving way to its motors; 0: nobody does.
            reach: share of each joint's range which that covers.
        """
        model = MODELS[calibration.arm]
        self._packets: Packets = FeetechPackets() if model.table is FEETECH_STS else DynamixelPackets()
        self._baud, self._usb_ns, self._wire_time = baud, round(usb_latency_s * SECOND_NS), wire_time
        self._byte_ns = 10 * SECOND_NS / baud
        self._faults, self._random, self._hand_hz = Faults(), random.Random(seed), hand_hz
        self._hand: np.ndarray | None = None
        names = [*(joint.name for joint in model.joints), *([model.gripper] if model.gripper else [])]
        low, high = [], []
        for name in names:
            ends = (0.0, 1.0) if name == model.gripper else calibration.motors[name].ends
            margin = 0.0 if name == model.gripper else _STOP_MARGIN_RAD
            first, last = (stops or {}).get(name, (ends[0] - margin, ends[1] + margin))
            low.append(first)
            high.append(last)
        middle = (np.array(low) + np.array(high)) / 2 if start is None else np.array(start, np.float64)
        kinds = [MOTORS[calibration.motors[joint.name].motor] for joint in model.joints]
        motor = Motor(speed=min(kind.speed for kind in kinds), backlash=_PLAY_RAD)
        has_gripper = bool(model.gripper)
        spec = PlantSpec(model.name, middle, np.array(low), np.array(high), has_gripper, motor)
        self._middle, self._reach = middle, np.minimum(middle - np.array(low), np.array(high) - middle) * reach
        self._plant = make_plant(plant, spec)
        self._motors: list[TwinMotor] = []
        self._entry: list[int] = []
        """Of each motor: which entry of the plant it moves."""
        for joint in model.motors:
            true = calibration.motors[joint.name]
            if true.id in missing:
                continue
            at = (duplicates or {}).get(true.id, true.id)
            number = (numbers or {}).get(true.id)
            self._motors.append(TwinMotor(true, grips=joint.name == model.gripper, id=at, number=number))
            self._entry.append(names.index(joint.shadow_of or joint.name))
        self._registered: list[tuple[TwinMotor, int, bytes]] = []
        self._requests = 0
        self._stepped_ns = now_ns()
        self._folder = tempfile.TemporaryDirectory(prefix="robolearn-twin-")
        self.address = str(Path(self._folder.name) / f"tty-{calibration.arm}")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="servo bus", daemon=True)
        self._master, self._slave = -1, -1
        self._step(now_ns())
        self._plug()

    def start(self) -> None:
        self._thread.start()

    def guide(self, positions: Sequence[float] | None) -> int:
        """A person takes the joints and the gripper (n,) there and keeps them there, giving way to motors that are on;
        None: lets go. Returns when it begins (ns)."""
        with self._lock:
            self._hand_hz = 0.0
            self._step(now_ns())
            self._hand = None if positions is None else np.array(positions, np.float64)
            return now_ns()

    def fault(self, faults: Faults) -> None:
        faults.check("a servo bus", _POSSIBLE)
        with self._lock:
            self._faults = faults
            for motor, entry in zip(self._motors, self._entry, strict=True):
                motor.hot = entry in faults.hot
                if faults.reboot:
                    motor.restart(now_ns() / SECOND_NS)
            if faults.unplugged:
                self._unplug()
            elif self._master < 0:
                self._plug()
            self._step(now_ns())

    def observe(self) -> dict[str, Any]:
        with self._lock:
            self._step(now_ns())
            motors = self._motors
            return {
                "positions": self._plant.positions.copy(),
                "temperatures": np.array([motor.temperature for motor in motors]),
                "torque": {motor.id: motor.torque for motor in motors},
                "registers": {motor.id: {name: motor[name] for name in motor.table.registers} for motor in motors},
                "requests": self._requests,
            }

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2)
        with self._lock:
            self._unplug()
        self._plant.close()
        self._folder.cleanup()

    def _plug(self) -> None:
        self._master, self._slave = os.openpty()  # holding the other end too: the terminal outlives a driver's close
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        os.symlink(os.ttyname(self._slave), self.address)

    def _unplug(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.address)
        for end in (self._master, self._slave):
            if end >= 0:
                os.close(end)
        self._master = self._slave = -1

    def _serve(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # motors answer in time however busy the machine is
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
        buffer = bytearray()
        last_ns = now_ns()
        while not self._closing.is_set():
            with self._lock:
                master = self._master
            if master < 0:
                buffer.clear()
                self._closing.wait(0.02)
                continue
            try:
                if not select.select([master], [], [], _IDLE_S)[0]:
                    with self._lock:
                        self._step(now_ns())
                    continue
                data = os.read(master, 4096)
                speed = _SPEEDS.get(termios.tcgetattr(master)[4])
            except (OSError, ValueError, termios.error):  # unplugged meanwhile
                continue
            arrived = now_ns()
            if arrived - last_ns > _GAP_NS:
                buffer.clear()
            last_ns = arrived
            if speed != self._baud:
                continue  # at another rate all of it is noise
            buffer += data
            while (request := self._packets.take(buffer)) is not None:
                self._answer(request, arrived)

    def _answer(self, request: Request, arrived_ns: int) -> None:
        there_ns = arrived_ns + round(request.length * self._byte_ns)
        if self._wire_time:
            wait_until_ns(there_ns)
        with self._lock:
            self._requests += 1
            self._step(now_ns())
            answers = self._carry_out(request)
            faults = self._faults
        data = b"".join(self._damaged(answer, faults) for answer in answers)
        if not data:
            return
        due_ns = now_ns() + round(faults.latency_s * SECOND_NS)
        if self._wire_time:
            due_ns += round(len(data) * self._byte_ns) + self._usb_ns + self._return_delay(request)
        if self._random.random() < faults.spikes:
            due_ns += _SPIKE_NS
        wait_until_ns(due_ns)
        with self._lock, contextlib.suppress(OSError):
            if self._master >= 0:
                os.write(self._master, data)

    def _carry_out(self, request: Request) -> list[bytes]:
        """Do what a request says, and return the status packets that come back."""
        now_s = now_ns() / SECOND_NS
        awake = [m for m in self._motors if m.id not in self._faults.silent and m.silent_until_s <= now_s]
        if request.instruction == "sync_write":
            for motor in awake:
                for id in _ids_of(motor):
                    if id in request.writes:
                        motor.write(request.address, request.writes[id])
                        break
            return []
        if request.instruction == "sync_read":
            return self._in_turn(request, awake)
        if request.instruction == "action":
            for motor, address, data in self._registered:
                motor.write(address, data)
            self._registered.clear()
            return []
        meant = [m for m in awake if request.id in (m.id, BROADCAST)]
        answers = []
        for motor in meant:
            if request.instruction == "ping":
                firmware = motor["firmware_version"] if "firmware_version" in motor.table.registers else 0
                answers.append(self._status(motor, 0, self._packets.ping_data(motor["model_number"], firmware)))
            elif request.instruction == "read" and request.id != BROADCAST:
                answers.append(self._status(motor, 0, motor.read(request.address, request.size)))
            elif request.instruction == "write":
                answers.append(self._status(motor, motor.write(request.address, request.data)))
            elif request.instruction == "reg_write":
                self._registered.append((motor, request.address, request.data))
                answers.append(self._status(motor, 0))
            elif request.instruction == "reboot" and not isinstance(self._packets, FeetechPackets):
                answers.append(self._status(motor, 0))
                motor.restart(now_s)
        if request.instruction == "write" and request.id != BROADCAST and request.address >= 64:
            for motor in awake:
                if motor.id != request.id and request.id in _ids_of(motor):
                    motor.write(request.address, request.data)  # by its secondary ID: it does, and says nothing
        if request.id == BROADCAST:
            return answers if request.instruction == "ping" else []
        return answers if len(answers) < 2 else [_collided(answers[0], answers[1])]

    def _in_turn(self, request: Request, awake: list[TwinMotor]) -> list[bytes]:
        """Each waits for the answer of the one before it, so that behind a silent motor all are silent."""
        answers = []
        for id in request.motors:
            meant = [motor for motor in awake if motor.id == id]
            if not meant:
                break
            each = [self._status(motor, 0, motor.read(request.address, request.size)) for motor in meant]
            answers.append(each[0] if len(each) == 1 else _collided(each[0], each[1]))
        return answers

    def _status(self, motor: TwinMotor, error: int, data: bytes = b"") -> bytes:
        return self._packets.status(motor.id, error | motor.error, data)

    def _damaged(self, answer: bytes, faults: Faults) -> bytes:
        if self._random.random() < faults.lose:
            return b""
        if self._random.random() < faults.corrupt:
            at = self._random.randrange(len(answer))
            answer = answer[:at] + bytes([answer[at] ^ (1 << self._random.randrange(8))]) + answer[at + 1 :]
        if self._random.random() < faults.truncate:
            answer = answer[: self._random.randrange(len(answer))]
        return answer

    def _return_delay(self, request: Request) -> int:
        return _RETURN_DELAY_UNIT_NS * next((m["return_delay_time"] for m in self._motors if m.id == request.id), 0)

    def _step(self, at_ns: int) -> None:
        """Move on to an instant, and let every motor feel where it is."""
        n = len(self._plant.positions)
        target, limp, strength = np.full(n, np.nan), np.ones(n, bool), np.zeros(n)
        for motor, entry in zip(self._motors, self._entry, strict=True):
            if motor.torque:
                target[entry], limp[entry], strength[entry] = motor.goal(), False, motor.strength
        if self._hand_hz:
            self._hand = self._middle + self._reach * math.sin(2 * math.pi * self._hand_hz * at_ns / SECOND_NS)
        if self._hand is not None:
            pulled = np.where(limp, 0.0, target - self._hand)
            target = self._hand + np.clip(pulled, -_GIVE_RAD * strength, _GIVE_RAD * strength)
            limp[:] = False
        self._plant.limp(limp)
        self._plant.target(target)
        self._plant.advance(at_ns)
        dt_s = (at_ns - self._stepped_ns) / SECOND_NS
        self._stepped_ns = at_ns
        if self._faults.frozen:
            return
        for motor, i in zip(self._motors, self._entry, strict=True):
            plant = self._plant
            motor.sense(float(plant.positions[i]), float(plant.velocities[i]), float(plant.efforts[i]), dt_s)


def _ids_of(motor: TwinMotor) -> tuple[int, ...]:
    """Its ID, and its secondary one where it has that (e-Manual, "Secondary(Shadow) ID")."""
    if "secondary_id" in motor.table.registers and motor["secondary_id"] <= 252:
        return (motor.id, motor["secondary_id"])
    return (motor.id,)


def _collided(first: bytes, second: bytes) -> bytes:
    """Two motors drive the line at once, the second a bit later: a zero of either wins."""
    later = [(byte << 1 | 1) & 0xFF for byte in second]
    return bytes(a & b for a, b in zip(first, later, strict=False))
