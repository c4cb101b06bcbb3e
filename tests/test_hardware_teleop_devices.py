"""SpaceMouse, gamepad and keyboard through their production drivers, against twins at the other end of the wire."""

from __future__ import annotations

import math
import os
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servo_twins import connected

from robolearn.cli.main import main
from robolearn_hardware.devices import DeviceError, DeviceGoneError, Intent, Teleoperator
from robolearn_hardware.doctor import check_rig
from robolearn_hardware.rig import Rig, load_rig, with_twins
from robolearn_hardware.teleop.find import list_teleoperators
from robolearn_hardware.teleop.gamepad import BUTTONS, GamepadConfig, list_gamepads
from robolearn_hardware.teleop.keyboard import KeyboardConfig
from robolearn_hardware.teleop.keys import decoded
from robolearn_hardware.teleop.shared_terminal import shared_terminal
from robolearn_hardware.teleop.spacemouse import SpaceMouseConfig, list_spacemice
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.gamepad import GamepadTwin
from robolearn_hardware.twins.keyboard import KeyboardTwin
from robolearn_hardware.twins.spacemouse import SpaceMouseTwin

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
LEFT_SHOULDER, A = BUTTONS.index("left_shoulder"), BUTTONS.index("a")


def until(teleoperator: Teleoperator, holds: Callable[[Intent], bool], seconds: float = 20.0) -> Intent:
    """Read as a teleoperator's process does, until it says that; the last reading if it never does."""
    end = time.monotonic() + seconds
    intent = teleoperator.read()
    while not holds(intent) and time.monotonic() < end:
        time.sleep(0.005)
        intent = teleoperator.read()
    return intent


def moves(intent: Intent) -> bool:
    return intent.enabled and intent.twist is not None and bool(intent.twist.any())


def rests(intent: Intent) -> bool:
    return not intent.enabled


def direction(intent: Intent) -> np.ndarray:
    """(6,) -1, 0 or 1"""
    assert intent.twist is not None
    return np.sign(np.round(intent.twist, 9))


@pytest.fixture
def spacemouse() -> Iterator[SpaceMouseTwin]:
    twin = SpaceMouseTwin(hand_hz=0.0)
    twin.start()
    yield twin
    twin.close()


@pytest.fixture
def gamepad() -> Iterator[GamepadTwin]:
    twin = GamepadTwin(hand_hz=0.0)
    twin.start()
    yield twin
    twin.close()


@pytest.fixture(params=["events", "terminal"])
def keyboard(request: pytest.FixtureRequest) -> Iterator[KeyboardTwin]:
    twin = KeyboardTwin(request.param, hand=False)
    twin.start()
    yield twin
    twin.close()


# Axes of the device: right, towards the person, down. Of the base: forward, left, up.
PUSHES = {
    (0, -1, 0, 0, 0, 0): (1, 0, 0, 0, 0, 0),  # away
    (-1, 0, 0, 0, 0, 0): (0, 1, 0, 0, 0, 0),  # left
    (0, 0, -1, 0, 0, 0): (0, 0, 1, 0, 0, 0),  # up
    (0, 0, 0, 0, -1, 0): (0, 0, 0, 1, 0, 0),  # about forward
    (0, 0, 0, -1, 0, 0): (0, 0, 0, 0, 1, 0),  # about left
    (0, 0, 0, 0, 0, -1): (0, 0, 0, 0, 0, 1),  # about up
}


@pytest.mark.parametrize("together", [False, True], ids=["reports 1 and 2", "one report"])
def test_a_spacemouse_moves_the_tool_the_way_its_cap_is_pushed(together: bool) -> None:
    twin = SpaceMouseTwin(hand_hz=0.0, together=together)
    twin.start()
    try:
        with connected(SpaceMouseConfig(device=twin.address).open("mouse")) as mouse:
            for push, way in PUSHES.items():
                twin.push(push)
                found = until(mouse, lambda intent, way=way: moves(intent) and tuple(direction(intent)) == way)
                assert tuple(direction(found)) == way
                size = 0.15 if any(way[:3]) else 0.8
                assert np.abs(found.twist).max() == pytest.approx(size)  # pyright: ignore[reportArgumentType, reportCallIssue]
            twin.push((0,) * 6)
            assert rests(until(mouse, rests))
    finally:
        twin.close()


def test_a_spacemouses_button_closes_the_gripper_without_moving_the_tool(spacemouse: SpaceMouseTwin) -> None:
    with connected(SpaceMouseConfig(device=spacemouse.address).open("mouse")) as mouse:
        assert rests(mouse.read())
        spacemouse.push((0,) * 6, buttons=0b10)
        found = until(mouse, lambda intent: intent.gripper == 0)
        assert found.enabled
        assert not direction(found).any()
        assert found.buttons == {"button_1": True}
        spacemouse.push((0,) * 6)
        assert math.isnan(until(mouse, rests).gripper)


def test_a_spacemouse_whose_deadman_is_a_button_stays_without_it(spacemouse: SpaceMouseTwin) -> None:
    with connected(SpaceMouseConfig(device=spacemouse.address, deadman="button").open("mouse")) as mouse:
        spacemouse.push((0, -1, 0, 0, 0, 0))
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            assert rests(mouse.read())
        spacemouse.push((0, -1, 0, 0, 0, 0), buttons=0b01)
        assert moves(until(mouse, moves))
        spacemouse.push((0, -1, 0, 0, 0, 0))
        assert rests(until(mouse, rests))


def test_a_spacemouse_that_falls_silent_with_its_cap_pushed_lets_go(spacemouse: SpaceMouseTwin) -> None:
    with connected(SpaceMouseConfig(device=spacemouse.address).open("mouse")) as mouse:
        spacemouse.push((0, -1, 0, 0, 0, 0))
        assert moves(until(mouse, moves))
        spacemouse.fault(Faults(frozen=True))  # nothing is said any more, as when a battery is empty
        assert rests(until(mouse, rests))
        spacemouse.fault(Faults())
        assert moves(until(mouse, moves))


@given(st.lists(st.binary(max_size=64), max_size=40))
def test_no_report_can_break_the_driver_or_make_it_faster(reports: list[bytes]) -> None:
    read, write = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    mouse = SpaceMouseConfig(device=f"/proc/self/fd/{read}").open("mouse")
    mouse.connect()
    try:
        for report in reports:
            if report:
                os.write(write, report)
            intent = mouse.read()
            assert intent.twist is not None
            assert np.linalg.norm(intent.twist[:3]) <= 0.15 * (1 + 1e-9)
    finally:
        mouse.close()
        os.close(read)
        os.close(write)


STICKS = {  # axes and buttons -> the tool
    ((0, -1), ()): (1, 0, 0, 0, 0, 0),
    ((-1, 0), ()): (0, 1, 0, 0, 0, 0),
    ((0, 0, 0, -1), ()): (0, 0, 1, 0, 0, 0),
    ((0, 0, -1, 0), ()): (0, 0, 0, 0, 0, 1),
    ((), ("right",)): (0, 0, 0, 1, 0, 0),
    ((), ("up",)): (0, 0, 0, 0, 1, 0),
}


def test_a_gamepads_sticks_and_cross_move_the_tool_by_the_standard_layout(gamepad: GamepadTwin) -> None:
    with connected(GamepadConfig(device=gamepad.address).open("pad")) as pad:
        for (axes, pressed), way in STICKS.items():
            gamepad.push(axes, [LEFT_SHOULDER, *(BUTTONS.index(button) for button in pressed)])
            found = until(pad, lambda intent, way=way: moves(intent) and tuple(direction(intent)) == way)
            assert tuple(direction(found)) == way
            gamepad.push(axes, [BUTTONS.index(button) for button in pressed])
            found = until(pad, rests)
            assert not direction(found).any(), "without the deadman nothing moves"
        assert sum(name.startswith("Twin") for name in list_gamepads()) == 1


def test_a_gamepads_button_or_trigger_moves_the_gripper_and_its_other_buttons_are_told(gamepad: GamepadTwin) -> None:
    with connected(GamepadConfig(device=gamepad.address).open("pad")) as pad:
        gamepad.push((), [LEFT_SHOULDER])
        until(pad, lambda intent: intent.enabled)
        gamepad.push((), [LEFT_SHOULDER, A, BUTTONS.index("start")])
        found = until(pad, lambda intent: intent.gripper == 0 and intent.buttons["start"])
        assert found.gripper == 0
        assert [name for name, down in found.buttons.items() if down] == ["start"]
    with connected(GamepadConfig(device=gamepad.address, gripper="axis").open("pad")) as pad:
        gamepad.push((0, 0, 0, 0, 0, 0), [LEFT_SHOULDER])
        assert math.isnan(until(pad, lambda intent: intent.enabled).gripper)
        for pull in (1.0, 0.25, 0.0):
            gamepad.push((0, 0, 0, 0, 0, pull), [LEFT_SHOULDER])
            found = until(pad, lambda intent, pull=pull: abs(intent.gripper - (1 - pull)) < 0.01)
            assert found.gripper == pytest.approx(1 - pull, abs=0.01)


def test_two_gamepads_are_told_apart_or_refused(gamepad: GamepadTwin) -> None:
    other = GamepadTwin(hand_hz=0.0)
    other.start()
    try:
        with (
            connected(GamepadConfig(device=gamepad.address).open("one")) as first,
            connected(GamepadConfig(device=other.address).open("two")) as second,
        ):
            gamepad.push((0, -1), [LEFT_SHOULDER])
            assert moves(until(first, moves))
            assert rests(second.read())
            with pytest.raises(DeviceError, match="2 gamepads are called 'of a gamepad': Twin"):
                GamepadConfig(device="of a gamepad").open("pad").connect()
    finally:
        other.close()
    with pytest.raises(DeviceGoneError, match="no gamepad 'no such pad' is connected"):
        GamepadConfig(device="no such pad").open("pad").connect()


def test_a_key_that_is_held_moves_the_tool_until_it_is_let_go(keyboard: KeyboardTwin) -> None:
    with connected(KeyboardConfig(device=keyboard.address).open("keys")) as keys:
        for key, way in {"up": (1, 0, 0, 0, 0, 0), "right": (0, -1, 0, 0, 0, 0), "j": (0, 0, 0, 0, 0, 1)}.items():
            keyboard.hold("left_shift", key)
            found = until(keys, lambda intent, way=way: moves(intent) and tuple(direction(intent)) == way)
            assert tuple(direction(found)) == way
            keyboard.hold()
            assert rests(until(keys, rests))


def test_the_gripper_has_a_key(keyboard: KeyboardTwin) -> None:
    with connected(KeyboardConfig(device=keyboard.address).open("keys")) as keys:
        keyboard.hold("left_shift")
        until(keys, lambda intent: intent.enabled, 0.3)
        for wanted in (0.0, 1.0):
            keyboard.hold("left_shift", "tab")
            assert until(keys, lambda intent, wanted=wanted: intent.gripper == wanted).gripper == wanted
            keyboard.hold("left_shift")
            until(keys, lambda intent: intent.enabled is False, 0.3)


def test_an_event_nodes_keys_do_nothing_without_the_deadman_beside_them() -> None:
    twin = KeyboardTwin("events", hand=False)
    twin.start()
    try:
        with connected(KeyboardConfig(device=twin.address).open("keys")) as keys:
            twin.hold("up")
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                assert rests(keys.read()), "somebody types in another window"
            twin.hold("up", "page_up", "left_shift")
            found = until(keys, moves)
            assert tuple(direction(found)) == (1, 0, 1, 0, 0, 0), "both at once"
    finally:
        twin.close()


def test_a_terminal_is_as_it_was_before_and_sequences_in_two_parts_are_one_key() -> None:
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        with connected(KeyboardConfig(device=os.ttyname(slave)).open("keys")) as keys:
            assert termios.tcgetattr(slave)[3] & termios.ECHO == 0
            os.write(master, b"\x1b")
            assert rests(keys.read())
            os.write(master, b"[A")
            assert moves(until(keys, moves))
        assert termios.tcgetattr(slave) == before
        assert before[3] & termios.ECHO
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("typed", "keys", "rest"),
    [
        (b"\x1b[A\x1b[5~i", ["up", "page_up", "i"], b""),
        (b"I\t", ["i", "tab"], b""),
        (b"\x1bOC", ["right"], b""),
        (b"\x1b[1;5C\x1b[15~o", ["o"], b""),
        (b"a\x1b[", ["a"], b"\x1b["),
        (b"\x1b", [], b"\x1b"),
    ],
)
def test_what_a_terminal_types_is_taken_for_its_keys(typed: bytes, keys: list[str], rest: bytes) -> None:
    assert decoded(typed, more=True) == (keys, rest)


@given(st.binary(max_size=64))
def test_nothing_that_is_typed_can_break_the_decoder(typed: bytes) -> None:
    keys, rest = decoded(typed, more=True)
    assert all(keys)
    assert len(rest) < 4
    assert decoded(rest, more=False)[1] == b""


Device = tuple[SpaceMouseTwin | GamepadTwin | KeyboardTwin, Teleoperator, Callable[[], object]]


@pytest.fixture(params=["spacemouse", "gamepad", "events", "terminal"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    match request.param:
        case "spacemouse":
            mouse = SpaceMouseTwin(hand_hz=0.0)
            found = mouse, SpaceMouseConfig(device=mouse.address).open("it"), lambda: mouse.push((0, -1, 0, 0, 0, 0))
        case "gamepad":
            pad = GamepadTwin(hand_hz=0.0)
            found = pad, GamepadConfig(device=pad.address).open("it"), lambda: pad.push((0, -1), [LEFT_SHOULDER])
        case _:
            keys = KeyboardTwin(request.param, hand=False)

            def press() -> None:
                keys.hold()
                keys.hold("left_shift", "up")

            found = keys, KeyboardConfig(device=keys.address).open("it"), press
    found[0].start()
    yield found
    found[1].close()
    found[0].close()


def test_an_unplugged_device_is_gone_and_can_be_connected_again_at_rest(device: Device) -> None:
    twin, teleoperator, push = device
    with pytest.raises(DeviceGoneError, match="it is not connected; connect first"):
        teleoperator.read()
    teleoperator.connect()
    push()
    assert moves(until(teleoperator, moves))
    twin.fault(Faults(unplugged=True))
    with pytest.raises(DeviceGoneError, match="plug it in again"):
        until(teleoperator, lambda intent: False)
    with pytest.raises(DeviceGoneError):
        teleoperator.read()
    with pytest.raises(DeviceGoneError):
        teleoperator.connect()
    twin.fault(Faults())
    teleoperator.connect()
    if not isinstance(twin, GamepadTwin | SpaceMouseTwin):
        assert rests(teleoperator.read()), "what is down must be pressed anew"
    push()
    assert moves(until(teleoperator, moves))
    teleoperator.close()
    teleoperator.close()


@pytest.mark.parametrize("rig", ["so101_gamepad_twin", "so101_keyboard_twin", "so101_spacemouse_twin"])
def test_a_rig_names_it_and_its_twin_is_moved_by_a_hand(rig: str) -> None:
    with with_twins(load_rig(RIGS / f"{rig}.yaml")) as (reachable, twins):
        ((name, config),) = reachable.teleoperators.items()
        with connected(config.open(name)) as teleoperator:
            assert moves(until(teleoperator, moves))
        assert twins[name].observe()


def test_a_machine_without_devices_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DeviceGoneError, match="there is no /dev/hidraw77; is it plugged in"):
        SpaceMouseConfig(device="/dev/hidraw77").open("mouse").connect()
    with pytest.raises(DeviceGoneError, match="there is no /dev/input/event77"):
        KeyboardConfig(device="/dev/input/event77").open("keys").connect()
    assert list_teleoperators(tmp_path, tmp_path) == []


def test_spacemice_are_known_by_what_the_kernel_says_of_them(tmp_path: Path) -> None:
    for i, (ids, name) in enumerate(
        [
            ("0003:0000256F:0000C635", "3Dconnexion SpaceMouse Compact"),
            ("0003:0000046D:0000C31C", "Logitech USB Keyboard"),
            ("0003:0000046D:0000C626", "3Dconnexion SpaceNavigator"),
            ("0003:0000256F:0000C652", "3Dconnexion Universal Receiver"),
        ]
    ):
        folder = tmp_path / f"hidraw{i}" / "device"
        folder.mkdir(parents=True)
        (folder / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID={ids}\nHID_NAME={name}\n")
    found = {one.node: one.model for one in list_spacemice(tmp_path)}
    assert found == {
        "/dev/hidraw0": "SpaceMouse Compact",
        "/dev/hidraw2": "SpaceNavigator",
        "/dev/hidraw3": "3Dconnexion Universal Receiver",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GamepadConfig(gripper_button="left_shoulder"), "both 'left_shoulder'"),
        (lambda: SpaceMouseConfig(gripper="axis"), "valid: toggle, hold"),
        (lambda: SpaceMouseConfig(deadman="button", deadman_button=1), "both 1"),
        (lambda: KeyboardConfig(keys={"boost": "+x"}), "no key 'boost'; valid: 1, 2"),
        (lambda: KeyboardConfig(gripper_key="up"), "one key is for two things"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        make()


def test_what_is_plugged_in_is_listed_as_a_rig_file_names_it(
    tmp_path: Path, gamepad: GamepadTwin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hidraw0" / "device"
    folder.mkdir(parents=True)
    (folder / "uevent").write_text("HID_ID=0003:0000256F:0000C635\nHID_NAME=3Dconnexion SpaceMouse Compact\n")
    (tmp_path / "usb-Some_Keyboard-event-kbd").touch()
    (tmp_path / "usb-Some_Pad-event-joystick").touch()
    allowed = os.access
    mine = ("Some_", "hidraw")
    monkeypatch.setattr(os, "access", lambda path, mode: not any(m in str(path) for m in mine) and allowed(path, mode))
    with connected(GamepadConfig(device=gamepad.address).open("pad")):
        found = list_teleoperators(tmp_path, tmp_path)
        assert main(["find", "teleoperators"]) == 0
    assert "kind: gamepad  device: Twin" in capsys.readouterr().out
    kinds = [(one.kind, one.device, bool(one.problem)) for one in found]
    assert kinds[0] == ("spacemouse", "/dev/hidraw0", True)
    assert kinds[1][0] == "gamepad"
    assert kinds[1][1].startswith("Twin")
    assert kinds[2] == ("gamepad", "", True)
    assert kinds[3] == ("keyboard", str(tmp_path / "usb-Some_Keyboard-event-kbd"), True)
    assert "install the udev rules" in found[0].problem
    assert "passwords" in found[3].problem


def test_the_doctor_asks_it() -> None:
    rig = load_rig(RIGS / "so101_spacemouse_twin.yaml")
    with with_twins(rig) as (reachable, twins):
        checks = {check.subject: check for check in check_rig(reachable)}
        assert checks["hand"].verdict == "ok"
        assert "answers with motion" in checks["hand"].found
        twins["hand"].fault(unplugged=True)
        checks = {check.subject: check for check in check_rig(reachable)}
    assert checks["hand"].verdict == "failure"
    assert "is it plugged in" in checks["hand"].found


def test_a_terminal_that_is_read_for_commands_passes_the_other_keys_on() -> None:
    config = KeyboardConfig()
    rig = Rig("desk", teleoperators={"keys": config, "others": KeyboardConfig(device="/dev/pts/77")})
    with shared_terminal(rig) as (heard, typed):
        assert heard.teleoperators["others"] is rig.teleoperators["others"]
        typed("i")  # before it is connected: forgotten
        with connected(heard.teleoperators["keys"].open("keys")) as keys:
            assert rests(keys.read())
            for character in "\x1b[A":
                typed(character)
            found = until(keys, moves)
            assert tuple(direction(found)) == (1, 0, 0, 0, 0, 0)
            assert rests(until(keys, rests))
