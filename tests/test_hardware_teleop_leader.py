"""A leader arm does not fall, does not make its follower jump, and resists where that is held up: on its twin's bus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
from servo_twins import Bench, bench, connected

from robolearn_deploy.rig_processes import follower_lag
from robolearn_deploy.servo_process import tick_fields
from robolearn_deploy.stall import State
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.teleop_process import run_teleop
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import DeviceError, Intent
from robolearn_hardware.mirror import NEAR_RAD, Mirror, Phase
from robolearn_hardware.ring import Ring
from robolearn_hardware.servo.arm import ServoArm
from robolearn_hardware.servo.kinds import So101LeaderConfig
from robolearn_hardware.servo.leader import FREE_RAD, FULL_RAD, TAKEN_RAD, ServoLeader
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.servo_motor import TwinMotor

LEADERS = ("so101", "koch_leader", "gello6")
"""Feetech, and Dynamixel twice."""


PATIENT_S = 0.2
"""For an answer of a twin in this process, on a machine that runs other tests too."""


def arm_of(it: Bench) -> ServoArm:
    return ServoArm("arm", it.model, it.calibration, it.bus(reply_s=PATIENT_S))


@dataclass(frozen=True)
class _Opened:
    """Stands for a rig's configuration of it."""

    leader: ServoLeader

    def open(self, name: str) -> ServoLeader:
        return self.leader

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


class Held:
    """A leader, its twin and the hand that may hold it."""

    def __init__(self, it: Bench, **options: Any) -> None:
        self.bench, self.twin = it, it.twin
        self.leader = ServoLeader("leader", it.model, it.calibration, it.bus(reply_s=PATIENT_S), **options)

    def truth(self) -> dict[str, Any]:
        return self.twin.observe()

    def torque(self) -> list[bool]:
        return list(self.truth()["torque"].values())

    def until(self, holds: Callable[[Intent], bool], seconds: float = 20.0) -> Intent:
        end = time.monotonic() + seconds
        intent = self.leader.read()
        while not holds(intent) and time.monotonic() < end:
            time.sleep(0.005)
            intent = self.leader.read()
        return intent

    def engage(self) -> None:
        """Somebody has left its motors on."""
        with connected(arm_of(self.bench)):
            pass


@pytest.fixture(params=LEADERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def it(kind: str) -> Iterator[Bench]:
    with bench(kind) as found:
        yield found


def test_a_leader_whose_motors_are_on_keeps_its_pose_until_a_person_takes_it(it: Bench) -> None:
    held = Held(it)
    held.engage()
    before = held.truth()["positions"]
    held.leader.connect()
    assert all(held.torque()), "it does not fall"
    assert not held.until(lambda intent: intent.enabled, 0.3).enabled, "nothing follows it yet"
    np.testing.assert_allclose(held.truth()["positions"], before, atol=0.02)
    pulled = before.copy()
    pulled[1] += 0.35 + TAKEN_RAD
    held.twin.guide(pulled)
    assert held.until(lambda intent: intent.enabled).enabled
    assert not any(held.torque()), "it is in the person's hand"
    held.leader.close()
    assert not any(held.torque())


def test_a_leader_whose_motors_are_off_is_limp_and_enabled_at_once(it: Bench) -> None:
    held = Held(it)
    held.leader.connect()
    assert held.leader.read().enabled
    assert not any(held.torque())
    held.leader.close()


def test_a_leader_that_holds_is_held_by_few_torque_from_the_beginning_and_from_the_end_on(it: Bench) -> None:
    held = Held(it, holds=True)
    held.leader.connect()
    assert all(held.torque())
    assert not held.leader.read().enabled
    strengths = [motor.strength for motor in held.twin._motors]
    assert max(strengths) == pytest.approx(0.4, abs=0.01)
    place = held.truth()["positions"]
    away = place.copy()
    away[0] += 0.6
    held.twin.guide(away)
    assert held.until(lambda intent: intent.enabled).enabled
    held.until(lambda intent: bool(abs(intent.positions[0] - away[0]) < 0.01), 5)  # pyright: ignore[reportOptionalSubscript]
    held.leader.close()
    held.twin.guide(None)
    assert all(held.torque())
    np.testing.assert_allclose(held.truth()["positions"], away, atol=0.05)


def test_its_grip_takes_it_too() -> None:
    with bench("so101") as it:
        held = Held(it, holds=True)
        held.leader.connect()
        pulled = held.truth()["positions"].copy()
        pulled[-1] = 0.0
        held.twin.guide(pulled)
        assert held.until(lambda intent: intent.enabled).enabled
        held.leader.close()


def test_its_follower_stands_until_it_is_taken_and_then_joins_it_slowly() -> None:
    with bench("so101") as lead, bench("so101", start=(0.5, -0.8, 0.6, 0.4, 0.2, 0.5)) as follow:
        held, follower = Held(lead, holds=True), arm_of(follow)
        held.leader.connect()
        follower.connect()
        mirror = Mirror(held.leader, follower, 50.0, join_speed=0.25)
        sent: list[np.ndarray] = []

        def tick() -> Phase:
            time.sleep(0.02)
            found = mirror.tick()
            sent.append(found.sent)
            return found.phase

        start = follow.twin.observe()["positions"][:5]
        for _ in range(20):
            assert tick() is Phase.HOLDING
        np.testing.assert_allclose(follow.twin.observe()["positions"][:5], start, atol=0.01)
        away = held.truth()["positions"].copy()
        away[1] += 0.5
        held.twin.guide(away)
        end = time.monotonic() + 30
        while tick() is not Phase.FOLLOWING and time.monotonic() < end:
            pass
        assert np.abs(sent[-1] - away[:5]).max() < 2 * NEAR_RAD
        steps = np.abs(np.diff(sent, axis=0)).max()
        assert steps <= 0.25 * follower.info.limits.velocity.max() / 50.0 + 1e-6, "nothing jumps"
        follower.close()
        held.leader.close()


@pytest.mark.parametrize("reflect", [0.2, 0.4])
def test_it_resists_by_as_much_as_its_follower_is_held_up_beyond_what_is_usual(kind: str, reflect: float) -> None:
    with bench(kind) as it:
        held = Held(it, reflect=reflect)
        place = held.truth()["positions"]
        held.twin.guide(place)
        held.leader.connect()
        assert held.leader.read().enabled
        n = held.leader.info.joints
        for behind in (FREE_RAD, (FREE_RAD + FULL_RAD) / 2, FULL_RAD, 2 * FULL_RAD):
            wanted = reflect * min(max((behind - FREE_RAD) / (FULL_RAD - FREE_RAD), 0), 1)
            error = np.zeros(n)
            error[0] = -behind
            shift = 0.0
            end = time.monotonic() + 20
            while time.monotonic() < end:  # a hand gives way by 0.3 rad to a motor that pulls with all it has
                held.leader.feel(error)
                held.leader.read()
                time.sleep(0.005)
                shift = float(place[0] - held.truth()["positions"][0])
                if abs(shift - 0.3 * wanted) < 0.008:
                    break
            assert shift == pytest.approx(0.3 * wanted, abs=0.008)
            others = held.truth()["positions"][1:n] - place[1:n]
            np.testing.assert_allclose(others, 0, atol=0.008)
        held.leader.close()
        assert not any(held.torque())


def test_what_it_feels_ends_with_its_followers_heartbeat(kind: str) -> None:
    with bench(kind) as it:
        held = Held(it, reflect=0.4)
        held.twin.guide(held.truth()["positions"])
        held.leader.connect()
        error = np.full(held.leader.info.joints, 1.0)
        end = time.monotonic() + 10
        while not any(held.torque()) and time.monotonic() < end:
            held.leader.feel(error)
            held.leader.read()
        assert any(held.torque())
        held.until(lambda intent: not any(held.torque()))  # nobody calls feel
        assert not any(held.torque())
        held.leader.feel(np.full(held.leader.info.joints, np.nan))
        held.leader.read()
        assert not any(held.torque())
        held.leader.close()


def test_a_follower_that_meets_something_is_felt_in_the_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwinMotor, "_protect", lambda self, load, dt_s: None)  # it would switch itself off after 2 s
    with bench("so101") as lead, bench("so101", stops={"shoulder_pan": (-0.3, 0.3)}) as follow:
        held, follower = Held(lead, reflect=0.4), arm_of(follow)
        follower.connect()
        held.twin.guide(held.truth()["positions"])
        held.leader.connect()
        mirror = Mirror(held.leader, follower, 50.0)
        wanted = held.truth()["positions"].copy()

        def pulled_back(most: float) -> float:
            """How far the hand gives way, once it does so by ``most`` rad or a while has passed."""
            held.twin.guide(wanted)
            end = time.monotonic() + 10
            while time.monotonic() < end:
                time.sleep(0.02)
                mirror.tick()
                found = float(wanted[0] - held.truth()["positions"][0])
                if abs(found - most) < 0.02 and mirror.tick().phase is Phase.FOLLOWING:
                    return found
            return float(wanted[0] - held.truth()["positions"][0])

        assert pulled_back(0.0) == pytest.approx(0, abs=0.02)
        wanted[0] = 1.0  # 0.7 rad beyond the obstacle: with all that it may, 0.4 of 0.3 rad
        assert pulled_back(0.4 * 0.3) == pytest.approx(0.12, abs=0.02)
        wanted[0] = 0.0
        assert pulled_back(0.0) == pytest.approx(0, abs=0.02)
        follower.close()
        held.leader.close()


def test_in_a_run_it_feels_the_arm_that_the_servo_process_reports_while_a_person_moves_it() -> None:
    with bench("so101") as it, Ring.create(tick_fields(6), 16) as ticks, Ring.create(intent_fields(5), 16) as intents:
        held = Held(it, reflect=0.4)
        held.twin.guide(held.truth()["positions"])
        lag = follower_lag(ticks, slice(0, 5))
        assert lag() is None

        def servo(state: State, person: bool) -> None:
            blocked = np.array([-1.0, 0, 0, 0, 0, 0])
            said = {name: np.zeros(shape) for name, (_, shape) in tick_fields(6).items()}
            said |= {"due_ns": now_ns(), "state": int(state), "person": person, "cause": b"", "measured": blocked}
            ticks.publish(said)

        parts = [(State.RUNNING, True), (State.TELEOP, False), (State.TELEOP, True), (State.RUNNING, False)]
        seen: list[bool] = []
        begun = time.monotonic()

        def stopped() -> bool:
            """A part ends when what it moves the hand to is seen, or after half a second where nothing shall be."""
            nonlocal begun
            moves = parts[len(seen)] == (State.TELEOP, True)
            servo(*parts[len(seen)])
            felt = any(held.torque())
            if (felt and moves) or (not felt and not moves and time.monotonic() - begun > 0.5):
                seen.append(felt)
                begun = time.monotonic()
            return len(seen) == len(parts) or time.monotonic() - begun > 20

        run_teleop("leader", _Opened(held.leader), intents, 5, stopped, lambda: None, behind=lag)
        assert seen == [False, False, True, False]
        assert intents.count > 10


def test_it_feels_nothing_unless_its_rig_says_so() -> None:
    with bench("so101") as it:
        held = Held(it)
        held.leader.connect()
        held.leader.feel(np.ones(5))
        held.leader.read()
        assert not any(held.torque())
        held.leader.close()
    with pytest.raises(DeviceError, match=r"reflect is 0\.5; valid: 0"):
        So101LeaderConfig(port="twin", reflect=0.5)


def test_an_unplugged_leader_that_resisted_can_be_closed() -> None:
    with bench("so101") as it:
        held = Held(it, reflect=0.4, holds=True)
        held.leader.connect()
        it.fault(unplugged=True)
        begun = time.monotonic()
        held.leader.close()
        assert time.monotonic() - begun < 10
