"""The stall contract's states: what leads from one to another, and what never does."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from robolearn_deploy.stall import Command, Duty, Inputs, Order, StallContract, State, Watch, time_to_rest_s
from robolearn_hardware.devices import Condition

MS = 1_000_000
TICK = 10 * MS
WATCHES = (
    Watch("policy", 300 * MS),
    Watch("camera", 100 * MS),
    Watch("teleoperator", 100 * MS, policy=False, teleop=True),
)
FOLLOWS = (Condition.READY, Condition.DEGRADED)


class Robot:
    """A contract, and inputs that are sound unless told otherwise."""

    def __init__(self, **options):
        self.contract = StallContract(WATCHES, hold_s=0.1, **options)
        self.now = 10**9
        self.silent: dict[str, int] = {}
        self.expires = 1000 * MS
        self.near, self.at_rest, self.condition, self.e_stop = True, True, Condition.READY, False

    def tick(self, command=Command.NONE, *, ticks=1) -> Order:
        order = None
        for _ in range(ticks):
            self.now += TICK
            beats = [self.silent.get(w.name, self.now) for w in WATCHES]
            order = self.contract.tick(
                Inputs(
                    self.now,
                    self.now + self.expires if self.expires else 0,
                    self.near,
                    self.at_rest,
                    self.condition,
                    beats,
                    self.e_stop,
                    command,
                )
            )
            command = Command.NONE
        assert order is not None
        return order

    def fall_silent(self, name):
        self.silent[name] = self.now

    @classmethod
    def running(cls, **options):
        robot = cls(**options)
        assert robot.tick().state is State.RUNNING
        robot.at_rest = False
        return robot


def test_it_starts_only_with_a_fresh_plan_that_begins_near():
    robot = Robot()
    robot.expires = 0
    order = robot.tick(ticks=50)
    assert (order.state, order.duty, order.cause) == (State.STOPPED, Duty.STAY, "no plan has come")
    robot.expires, robot.near = 1000 * MS, False
    order = robot.tick(ticks=50)
    assert order.state is State.STOPPED
    assert "resume moves there slowly" in order.cause
    robot.near = True
    order = robot.tick()
    assert (order.state, order.duty, order.entered) == (State.RUNNING, Duty.FOLLOW, True)
    assert not robot.tick().entered


@pytest.mark.parametrize("asked", [False, True])
def test_where_the_plan_begins_elsewhere_it_moves_there_slowly(asked):
    robot = Robot(approach=not asked)
    robot.near = False
    order = robot.tick(Command.RESUME if asked else Command.NONE)
    assert (order.state, order.duty) == (State.MOVING, Duty.APPROACH)
    robot.at_rest = False
    assert robot.tick(ticks=100).state is State.MOVING
    robot.near = True
    assert robot.tick().state is State.RUNNING


@pytest.mark.parametrize("failure", ["plan", "policy", "camera"])
def test_what_is_missing_is_waited_for_then_the_arm_decelerates_and_stops(failure):
    robot = Robot.running()
    if failure == "plan":
        robot.expires = 0
        cause, noticed = "no plan has come", 1
    else:
        robot.fall_silent(failure)
        allowed = {w.name: w.allowed_ns for w in WATCHES}[failure]
        cause, noticed = f"no sign of life from {failure}", allowed // TICK + 1
        assert robot.tick(ticks=noticed - 1).state is State.RUNNING
        noticed = 1
    order = robot.tick(ticks=noticed)
    assert (order.state, order.duty) == (State.HOLDING, Duty.FOLLOW)
    assert cause in order.cause
    assert robot.tick(ticks=9).state is State.HOLDING
    order = robot.tick()
    assert (order.state, order.duty) == (State.DECELERATING, Duty.STOP)
    assert robot.tick(ticks=20).state is State.DECELERATING
    robot.at_rest = True
    order = robot.tick()
    assert (order.state, order.duty) == (State.STOPPED, Duty.STAY)
    assert cause in order.cause
    robot.silent, robot.expires = {}, 1000 * MS
    assert robot.tick().state is State.RUNNING


def test_a_chunk_that_comes_while_holding_goes_on():
    robot = Robot.running()
    robot.expires = 0
    assert robot.tick(ticks=5).state is State.HOLDING
    robot.expires = 1000 * MS
    assert robot.tick().state is State.RUNNING


def test_a_chunk_that_comes_while_decelerating_waits_for_rest():
    robot = Robot.running()
    robot.expires = 0
    assert robot.tick(ticks=20).state is State.DECELERATING
    robot.expires = 1000 * MS
    assert robot.tick(ticks=20).state is State.DECELERATING


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("state", [s for s in State if s is not State.E_STOPPED])
def test_an_e_stop_latches_in_every_state_until_a_person_releases_it(state, own):
    robot = Robot.running()
    robot.contract.state = state
    robot.e_stop, robot.condition = not own, Condition.EMERGENCY_STOP if own else Condition.READY
    order = robot.tick()
    assert (order.state, order.duty) == (State.E_STOPPED, Duty.SILENT if own else Duty.STOP)
    robot.at_rest = True
    assert robot.tick(Command.RELEASE).state is State.E_STOPPED, "the button is still pressed"
    robot.e_stop, robot.condition = False, Condition.READY
    for command in (Command.NONE, Command.PAUSE, Command.RESUME, Command.TAKE_OVER, Command.HAND_BACK):
        order = robot.tick(command)
        assert (order.state, order.duty) == (State.E_STOPPED, Duty.STAY)
    assert robot.tick(Command.RELEASE).state is State.STOPPED
    assert robot.tick(ticks=100).state is State.STOPPED, "a release is no start"
    assert robot.tick(Command.RESUME).state is State.RUNNING


@pytest.mark.parametrize("condition", [c for c in Condition if c not in (*FOLLOWS, Condition.EMERGENCY_STOP)])
def test_an_arm_that_stops_by_itself_is_sent_nothing_and_waits_for_a_person(condition):
    robot = Robot.running()
    robot.condition = condition
    order = robot.tick()
    assert (order.state, order.duty) == (State.STOPPED, Duty.SILENT)
    assert condition.name.lower().replace("_", " ") in order.cause
    robot.condition, robot.at_rest = Condition.READY, True
    order = robot.tick(ticks=100)
    assert (order.state, order.duty) == (State.STOPPED, Duty.STAY)
    assert robot.tick(Command.RESUME).state is State.RUNNING


def test_a_pause_decelerates_and_lasts_until_resume():
    robot = Robot.running()
    assert robot.tick(Command.PAUSE).state is State.DECELERATING
    robot.at_rest = True
    assert robot.tick(ticks=100).state is State.STOPPED
    assert robot.tick(Command.RESUME).state is State.RUNNING


@pytest.mark.parametrize("state", [s for s in State if s not in (State.E_STOPPED, State.TELEOP)])
def test_a_person_takes_over_in_every_state_and_hands_back(state):
    robot = Robot.running()
    robot.contract.state = state
    robot.expires = 0
    order = robot.tick(Command.TAKE_OVER)
    assert (order.state, order.duty) == (State.TELEOP, Duty.TELEOP)
    robot.fall_silent("policy")
    assert robot.tick(ticks=100).state is State.TELEOP, "a person needs no policy"
    robot.silent, robot.expires = {}, 1000 * MS
    assert robot.tick(Command.HAND_BACK).state is State.RUNNING


def test_a_hand_back_without_a_near_plan_comes_to_rest():
    robot = Robot.running()
    robot.tick(Command.TAKE_OVER)
    robot.near = False
    assert robot.tick(Command.HAND_BACK).state is State.DECELERATING


def test_a_teleoperator_that_falls_silent_stops_the_arm_and_cannot_take_over():
    robot = Robot.running()
    robot.tick(Command.TAKE_OVER)
    robot.fall_silent("teleoperator")
    assert robot.tick(ticks=10).state is State.TELEOP
    assert robot.tick().state is State.DECELERATING
    assert robot.tick(Command.TAKE_OVER).state is State.DECELERATING


def test_a_process_that_never_gave_a_sign_of_life_is_silent():
    robot = Robot()
    robot.silent["camera"] = 0
    assert robot.tick(ticks=10).state is State.STOPPED


def test_the_stated_time_is_the_sum_of_its_parts():
    assert time_to_rest_s(0.5, 0.01, allowed_s=0.3, hold_s=0.1) == pytest.approx(0.3 + 0.1 + 0.5 + 0.02)


def test_watches_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="same name"):
        StallContract([Watch("policy", 1), Watch("policy", 2)])
    with pytest.raises(ValueError, match="above 0"):
        StallContract([Watch("policy", 0)])


ALLOWED = {
    State.STOPPED: {State.MOVING, State.RUNNING, State.TELEOP},
    State.MOVING: {State.RUNNING, State.DECELERATING, State.TELEOP},
    State.RUNNING: {State.HOLDING, State.DECELERATING, State.TELEOP},
    State.HOLDING: {State.RUNNING, State.DECELERATING, State.TELEOP},
    State.DECELERATING: {State.STOPPED, State.TELEOP},
    State.TELEOP: {State.RUNNING, State.DECELERATING},
    State.E_STOPPED: {State.STOPPED},
}


class AnyInputs(RuleBasedStateMachine):
    """Every sequence of inputs keeps to the diagram."""

    @initialize(approach=st.booleans())
    def begin(self, approach):
        self.robot = Robot(approach=approach)
        self.held_ticks = 0

    @rule(
        command=st.sampled_from(Command),
        expires=st.sampled_from([0, 1000 * MS]),
        near=st.booleans(),
        at_rest=st.booleans(),
        condition=st.sampled_from([*FOLLOWS] * 4 + [Condition.PROTECTIVE_STOP, Condition.EMERGENCY_STOP]),
        e_stop=st.sampled_from([False] * 6 + [True]),
        silent=st.sampled_from([None, None, *(w.name for w in WATCHES)]),
    )
    def tick(self, command, expires, near, at_rest, condition, e_stop, silent):
        robot, contract = self.robot, self.robot.contract
        robot.expires, robot.near, robot.at_rest = expires, near, at_rest
        robot.condition, robot.e_stop = condition, e_stop
        robot.silent = {silent: 0} if silent else {}
        before, paused = contract.state, contract.paused
        order = robot.tick(command)
        after = order.state
        assert order.entered == (after is not before)
        assert order.cause
        emergency = e_stop or condition is Condition.EMERGENCY_STOP
        if emergency:
            assert after is State.E_STOPPED
        elif before is State.E_STOPPED:
            assert (after is State.STOPPED) <= (command is Command.RELEASE)
        elif condition not in FOLLOWS:
            assert after is State.STOPPED
        elif after is not before:
            assert after in ALLOWED[before]
            assert (after is State.TELEOP) <= (command is Command.TAKE_OVER)
            if before is State.STOPPED and paused:
                assert command in (Command.RESUME, Command.TAKE_OVER)
        if after is State.RUNNING:
            assert expires
            assert silent not in ("policy", "camera")
            assert before in (State.RUNNING, State.HOLDING) or near
        self.held_ticks = self.held_ticks + 1 if after is State.HOLDING else 0
        assert self.held_ticks <= 10
        assert (order.duty is Duty.SILENT) == (condition not in FOLLOWS)

    @invariant()
    def teleop_is_never_held(self):
        assert not (self.robot.contract.state in (State.RUNNING, State.TELEOP) and self.robot.contract.paused)


AnyInputs.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyInputs = AnyInputs.TestCase
