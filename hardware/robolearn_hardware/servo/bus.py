"""A line of servo motors: named registers, all motors at once, and what is wrong when one does not answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from robolearn_hardware.devices import DeviceError, DeviceGoneError, DeviceTimeoutError
from robolearn_hardware.servo.port import NoiseError, SerialLine
from robolearn_hardware.servo.registers import MotorModel, motor_named
from robolearn_hardware.servo.wire import Answer, LostAnswerError, Wire

T = TypeVar("T")

_TRIES = 4
"""The last waits for 27 times as long as a motor takes: half a second, where a computer or an adapter stood still."""
_LENGTHS = 25
"""How many lengths of an answer there are; so many losses in a row take more than a second."""
_FORGET_LOSSES = 50
"""After so many exchanges without a loss, no answer can be on its way any more."""


@dataclass(frozen=True)
class Reading:
    """What one motor said of itself in a tick."""

    values: Mapping[str, int]
    """Register -> its value, in the motor's units."""
    error: int
    """Its fault bits, 0 when it is well."""


class ServoBus:
    """One serial line and its motors, used by one thread. Made closed.

    Every method but ``open`` raises DeviceGoneError when the port is closed or was unplugged.
    """

    def __init__(self, name: str, wire: Wire, port: str, baud: int, *, reply_s: float = 0.02) -> None:
        """``name`` begins every message. ``reply_s``: the longest that an adapter and a motor take to answer."""
        self.name, self.address, self.baud = name, port, baud
        self.table = wire.table
        self._wire = wire
        self._reply_s = reply_s
        self._port: SerialLine | None = None
        self._unsettled = self._unheard = False
        self._losses = self._good = 0
        self._until_s = math.inf
        first, last = (self._span(*self.table.state)[i] for i in (0, 1))
        self._state = (first, last - first)

    @property
    def is_open(self) -> bool:
        return self._port is not None

    def open(self) -> None:
        """Raises DeviceError: see ``SerialLine``."""
        self.close()
        try:
            self._port = SerialLine(self.address, self.baud, reply_s=self._reply_s)
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {error}") from None

    def close(self) -> None:
        """May be called twice."""
        port, self._port = self._port, None
        if port is not None:
            port.close()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What is done inside ends with DeviceTimeoutError when it has taken so long."""
        self._until_s = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until_s = math.inf

    def ping(self, motor: int) -> int:
        """Its model number.

        Raises:
            DeviceTimeoutError: it did not answer, or garbled.
        """
        return self.read(motor, "model_number", tries=3)

    def scan(self) -> dict[int, MotorModel | int]:
        """Every motor that answers: its ID -> what it is, or its model number when that is unknown. About 2 s."""
        found: dict[int, MotorModel | int] = {}
        for motor in sorted(self._once(lambda port: self._wire.scan(port))):
            try:
                number = self.ping(motor)
            except DeviceTimeoutError:
                number = 0
            found[motor] = motor_named(number, self.table) or number
        return found

    def read(self, motor: int, register: str, *, tries: int = _TRIES) -> int:
        """Raises DeviceTimeoutError after so many tries."""
        at = self.table[register]

        def exchange(port: SerialLine) -> bytes:
            before, behind = (self._losses, 0) if at.address >= self._losses else (0, self._losses)
            size = before + at.size + behind
            self._wire.ask(port, motor, at.address - before, size)
            return self._receive(port, motor, size).data[before : before + at.size]

        return at.decode(self._try(exchange, f"motor {motor}", tries))

    def write(self, motor: int, register: str, value: int) -> None:
        """Write, and have it confirmed.

        Raises:
            DeviceTimeoutError: not confirmed after four tries.
            DeviceError: the motor refuses the value.
        """
        at = self.table[register]
        data = at.encode(value)

        def exchange(port: SerialLine) -> Answer:
            self._wire.tell(port, motor, at.address, data)
            return self._receive(port, motor, 0)

        answer = self._try(exchange, f"motor {motor}")
        if answer.error & ~self._wire.faulty:
            raise DeviceError(
                f"{self.name}: motor {motor} refuses {register} = {value} (error {answer.error:#04x}); "
                "is its torque off, and the value within its range?"
            )
        if self._losses and self.read(motor, register) != value:  # what confirmed it may have been a late answer
            raise DeviceTimeoutError(f"{self.name}: motor {motor} has not taken {register} = {value}; check its cable")

    def read_state(self, motors: Sequence[int]) -> dict[int, Reading]:
        """Position, velocity, current and more of all ``motors`` in one exchange; who does not answer is left out.

        After a silent motor those behind it in the order are silent too: it waits for its turn (Protocol 2.0,
        "Sync Read"). So ask last whoever may be missing. When nobody did, the next answers are waited for three times
        as long: where each comes a bit too late, none would ever count.
        """
        found = self._once(lambda port: self._read_state(port, motors), patience=3 if self._unheard else 1)
        self._unheard = not found
        return found

    def write_all(self, register: str, values: Mapping[int, int]) -> None:
        """Write one register of many motors in one packet, which they do not confirm."""
        at = self.table[register]
        data = b"".join(bytes([motor]) + at.encode(value) for motor, value in values.items())
        self._once(lambda port: self._wire.write_all(port, at.address, at.size, data))

    def reboot(self, motor: int) -> bool:
        """Restart a motor: its RAM is as after power-on, its torque off. False where motors cannot be told to."""
        return self._try(lambda port: self._wire.reboot(port, motor), f"motor {motor}")

    def errors(self, motor: int, bits: int) -> str:
        """What the fault bits of ``read_state`` mean, in words."""
        if bits == 0x80:
            bits = self.read(motor, "hardware_error")
        names = [name for bit, name in self.table.error_names.items() if bits >> bit & 1]
        return ", ".join(names) or f"error {bits:#04x}"

    def check(self, motors: Mapping[int, tuple[str, MotorModel]]) -> None:
        """That the ``motors`` (ID -> its joint and model) are there and are those.

        Raises:
            DeviceError: none, one is missing, two have one ID, another model; the message says what to do.
        """
        numbers: dict[int, int] = {}
        silent: list[int] = []
        garbled: list[int] = []
        for motor in motors:
            try:
                numbers[motor] = self.ping(motor)
            except DeviceGoneError:
                raise
            except _GarbledError:
                garbled.append(motor)
            except DeviceTimeoutError:
                silent.append(motor)
        if garbled:
            raise DeviceError(
                f"{self.name}: the answers of {self._called(garbled, motors)} are garbled: two motors have the same "
                "ID, or a cable is loose; connect the motors one by one and give each its own ID"
            )
        if len(silent) == len(motors):
            raise DeviceError(self._why_nothing(list(motors)))
        if silent:
            there = ", ".join(map(str, self.scan())) or "none"
            raise DeviceError(
                f"{self.name}: {self._called(silent, motors)} does not answer (IDs that do: {there}); check its "
                "cable and power, and that it has this ID"
            )
        for motor, (joint, model) in motors.items():
            if numbers[motor] != model.number:
                other = motor_named(numbers[motor], self.table)
                is_named = other.name if other else f"model {numbers[motor]}"
                raise DeviceError(
                    f"{self.name}: motor {motor} ({joint}) is {is_named}, not {model.name}; is this another arm's "
                    "port, or are two motors exchanged?"
                )

    def _why_nothing(self, motors: list[int]) -> str:
        """No motor answers: perhaps they do at another baud rate."""
        found = None
        for baud in self.table.baud_rates:
            if baud == self.baud:
                continue
            other = ServoBus(self.name, self._wire, self.address, baud, reply_s=self._reply_s)
            self.close()
            try:
                other.open()
                if any(other._answers(motor) for motor in motors[:3]):
                    found = baud
                    break
            except DeviceError:
                continue
            finally:
                other.close()
        self.open()
        if found:
            return (
                f"{self.name}: no motor answers at {self.baud} baud on {self.address}, but some do at {found}; set "
                f"baud: {found} in the rig, or change the motors'"
            )
        return (
            f"{self.name}: no motor answers on {self.address}; is the arm's power on, and is this its port? "
            "(`robolearn find` tries each)"
        )

    def _answers(self, motor: int) -> bool:
        try:
            self.read(motor, "model_number", tries=2)
        except DeviceTimeoutError:
            return False
        return True

    def _receive(self, port: SerialLine, motor: int, size: int) -> Answer:
        """The answer of ``motor`` with ``size`` bytes of data; others are late answers to earlier questions."""
        while True:
            answer = self._wire.receive(port)
            if answer.id == motor and len(answer.data) == size:
                return answer

    def _read_state(self, port: SerialLine, motors: Sequence[int]) -> dict[int, Reading]:
        address, size = self._state
        address, size = address - self._losses, size + self._losses
        self._wire.ask_all(port, motors, address, size)
        found: dict[int, Reading] = {}
        while len(found) < len(motors):
            try:
                answer = self._wire.receive(port)
            except (LostAnswerError, IndexError):  # one was damaged; the next may be whole
                if port.isPacketTimeout():
                    break
                continue
            except NoiseError:
                break
            if answer.id in motors and len(answer.data) == size:
                found[answer.id] = self._reading(answer, address)
        if len(found) < len(motors):
            self._lost()
        return found

    def _lost(self) -> None:
        """An answer may come late, and must not pass for that to the next question. Packets carry no number; their
        length tells: after each loss one more byte is read beside those that are wanted."""
        self._unsettled = True
        self._losses = (self._losses + 1) % _LENGTHS
        self._good = 0

    def _reading(self, answer: Answer, first: int) -> Reading:
        values = {}
        for name in self.table.state:
            register = self.table[name]
            start = register.address - first
            values[name] = register.decode(answer.data[start : start + register.size])
        return Reading(values, answer.error & self._wire.faulty)

    def _span(self, *names: str) -> tuple[int, int]:
        """First address of these registers, and the one after their last."""
        registers = [self.table[name] for name in names]
        return min(r.address for r in registers), max(r.address + r.size for r in registers)

    def _called(self, motors: Iterable[int], names: Mapping[int, tuple[str, MotorModel]]) -> str:
        return ", ".join(f"motor {motor} ({names[motor][0]})" for motor in motors)

    def _try(self, exchange: Callable[[SerialLine], T], what: str, tries: int = _TRIES) -> T:
        """Each try is more patient than the one before."""
        for attempt in range(tries - 1):
            try:
                return self._once(exchange, what, patience=3**attempt)
            except DeviceTimeoutError:
                pass
        return self._once(exchange, what, patience=3 ** (tries - 1))

    def _once(self, exchange: Callable[[SerialLine], T], what: str = "the bus", *, patience: float = 1.0) -> T:
        port = self._port
        if port is None:
            raise DeviceGoneError(f"{self.name}: {self.address} is not connected; connect first")
        if time.monotonic() > self._until_s:
            raise DeviceTimeoutError(
                f"{self.name}: too many answers on {self.address} are late or lost; check the cables, close programs "
                "that keep this machine busy, or raise reply_s in the rig"
            )
        try:
            if self._unsettled:
                port.settle()
                self._unsettled = False
            port.reply_s = self._reply_s * patience
            answer = exchange(port)
            self._good += 1
            if self._good > _FORGET_LOSSES:
                self._losses = 0
            return answer
        except DeviceGoneError as gone:
            self.close()
            raise DeviceGoneError(f"{self.name}: {gone}") from None
        except LostAnswerError as lost:
            self._lost()
            if lost.garbled:
                raise _GarbledError(f"{self.name}: the answer of {what} was garbled; check the cables") from None
            raise DeviceTimeoutError(f"{self.name}: {what} does not answer; check its cable and power") from None
        except (NoiseError, IndexError):  # the SDKs index past the end of some damaged packets
            self._lost()
            raise _GarbledError(f"{self.name}: there is noise where {what} should answer; check the cables") from None
        finally:
            port.is_using = False


class _GarbledError(DeviceTimeoutError):
    """An answer came, and was damaged."""
