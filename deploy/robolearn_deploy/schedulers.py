"""Chunk schedulers: how a policy that thinks more slowly than the robot acts is kept from stopping or jerking it.

A scheduler is four choices, and `SCHEDULERS` at the end lists all of them:

- ``draw``: how a chunk is sampled, given what the robot is committed to until it can take over (draws.py);
- ``plan``: how chunks become one action at each instant (plan.py);
- ``waits``: whether the robot waits for a chunk;
- ``execute``: how many control steps lie between the observations of two chunks, at least.

Shapes and counts, after Black et al. 2025 (Real-Time Execution of Action Chunking Flow Policies): H actions of a chunk
from the observation's capture on (``horizon - start`` of a policy), d control steps of delay from the capture to the
first action of the chunk that is carried out, s steps between the observations of two chunks, d <= s <= H - d.

The runtime (policy_process.py, control_process.py) and evaluation in virtual time (delayed.py) use the same ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import UserError
from robolearn_deploy import draws
from robolearn_deploy.chunks import Refusals
from robolearn_deploy.plan import EnsemblePlan, Plan, PlanTiming, ReplacePlan, WaitPlan

if TYPE_CHECKING:
    from robolearn.policies.config import PolicyConfig


class SchedulerError(UserError):
    """A scheduler does not exist, or cannot work with this policy, delay or horizon."""


@dataclass(frozen=True)
class Scheduler:
    name: str
    draw: draws.Draw
    plan: Callable[[Refusals, PlanTiming], Plan] = ReplacePlan
    waits: bool = False
    """The robot holds still from the end of one chunk to the arrival of the next, which is asked for in between."""
    committed: bool = False
    """``draw`` looks at what the robot is committed to."""
    execute: int | None = None
    """Least steps between the observations of two chunks; None for the policy's own action horizon."""
    needs: Literal["", "noise", "prefix", "streaming"] = ""
    """What the policy must have. noise: chunks that differ with the noise they begin with; prefix, streaming: training
    with the objective's setting of that name."""

    def execute_steps(self, spec: PolicySpec, asked: int | None = None) -> int:
        """Least control steps between two observations that are inferred from (s_min).

        Args:
            asked: by the user; None for the scheduler's or the policy's own choice.

        Raises:
            SchedulerError: more than a chunk has.
        """
        execute = asked or self.execute or spec.action_horizon
        reach = spec.horizon - spec.start
        if execute > reach:
            raise SchedulerError(
                f"{execute} steps between chunks are more than the {reach} actions that a chunk has from its "
                f"observation on; give {reach} or fewer"
            )
        return execute


def check_policy(scheduler: Scheduler, config: PolicyConfig) -> None:
    """Check that chunks of a policy can be drawn so.

    Raises:
        SchedulerError: they cannot; it names the schedulers that can.
    """
    reason = _lacks(scheduler, config)
    if reason:
        valid = ", ".join(name for name, other in SCHEDULERS.items() if not _lacks(other, config))
        raise SchedulerError(f"the scheduler {scheduler.name} cannot be used: {reason}; this policy can have: {valid}")


def _lacks(scheduler: Scheduler, config: PolicyConfig) -> str:
    """Why a policy cannot be used, "" where it can."""
    objective = config.objective
    if config.tokenizer is not None and scheduler.name != "naive":
        return "the chunks of a slow-fast policy are latents, which are replaced and never averaged or steered"
    match scheduler.needs:
        case "noise" if objective.kind == "regression":
            return "the policy predicts the same chunk whatever the noise, so that none can be steered or chosen"
        case "prefix" | "streaming" as setting if not getattr(objective, setting):
            if objective.kind == "regression":
                return "the policy predicts chunks from observations alone"
            return f"the policy was trained without it (--policy.objective.{setting})"
    return ""


def steps_of(delay: int, least: int, spec: PolicySpec) -> tuple[int, int]:
    """(d, s) for an expected ``delay``: s = max(d, ``least``) where the horizon allows it, and d <= s <= H - d always.

    A delay that the horizon cannot bridge is cut to H // 2: the robot will then wait a moment between chunks.
    """
    reach = spec.horizon - spec.start
    d = min(delay, reach // 2)
    return d, min(max(d, least, 1), reach - d)


def check_delay(delay: int, least: int, spec: PolicySpec) -> None:
    """Check that chunks bridge ``delay`` with ``least`` steps between them.

    Raises:
        SchedulerError: d <= s <= H - d cannot be had.
    """
    reach = spec.horizon - spec.start
    if max(delay, least) + delay <= reach:
        return
    longest = min(reach - least, reach // 2)
    raise SchedulerError(
        f"chunks of {reach} actions cannot bridge a delay of {delay} control steps with {least} steps between them; "
        f"possible are delays up to {max(longest, 0)}: infer faster (--steps), replan sooner (--replan), or train with "
        "a longer --horizon"
    )


class DelayWindow:
    """The last delays, of which the longest is expected next (Black et al. 2025, algorithm 1: d = max(Q)).

    An outlier is forgotten when it leaves the window.
    """

    SIZE = 10

    def __init__(self, initial: int) -> None:
        """``initial`` is expected until a delay has been measured."""
        self._initial = initial
        self._recent: deque[int] = deque(maxlen=self.SIZE)

    def add(self, steps: int) -> None:
        self._recent.append(steps)

    @property
    def expected(self) -> int:
        return max(self._recent, default=self._initial)


def find(name: str) -> Scheduler:
    """The scheduler ``name``.

    Raises:
        SchedulerError: there is none.
    """
    try:
        return SCHEDULERS[name]
    except KeyError:
        raise SchedulerError(f"there is no scheduler {name!r}; valid: {', '.join(SCHEDULERS)}") from None


_ALL = [
    # The robot stands still while the policy thinks.
    Scheduler("sync", draws.plain, plan=WaitPlan, waits=True),
    # A chunk replaces the rest of the one before, whatever the jump.
    Scheduler("naive", draws.plain),
    # All chunks that cover an instant are averaged; the more there are the better, so it infers without a pause.
    Scheduler("ensemble", draws.plain, plan=EnsemblePlan, execute=1),
    # A chunk is sampled so that it continues the one before.
    Scheduler("rtc", draws.real_time_chunking, committed=True, needs="noise"),
    Scheduler("rtc-identity", draws.real_time_chunking_identity, committed=True),
    Scheduler("rtc-trained", draws.prefix, committed=True, needs="prefix"),
    # Of several chunks the one that continues the one before best.
    Scheduler("bid", draws.bidirectional, committed=True, needs="noise"),
    # A chunk is the one before, denoised further; asked for a block of actions at a time.
    Scheduler("streaming", draws.streaming, committed=True, needs="streaming"),
]
SCHEDULERS: dict[str, Scheduler] = {scheduler.name: scheduler for scheduler in _ALL}
