"""What a robot does when something falls silent: named states, with a stated time to rest.

                     fresh plan, near (else: resume -> MOVING, slowly, until it is near)
        STOPPED ---------------------------------------------------> RUNNING <----------------+
           ^                                                          |   |   fresh plan,     |
           | at rest              plan expired or a process is silent |   |   all processes   |
           |                                                          v   |   beat again      |
      DECELERATING <------------------------------------------------ HOLDING -----------------+
           ^                    hold_s is over
           |
           +--- RUNNING, MOVING, TELEOP: pause; MOVING, TELEOP: what leads from RUNNING to HOLDING

    take over:  any but E_STOPPED -> TELEOP -> (hand back) RUNNING where a near plan is fresh, else DECELERATING
    arm fault (protective stop, unplugged, released): any -> STOPPED, paused; nothing is sent
    e-stop (button, dashboard, the arm's own): any -> E_STOPPED -> (release, by a person) STOPPED, paused

STOPPED *paused* is left by a person's resume or take-over alone; otherwise a near and fresh plan leads back to RUNNING.
HOLDING goes on along the plan, whose end stands still (``trajectory.Trajectory``), in case that the next chunk comes.
DECELERATING is the quickest way to rest within the limits (``limiter.Limiter.stop``), and is never left in motion but
by a take-over or an e-stop.

No clock is read here and nothing is sent: ``StallContract.tick`` takes what is known and answers what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import Condition


class State(IntEnum):
    STOPPED = 0
    """At rest. The state at the beginning."""
    MOVING = 1
    """Slowly towards where the plan begins."""
    RUNNING = 2
    """Follows the plan."""
    HOLDING = 3
    """Follows the plan to its end, and waits ``hold_s`` for what is missing."""
    DECELERATING = 4
    """On the quickest way to rest."""
    TELEOP = 5
    """A person has taken over."""
    E_STOPPED = 6
    """An emergency stop: comes to rest, and stays until a person releases it."""


class Duty(IntEnum):
    """What the servo loop does at a tick."""

    SILENT = 0
    """Send nothing: the arm takes no commands. Before the next other duty the limiter begins anew where the arm is."""
    STAY = 1
    """At rest: send the last setpoint again."""
    STOP = 2
    """``limiter.stop``."""
    FOLLOW = 3
    """``limiter.follow`` the trajectory."""
    APPROACH = 4
    """``limiter.approach`` the plan's pose of now."""
    TELEOP = 5
    """``limiter.follow`` the person."""


class Command(IntEnum):
    """What a person asks for."""

    NONE = 0
    PAUSE = 1
    RESUME = 2
    TAKE_OVER = 3
    HAND_BACK = 4
    RELEASE = 5
    """Leave the e-stop."""


@dataclass(frozen=True)
class Watch:
    """A process that must give signs of life."""

    name: str
    """"policy", "camera wrist", "recorder", "network", "supervisor", "teleoperator" ..."""
    allowed_ns: int
    """Greatest age of its last beat."""
    policy: bool = True
    """Needed while the policy drives."""
    teleop: bool = False
    """Needed while a person does."""


class Inputs(NamedTuple):
    """What is known at a tick. Instants are CLOCK_MONOTONIC ns."""

    now_ns: int
    expiry_ns: int
    """Of the newest plan; 0: there is none."""
    near: bool
    """The plan's pose of now is near the one that was sent last."""
    at_rest: bool
    """The last setpoint has velocity and acceleration zero."""
    condition: Condition
    """Of the arm."""
    beats_ns: Sequence[int]
    """When each of the watched processes last gave a sign of life, in the order of the watches; 0: never."""
    e_stop: bool = False
    """The button is pressed."""
    command: Command = Command.NONE
    fault: str = ""
    """Why the arm has stopped, in words, where its driver knows."""


class Order(NamedTuple):
    state: State
    duty: Duty
    cause: str
    """Why it is in this state, in words for a person."""
    entered: bool
    """The state was entered at this tick. On entering FOLLOW the trajectory is restarted from the last setpoint, unless
    the duty was FOLLOW before."""


SUPERVISOR_NS = 500_000_000
CAMERA_NS = 1_500_000_000
"""A camera's process beats every half second. That no picture comes is seen by the policy, which then makes no plan."""
RECORDER_NS = 3_000_000_000
TELEOPERATOR_NS = 200_000_000
"""A teleoperator that has said nothing for so long is not followed any more: the arm stops, and stays TELEOP."""


def time_to_rest_s(rest_time_s: float, period_s: float, *, allowed_s: float = 0.0, hold_s: float = 0.0) -> float:
    """The most time from a failure to rest: until it is noticed, held, and the arm has braked. Of ticks in time: each
    deadline that is missed meanwhile, because the arm answers late say, adds a period.

    Args:
        rest_time_s: ``limiter.Limiter.rest_time_s``.
        period_s: of the servo loop; a failure is seen at the tick after it.
        allowed_s: the greatest age of the beat of the process that fails. A policy that goes while the others live:
            until its plan expires. An e-stop or a pause: 0.
        hold_s: of the contract; 0 for an e-stop, a pause, and in TELEOP and MOVING, which do not hold.
    """
    return allowed_s + hold_s + rest_time_s + 2 * period_s


def stated_times_s(
    rest_time_s: float,
    period_s: float,
    *,
    plan_s: float,
    fast_plan_s: float | None = None,
    blind_s: float = 0.25,
    hold_s: float = 0.1,
) -> dict[str, float]:
    """The most time to rest after each failure on a rig, in one place. A process fails when it is stopped or killed,
    when it raises, or when it has no memory left.

    Args:
        rest_time_s, period_s, hold_s: as of ``time_to_rest_s``.
        plan_s: from the capture of an observation to the expiry of its chunk: (horizon - start) control periods.
        fast_plan_s: from a tick of the fast policy to the expiry of its short chunk; None: there is none.
        blind_s: the greatest age of a picture that the policy infers from (``rig_senses.STALE_NS``).
    """
    allowed = {"policy": plan_s, "policy server": plan_s}
    if fast_plan_s is not None:
        allowed["fast policy"] = fast_plan_s
    # A camera may fall silent and beat, or not beat.
    allowed["camera"] = max(CAMERA_NS / SECOND_NS, blind_s + plan_s)
    allowed |= {"recorder": RECORDER_NS / SECOND_NS, "supervisor": SUPERVISOR_NS / SECOND_NS}
    stated = {
        name: time_to_rest_s(rest_time_s, period_s, allowed_s=allowed_s, hold_s=hold_s)
        for name, allowed_s in allowed.items()
    }
    stated["teleoperator"] = time_to_rest_s(rest_time_s, period_s, allowed_s=TELEOPERATOR_NS / SECOND_NS)
    return stated | {"e-stop": time_to_rest_s(rest_time_s, period_s)}


_FOLLOWS = (Condition.READY, Condition.DEGRADED)


class StallContract:
    """The state of one arm. ``tick`` at every servo tick."""

    def __init__(self, watches: Sequence[Watch], *, hold_s: float = 0.1, approach: bool = False) -> None:
        """
        Args:
            hold_s: how long HOLDING waits.
            approach: move to where a plan begins without being asked; otherwise a person's resume is waited for.

        Raises:
            ValueError: two watches of the same name, or times below 0.
        """
        if hold_s < 0 or any(w.allowed_ns <= 0 for w in watches):
            raise ValueError("hold_s must be 0 or more and the age allowed to a beat above 0")
        if len({w.name for w in watches}) != len(watches):
            raise ValueError("two watched processes have the same name; each needs its own")
        self.watches = tuple(watches)
        self.hold_s = hold_s
        self.state = State.STOPPED
        self.cause = "not started"
        self.paused = False
        """STOPPED until a person says otherwise."""
        self._hold_ns = round(hold_s * SECOND_NS)
        self._approach = approach
        self._holding_since_ns = 0

    def tick(self, inputs: Inputs) -> Order:
        """The state from now on, and what the servo loop does at this tick."""
        before = self.state
        self._next(inputs)
        return Order(self.state, self._duty(inputs), self.cause, self.state is not before)

    def _next(self, i: Inputs) -> None:
        emergency = i.e_stop or i.condition is Condition.EMERGENCY_STOP
        if emergency and self.state is not State.E_STOPPED:
            self._enter(State.E_STOPPED, "e-stop pressed" if i.e_stop else "the arm's own e-stop is pressed")
            return
        if self.state is State.E_STOPPED:
            if i.command is Command.RELEASE and not emergency and (i.at_rest or i.condition not in _FOLLOWS):
                self._pause("e-stop released; resume when ready", State.STOPPED)
            return
        if i.condition not in _FOLLOWS:
            name = i.condition.name.lower().replace("_", " ")
            said = f" ({i.fault})" if i.fault else ""
            self._pause(f"the arm reports: {name}{said}; recover it, then resume", State.STOPPED)
            return
        if i.command is Command.TAKE_OVER and self.state is not State.TELEOP and not self._silent(i, teleop=True):
            self._enter(State.TELEOP, "a person has taken over")
            return
        if i.command is Command.PAUSE and self.state is not State.TELEOP:
            moving = self.state is not State.STOPPED
            self._pause("paused by a person; resume when ready", State.DECELERATING if moving else State.STOPPED)
            return
        _TRANSITIONS[self.state](self, i)

    def _stopped(self, i: Inputs) -> None:
        if self.paused and i.command is not Command.RESUME:
            return
        self.paused = False
        missing = self._missing(i)
        if missing:
            self.cause = missing
        elif i.near:
            self._enter(State.RUNNING, "the plan begins near the arm")
        elif self._approach or i.command is Command.RESUME:
            self._enter(State.MOVING, "moving slowly to where the plan begins")
        else:
            self.cause = "the plan begins away from the arm; resume moves there slowly"

    def _moving(self, i: Inputs) -> None:
        missing = self._missing(i)
        if missing:
            self._enter(State.DECELERATING, missing)
        elif i.near:
            self._enter(State.RUNNING, "the arm is where the plan begins")

    def _running(self, i: Inputs) -> None:
        missing = self._missing(i)
        if missing:
            self._holding_since_ns = i.now_ns
            self._enter(State.HOLDING, missing)

    def _holding(self, i: Inputs) -> None:
        missing = self._missing(i)
        if i.now_ns - self._holding_since_ns >= self._hold_ns:
            self._enter(State.DECELERATING, missing or self.cause)
        elif not missing:
            self._enter(State.RUNNING, "what was missing has come")

    def _decelerating(self, i: Inputs) -> None:
        if i.at_rest:
            self._enter(State.STOPPED, self.cause)

    def _teleop(self, i: Inputs) -> None:
        silent = self._silent(i, teleop=True)
        if silent:
            self._enter(State.DECELERATING, silent)
        elif i.command is Command.PAUSE:
            self._pause("paused by a person; resume when ready", State.DECELERATING)
        elif i.command is Command.HAND_BACK:
            missing = self._missing(i) or ("" if i.near else "the plan begins away from the arm")
            self._enter(State.DECELERATING if missing else State.RUNNING, missing or "the person has handed back")

    def _missing(self, i: Inputs) -> str:
        """What the policy's driving lacks; empty if nothing."""
        if i.now_ns >= i.expiry_ns:
            return "the plan has expired" if i.expiry_ns else "no plan has come"
        return self._silent(i, teleop=False)

    def _silent(self, i: Inputs, *, teleop: bool) -> str:
        for watch, beat_ns in zip(self.watches, i.beats_ns, strict=True):
            if (watch.teleop if teleop else watch.policy) and i.now_ns - beat_ns > watch.allowed_ns:
                return f"no sign of life from {watch.name} for more than {watch.allowed_ns / 1e6:.0f} ms"
        return ""

    def _duty(self, i: Inputs) -> Duty:
        if i.condition not in _FOLLOWS:
            return Duty.SILENT
        if self.state in (State.STOPPED, State.E_STOPPED):
            return Duty.STAY if i.at_rest else Duty.STOP
        return _DUTIES[self.state]

    def _pause(self, cause: str, state: State) -> None:
        self.paused = True
        self._enter(state, cause)

    def _enter(self, state: State, cause: str) -> None:
        if state in (State.RUNNING, State.MOVING, State.TELEOP):
            self.paused = False
        self.state, self.cause = state, cause


_TRANSITIONS = {
    State.STOPPED: StallContract._stopped,
    State.MOVING: StallContract._moving,
    State.RUNNING: StallContract._running,
    State.HOLDING: StallContract._holding,
    State.DECELERATING: StallContract._decelerating,
    State.TELEOP: StallContract._teleop,
}
_DUTIES = {
    State.MOVING: Duty.APPROACH,
    State.RUNNING: Duty.FOLLOW,
    State.HOLDING: Duty.FOLLOW,
    State.DECELERATING: Duty.STOP,
    State.TELEOP: Duty.TELEOP,
}
