"""Bytes on a servo bus: encodings, packets, and hostile bytes in both directions."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servo_twins import KINDS, bench

from robolearn_hardware.devices import DeviceError, DeviceTimeoutError
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.dynamixel import DynamixelWire
from robolearn_hardware.servo.feetech import FeetechWire
from robolearn_hardware.servo.registers import DYNAMIXEL_X, FEETECH_STS, MOTORS, Register
from robolearn_hardware.twins.servo_packets import DynamixelPackets, FeetechPackets, checksum, crc16

PACKETS = (FeetechPackets(), DynamixelPackets())
WIRES = (FeetechWire, DynamixelWire)
READ_POSITION = (
    bytes.fromhex("ffff0104023802be"),  # Feetech manual, "READ DATA"
    bytes.fromhex("fffffd000107000284000400" + "1d15"),  # e-Manual, Protocol 2.0, "Read (0x02)"
)


@given(st.sampled_from([FEETECH_STS, DYNAMIXEL_X]), st.data())
def test_every_register_gives_back_what_was_put_in(table: object, data: st.DataObject) -> None:
    register = data.draw(st.sampled_from(list(table.registers.values())))  # type: ignore[attr-defined]
    bits = 8 * register.size if register.sign_bit is None else register.sign_bit
    if register.sign_bit is not None:
        low, high = -(1 << bits) + 1, (1 << bits) - 1
    elif register.signed:
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    else:
        low, high = 0, (1 << bits) - 1
    value = data.draw(st.integers(low, high))
    encoded = register.encode(value)
    assert len(encoded) == register.size
    assert register.decode(encoded) == value
    with pytest.raises(OverflowError):
        register.encode(high + 1)


def test_negative_numbers_are_as_the_vendors_publish_them() -> None:
    assert Register(31, 2, sign_bit=11).encode(-5) == bytes([5, 8])  # STS3215: bit 11 is the direction
    assert Register(58, 2, sign_bit=15).decode(bytes([0x2C, 0x81])) == -300
    assert Register(132, 4, signed=True).decode(bytes([0xFF] * 4)) == -1  # Dynamixel X: two's complement


def test_registers_that_move_a_motor_lie_where_the_vendors_publish_them() -> None:
    """The twins read the same tables as the drivers, so these are written down a second time."""
    feetech = {"model_number": 3, "homing_offset": 31, "torque_enable": 40, "goal_position": 42, "torque_limit": 48}
    feetech |= {"lock": 55, "present_position": 56, "present_velocity": 58, "present_load": 60, "hardware_error": 65}
    feetech |= {"present_temperature": 63, "present_current": 69, "min_position_limit": 9, "max_position_limit": 11}
    dynamixel = {"model_number": 0, "operating_mode": 11, "homing_offset": 20, "torque_enable": 64}
    dynamixel |= {"hardware_error": 70, "goal_current": 102, "goal_position": 116, "present_current": 126}
    dynamixel |= {"present_velocity": 128, "present_position": 132, "present_temperature": 146, "shutdown": 63}
    dynamixel |= {"max_position_limit": 48, "min_position_limit": 52, "profile_velocity": 112}
    for table, published in ((FEETECH_STS, feetech), (DYNAMIXEL_X, dynamixel)):
        assert {name: table[name].address for name in published} == published
    sizes = {DYNAMIXEL_X[name].size for name in ("goal_position", "present_position", "homing_offset")}
    assert sizes == {4}
    assert {FEETECH_STS[name].size for name in ("goal_position", "present_position", "homing_offset")} == {2}


def test_registers_of_a_table_do_not_overlap() -> None:
    for table in (FEETECH_STS, DYNAMIXEL_X):
        used: set[int] = set()
        for register in table.registers.values():
            span = set(range(register.address, register.address + register.size))
            assert not used & span
            used |= span
    assert len({(motor.number, id(motor.table)) for motor in MOTORS.values()}) == len(MOTORS)


def test_checksums_are_those_of_the_manuals() -> None:
    assert checksum(bytes.fromhex("010201")) == 0xFB  # Feetech manual: ping of motor 1 is FF FF 01 02 01 FB
    assert crc16(bytes.fromhex("fffffd0001030001")) == 0x4E19  # e-Manual: ping of motor 1 ends with 19 4E


@pytest.mark.parametrize(("which", "address", "size"), [(0, 56, 2), (1, 132, 4)])
def test_a_twin_understands_the_manuals_example_of_a_read(which: int, address: int, size: int) -> None:
    request = PACKETS[which].take(bytearray(READ_POSITION[which]))
    assert request is not None
    assert (request.id, request.instruction, request.address, request.size) == (1, "read", address, size)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 1]), st.lists(st.binary(max_size=40), max_size=6))
def test_a_twins_parser_ends_on_any_bytes_and_still_finds_a_request_behind_them(
    which: int, pieces: list[bytes]
) -> None:
    packets = PACKETS[which]
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while packets.take(buffer) is not None:
            pass
    # However long a packet the noise announced, requests that keep coming get through.
    found = []
    for _ in range(100):
        buffer += READ_POSITION[which]
        while (request := packets.take(buffer)) is not None:
            found.append(request.instruction)
        if "read" in found:
            break
        assert len(buffer) < 2000
    assert "read" in found


@contextmanager
def responder(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A serial port at whose other end something answers each request with any bytes."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            try:
                if request := os.read(master, 4096):
                    os.write(master, answer(request))
            except BlockingIOError:
                time.sleep(0.0005)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        stop.set()
        thread.join()
        os.close(master)
        os.close(slave)


@contextmanager
def babbler(file: Path) -> Iterator[str]:
    """A serial port at whose other end a process writes a file again and again, as fast as it can."""
    master, slave = os.openpty()
    tty.setraw(slave)
    command = ["sh", "-c", 'while cat "$0"; do :; done', str(file)]
    with subprocess.Popen(command, stdout=master, start_new_session=True) as process:
        try:
            yield os.ttyname(slave)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the shell and its cat
            os.close(master)
            os.close(slave)


def hostile_answer(wire: type[FeetechWire] | type[DynamixelWire], seed: int) -> Callable[[bytes], bytes]:
    """Noise that looks like packets: headers, wrong lengths, right packets of other motors, cut ones."""
    chance = random.Random(seed)
    packets = FeetechPackets() if wire is FeetechWire else DynamixelPackets()
    header = b"\xff\xff" if wire is FeetechWire else b"\xff\xff\xfd\x00"

    def answer(request: bytes) -> bytes:
        parts = [request[:0]]
        for _ in range(chance.randrange(4)):
            noise = chance.randbytes(chance.randrange(12))
            whole = packets.status(
                chance.choice([1, 2, 9]), chance.randrange(256), chance.randbytes(chance.randrange(20))
            )
            parts.append(chance.choice([noise, header + noise, header + b"\x01\x00\x00", whole, whole[:-2], whole[3:]]))
        return b"".join(parts)

    return answer


@pytest.mark.parametrize("wire", WIRES)
def test_whatever_bytes_come_back_the_driver_answers_in_time(wire: type[FeetechWire] | type[DynamixelWire]) -> None:
    worst = 0.0
    for seed in range(3):
        with responder(hostile_answer(wire, seed)) as port:
            bus = ServoBus("arm", wire(), port, 1_000_000, reply_s=0.005)
            bus.open()
            for _ in range(40):
                begun = time.monotonic()
                try:
                    bus.read_state([1, 2, 3])
                    bus.read(1, "present_position", tries=1)
                    bus.write(2, "goal_position", 5)
                except DeviceError:
                    pass
                worst = max(worst, time.monotonic() - begun)
            bus.close()
    assert worst < 2.0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("babble", ["noise", "packets of another motor", "headers"])
def test_a_line_that_never_stops_talking_does_not_hang_the_driver(
    wire: type[FeetechWire] | type[DynamixelWire], babble: str, tmp_path: Path
) -> None:
    packets = FeetechPackets() if wire is FeetechWire else DynamixelPackets()
    bytes_of = {
        "noise": random.Random(0).randbytes(2000),
        "packets of another motor": packets.status(77, 0, b"ab" if wire is FeetechWire else b"abcde")
        * 200,  # 8 and 16 bytes
        "headers": b"\xff\xff\xfd\x00\x01" * 400,
    }
    file = tmp_path / "babble"
    file.write_bytes(bytes_of[babble] * 1000)
    with babbler(file) as port:
        bus = ServoBus("arm", wire(), port, 1_000_000, reply_s=0.005)
        bus.open()
        begun = time.monotonic()
        assert bus.read_state([1, 2, 3]) == {}
        with pytest.raises(DeviceTimeoutError):
            bus.read(1, "present_position")
        assert time.monotonic() - begun < 2.0
        bus.close()


def any_request(packets: FeetechPackets | DynamixelPackets, chance: random.Random) -> bytes:
    """A request with right checksums and anything else in it."""
    id, instruction = chance.choice([1, 3, 6, 254]), chance.choice([1, 2, 3, 3, 3, 4, 5, 8, 0x82, 0x83, 0x83, 77])
    parameters = chance.randbytes(chance.randrange(30))
    if chance.random() < 0.2:  # more than a packet holds
        instruction, parameters = chance.choice([(2, b"\x00\xff"), (0x82, b"\x00\xff\x01\x02\x03")])
    if isinstance(packets, FeetechPackets):
        body = bytes([id, len(parameters) + 2, instruction]) + parameters
        return b"\xff\xff" + body + bytes([checksum(body)])
    body = bytes([instruction]) + parameters
    if chance.random() < 0.7:  # otherwise most addresses and sizes are beyond the control table
        body = bytes([instruction, chance.randrange(150), 0, chance.randrange(1, 9), 0]) + parameters
    packet = b"\xff\xff\xfd\x00" + bytes([id]) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc16(packet).to_bytes(2, "little")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_twin_is_told_it_goes_on_answering(kind: str) -> None:
    chance = random.Random(1)
    with bench(kind) as it:
        packets = FeetechPackets() if kind == "so101" else DynamixelPackets()
        bus = it.bus()
        bus.open()
        fd = os.open(it.twin.address, os.O_RDWR | os.O_NONBLOCK)
        for _ in range(400):
            os.write(fd, any_request(packets, chance))
            time.sleep(0.0005)
        os.close(fd)
        it.fault(reboot=True)
        time.sleep(0.5)
        assert it.twin.observe()["requests"] > 300
        assert bus.read(2, "model_number") == it.twin.observe()["registers"][2]["model_number"]
        bus.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_finds_every_motor_and_its_model(kind: str) -> None:
    with bench(kind) as it:
        bus = it.bus()
        bus.open()
        found = bus.scan()
        assert {motor: getattr(model, "name", None) for motor, model in found.items()} == {
            motor.motor: motor.kind for motor in it.model.motors
        }
        bus.close()


@pytest.mark.parametrize("kind", KINDS)
def test_registers_are_read_and_written_as_told(kind: str) -> None:
    with bench(kind) as it:
        bus = it.bus()
        bus.open()
        bus.write(2, "goal_position", 1234)
        assert bus.read(2, "goal_position") == 1234
        assert it.twin.observe()["registers"][2]["goal_position"] == 1234
        bus.write_all("goal_position", {1: 2000, 3: 2100})
        assert (bus.read(1, "goal_position"), bus.read(3, "goal_position")) == (2000, 2100)
        with pytest.raises(DeviceTimeoutError, match="motor 99 does not answer"):
            bus.read(99, "goal_position")
        bus.close()


def test_a_dynamixel_refuses_settings_while_it_has_torque_and_the_message_says_so() -> None:
    with bench("koch") as it:
        bus = it.bus()
        bus.open()
        bus.write(1, "torque_enable", 1)
        with pytest.raises(DeviceError, match=r"motor 1 refuses homing_offset = 5 .* is its torque off"):
            bus.write(1, "homing_offset", 5)
        bus.close()


def test_a_feetech_motor_forgets_what_was_written_with_its_lock_on() -> None:
    with bench("so101") as it:
        bus = it.bus()
        bus.open()
        bus.write(1, "lock", 1)
        bus.write(1, "position_p_gain", 16)
        bus.write(2, "lock", 0)
        bus.write(2, "position_p_gain", 16)
        it.fault(reboot=True)
        time.sleep(0.4)
        assert (bus.read(1, "position_p_gain"), bus.read(2, "position_p_gain")) == (32, 16)
        bus.close()


def test_a_rebooted_dynamixel_comes_back_without_torque() -> None:
    with bench("koch") as it:
        bus = it.bus()
        bus.open()
        bus.write(1, "torque_enable", 1)
        assert bus.reboot(1)
        with pytest.raises(DeviceTimeoutError):
            bus.read(1, "torque_enable", tries=1)
        time.sleep(0.4)
        assert bus.read(1, "torque_enable") == 0
        bus.close()
