"""Trajectory, limiter and stall contract together, as a servo loop joins them, against an arm that differentiates what
it is sent: chunks with NaN, jumps and gaps, duplicated, late, reordered and foreign ones, silent processes, e-stops,
faults of the arm, and a person who takes over."""

import numpy as np
import pytest

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

from robolearn_deploy.chunks import Chunk
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.selfdistance import SelfDistance
from robolearn_deploy.stall import Command, Duty, Inputs, StallContract, State, Watch, time_to_rest_s
from robolearn_deploy.trajectory import Spaces, Trajectory
from robolearn_hardware.devices import ArmInfo, Condition
from robolearn_hardware.kinematics import Kinematics, Workspace
from robolearn_hardware.limits import limits_of, velocity_range

MS = 1_000_000
TICK = 10 * MS
ACTIONS, STEP = 16, 50 * MS
NEAR_RAD = 0.15
WATCHES = (
    Watch("policy", 300 * MS),
    Watch("camera", 100 * MS),
    Watch("supervisor", 200 * MS, teleop=True),
    Watch("teleoperator", 100 * MS, policy=False, teleop=True),
)


class StrictArm:
    """Differentiates the setpoints that it gets, and counts what breaks a limit."""

    def __init__(self, limiter, workspace, self_distance):
        limits = limiter.info.limits
        self.model, self.low, self.high = limiter.info.model, limits.low, limits.high
        self.bounds = limiter.velocity, limiter.acceleration, limiter.jerk
        self.dt = limiter.dt_s
        self.kinematics, self.workspace = Kinematics(self.model), workspace
        self.self_distance = self_distance
        self.violations = {"position": 0, "velocity": 0, "acceleration": 0, "jerk": 0, "workspace": 0, "self": 0}
        self.rest_at(np.clip(np.zeros(limits.joints), limits.low, limits.high))

    def rest_at(self, positions):
        self.history = np.tile(positions, (4, 1))
        self.range_before = velocity_range(self.model, positions)

    @property
    def positions(self):
        return self.history[-1].copy()

    def command(self, positions):
        before = self.history[-1]
        self.history = np.vstack([self.history[1:], positions])
        found = self.violations
        found["position"] += not (
            np.isfinite(positions).all()
            and (positions >= self.low - 1e-8).all()
            and (positions <= self.high + 1e-8).all()
        )
        rates = self.history
        for name, bound in zip(("velocity", "acceleration", "jerk"), self.bounds, strict=True):
            rates = np.diff(rates, axis=0) / self.dt
            found[name] += bool((np.abs(rates[-1]) > bound * (1 + 1e-6)).any())
        if self.model == "fr3":
            velocity = (positions - before) / self.dt
            ranges = self.range_before, velocity_range("fr3", positions)
            self.range_before = ranges[1]
            lowest, highest = zip(*ranges, strict=True)
            found["velocity"] += bool(
                (velocity > np.max(highest, 0) + 1e-6).any() or (velocity < np.min(lowest, 0) - 1e-6).any()
            )
        if self.workspace is not None:
            found["workspace"] += bool((self.kinematics.outside(positions, self.workspace) > 1e-3).any())
        if self.self_distance is not None:
            found["self"] += self.self_distance.nearest(positions) < self.self_distance.minimum_m - 1e-3

    @property
    def moves(self):
        return bool((np.ptp(self.history[-2:], axis=0) > 1e-9).any())


class Run:
    def __init__(self, model, seed, *, workspace=None, self_distance=None):
        limits = limits_of(model)
        info = ArmInfo(model, model, tuple(f"joint {j}" for j in range(limits.joints)), limits, True, 100.0)
        self.rng = np.random.default_rng(seed)
        self.limiter = Limiter(info, 1e9 / TICK, workspace=workspace, self_distance=self_distance)
        self.arm = StrictArm(self.limiter, workspace, self_distance)
        self.trajectory = Trajectory(Spaces(limits.joints), ACTIONS, STEP)
        self.contract = StallContract(WATCHES)
        self.now = 10**9
        self.episode = 0
        self.limiter.begin(self.arm.positions)
        self.trajectory.begin(0, self.arm.positions)
        self.duty = Duty.STAY
        self.beats = [self.now] * len(WATCHES)
        self.silent_until = [0] * len(WATCHES)
        self.gap_until, self.next_chunk, self.sequence = 0, 0, 0
        self.old: list[Chunk] = []
        self.condition, self.condition_until = Condition.READY, 0
        self.e_stop_until = 0
        self.leader = self.arm.positions
        self.failing_since: int | None = None
        self.late_to_rest = 0
        self.states = dict.fromkeys(State, 0)

    def chance(self, per_tick):
        return self.rng.random() < per_tick

    def think(self):
        """What the policy sends, mostly sound."""
        if self.now < self.next_chunk or self.now < self.gap_until:
            return
        self.next_chunk = self.now + int(self.rng.integers(50, 400)) * MS
        if self.chance(0.05):
            self.gap_until = self.now + int(self.rng.integers(100, 2500)) * MS
        rng, joints = self.rng, self.limiter.info.joints
        self.sequence += 1
        begin = self.now - int(rng.integers(0, 250)) * MS
        times = begin + np.arange(ACTIONS, dtype=np.int64) * STEP
        scale = rng.choice([0.02, 0.1, 0.5])
        actions = self.limiter.sent.positions + np.cumsum(rng.normal(size=(ACTIONS, joints)) * scale, axis=0)
        actions -= actions[0] - self.limiter.sent.positions
        episode, expiry = self.episode, int(times[-1]) + STEP
        fault = rng.integers(16)
        if fault == 0:
            actions[rng.integers(ACTIONS), rng.integers(joints)] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
        elif fault == 1:
            actions[rng.integers(ACTIONS) :] += rng.normal(size=joints) * 5
        elif fault == 2:
            episode -= 1
        elif fault == 3:
            times = times - 5_000 * MS
            expiry = int(times[-1])
        elif fault == 4:
            times = rng.permutation(times)
        elif fault == 5:
            actions = actions[:, :-1]
        elif fault == 6:
            times = begin + np.sort(rng.integers(0, 2_000_000_000, ACTIONS))
        elif fault == 7:
            expiry = self.now + int(rng.integers(1, 100)) * MS
        elif fault == 8:
            times, expiry = times + 300 * MS, expiry + 300 * MS
        chunk = Chunk(self.sequence, episode, int(times[0]), times, actions, expiry)
        self.old = [*self.old[-3:], chunk]
        self.trajectory.offer(chunk, self.now)
        if self.chance(0.2):
            self.trajectory.offer(self.old[rng.integers(len(self.old))], self.now)

    def disturb(self):
        rng = self.rng
        for i in range(len(WATCHES)):
            if self.chance(0.001):
                self.silent_until[i] = self.now + int(rng.integers(50, 2000)) * MS
            if self.now >= self.silent_until[i]:
                self.beats[i] = self.now - int(rng.integers(0, 20)) * MS
        if self.chance(0.0007):
            self.condition = Condition(rng.choice([0, 3, 4, 5, 6]))
            self.condition_until = self.now + int(rng.integers(10, 500)) * MS
        if self.now >= self.condition_until:
            self.condition = Condition.DEGRADED if self.chance(0.05) else Condition.READY
        if self.chance(0.0007):
            self.e_stop_until = self.now + int(rng.integers(10, 1000)) * MS
        if self.chance(0.002):
            self.leader = self.arm.positions + rng.normal(size=self.leader.size) * rng.choice([0.1, 1, 5])
        self.leader = self.leader + rng.normal(size=self.leader.size) * 0.01
        if self.chance(0.0005):
            self.episode += 1
            self.trajectory.begin(self.episode, self.limiter.sent.positions)

    def command(self):
        state = self.contract.state
        if state is State.E_STOPPED and self.chance(0.02):
            return Command.RELEASE
        if self.contract.paused and self.chance(0.05):
            return Command.RESUME
        if state is State.TELEOP and self.chance(0.01):
            return Command.HAND_BACK
        return Command(self.rng.integers(1, 6)) if self.chance(0.002) else Command.NONE

    def tick(self):
        self.now += TICK
        self.disturb()
        self.think()
        now, limiter, trajectory = self.now, self.limiter, self.trajectory
        inputs = Inputs(
            now,
            trajectory.expiry_ns,
            trajectory.distance(now, limiter.sent.positions) < NEAR_RAD,
            limiter.at_rest,
            self.condition,
            self.beats,
            now < self.e_stop_until,
            self.command(),
        )
        order = self.contract.tick(inputs)
        self.states[order.state] += 1
        before, self.duty = self.duty, order.duty
        if order.duty is Duty.SILENT:
            self.arm.rest_at(self.arm.positions)  # it stops by itself
        else:
            if before is Duty.SILENT:
                limiter.begin(self.arm.positions)
            self.act(before)
            self.arm.command(limiter.sent.positions.copy())
        self.check_rest(inputs, order)

    def act(self, before):
        limiter, trajectory = self.limiter, self.trajectory
        if self.duty is Duty.FOLLOW:
            if before is not Duty.FOLLOW:
                trajectory.restart(self.now, limiter.sent)
            limiter.follow(*trajectory.at(self.now))
        elif self.duty is Duty.APPROACH:
            limiter.approach(trajectory.pose(self.now))
        elif self.duty is Duty.TELEOP:
            leader = self.leader.copy()
            if self.chance(0.01):
                leader[0] = np.nan
            limiter.follow(leader)
        else:
            limiter.stop()

    def check_rest(self, inputs, order):
        """Whatever fails, and goes on failing: the arm is at rest within the stated time."""
        driving = State.TELEOP if order.state is State.TELEOP else State.RUNNING
        silent = any(
            (w.teleop if driving is State.TELEOP else w.policy) and self.now - beat > w.allowed_ns
            for w, beat in zip(WATCHES, self.beats, strict=True)
        )
        expired = driving is State.RUNNING and self.now >= inputs.expiry_ns
        if not (silent or expired or inputs.e_stop or inputs.condition is Condition.EMERGENCY_STOP):
            self.failing_since = None
            return
        if self.failing_since is None or inputs.command is Command.TAKE_OVER:
            self.failing_since = self.now
        stated = time_to_rest_s(self.limiter.rest_time_s, self.limiter.dt_s, hold_s=self.contract.hold_s)
        if (self.now - self.failing_since) / 1e9 > stated:
            self.late_to_rest += self.arm.moves


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ticks", "bounded"), [("fr3", 60_000, False), ("so101", 40_000, True)])
def test_a_hundred_thousand_ticks_of_faults_break_no_limit_and_end_at_rest_in_time(model, ticks, bounded):
    workspace = Workspace(low=(0.05, -0.25, 0.05), high=(0.45, 0.25, 0.4), floor=0.03) if bounded else None
    run = Run(model, seed=5, workspace=workspace, self_distance=SelfDistance(model) if bounded else None)
    for _ in range(ticks):
        run.tick()
    assert run.arm.violations == dict.fromkeys(run.arm.violations, 0)
    assert run.late_to_rest == 0
    assert min(run.states.values()) > 100, run.states
    refusals = vars(run.trajectory.refusals)
    assert min(refusals.values()) > 10, refusals
