"""What the runtime costs, how soon an e-stop stops, and how smoothly a person takes over.

    python tests/benchmarks/runtime_overhead.py                        # about 20 minutes
    python tests/benchmarks/runtime_overhead.py --trials 5 --only e-stop take-over --out none

- servo tick: CPU time of the servo process for each tick, by parts, with a simulated SO-101 and with the SO-101's
  driver and its twin at the other end of the wire. What the driver takes to read the arm and to send stands beside it.
- chunk: CPU time of the policy's process for each chunk, by parts, with a policy of 1 M parameters that sees three
  cameras (320 x 240) and the state; the policy's own time stands beside it.
- e-stop: on both arms, base and wrist swinging at up to 0.9 of the velocity limit; pressed in the ring of commands, by
  a viewer of the page (websocket), or with the terminal's key. From the press to the first setpoint at rest, and until
  the arm stands within 2 mrad of its end. limit: what is stated, from the ring to the setpoint at rest; missed: servo
  deadlines on the way, by which it takes longer.
- take-over: a person's leader arm swings, half a radian away from the arm, which the policy swings otherwise. The
  greatest step, velocity, acceleration and jerk of the setpoints, differentiated, in the 0.4 s after each hand-over
  and hand-back; of as many windows of a policy's and a person's motion; and of a naive hand-over, the leader's pose
  from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pty
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from rig_fakes import spec_of
from rig_run import Announcing, RunProcess
from servo_bench import Sine, servo_bench, simulated_rig

from robolearn.cli.deploy_rig import _Terminal
from robolearn.policies.spec import PolicySpec
from robolearn_deploy import servo as servo_module
from robolearn_deploy import servo_process
from robolearn_deploy.dashboard.access import PageOptions
from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.driven_arm import DrivenArm, ServoOptions
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.stall import State, stated_times_s
from robolearn_deploy.ticker import Ticker
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Intent
from robolearn_hardware.registry import ArmConfig
from robolearn_hardware.rig import Rig, load_rig, with_twins
from robolearn_hardware.simulated import READY, SimulatedConfig
from robolearn_hardware.twins.host import Twins

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "hardware/rigs/so101_twin.yaml"
FOLDER = ROOT / "runs/bench/overhead"
"""What was measured, figure by figure: `--only` measures anew, the others are taken from here."""
JOINTS = 5
SWINGING = np.array([1.0, 0.1, 0.1, 0.1, 1.0, 0.0])
"""Share of the amplitude: the base and the wrist, so that no link comes near another."""
FAST = (0.84, 0.8)
"""rad, Hz: up to 4.2 rad/s, of the SO-101's 4.71."""
SLOW = (0.3, 0.5)
STANDS_RAD = 0.002
"""Counts of its encoders are 0.0015 rad."""

Row = dict[str, Any]


def row(figure: str, part: str, unit: str, values: Any, **more: Any) -> Row:
    values = np.asarray(values, np.float64)
    p50, p99, most = (float(f"{value:.4g}") for value in np.percentile(values, [50, 99, 100]))
    return {"figure": figure, "part": part, "unit": unit, "n": len(values), "p50": p50, "p99": p99, "max": most, **more}


SIMULATED = SimulatedConfig("so101", plant="first_order")
SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
ARMS: dict[str, tuple[Mapping[str, ArmConfig], tuple[str, ...]]] = {
    "simulated arm": ({"arm": SIMULATED}, tuple(f"joint{i + 1}" for i in range(JOINTS))),
    "SO-101's driver": (load_rig(TWIN).arms, SO101),
}
"""Name -> arms of a rig, and the names of the joints."""


# CPU time, by parts.


class Meter:
    """CPU time of this thread, of each part without the parts within it, from one ``cut`` to the next."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, int]] = []
        self._parts: dict[str, int] = defaultdict(int)
        self._inner = 0
        self._began = time.thread_time_ns()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began, outer = time.thread_time_ns(), self._inner
            self._inner = 0
            try:
                return function(*args)
            finally:
                took = time.thread_time_ns() - began
                self._parts[part] += took - self._inner
                self._inner = outer + took

        return call

    def begin(self) -> None:
        self._parts, self._inner, self._began = defaultdict(int), 0, time.thread_time_ns()

    def cut(self) -> None:
        self.rounds.append({"all": time.thread_time_ns() - self._began, **self._parts})

    def rows(self, figure: str, own: dict[str, str], parts: dict[str, str], rest: str) -> list[Row]:
        """One row for each part, in CPU ms; ``own`` is not the runtime's, ``rest`` what no part has."""

        def of(keys: Mapping[str, str]) -> np.ndarray:
            return np.array([sum(found.get(key, 0) for key in keys) for found in self.rounds]) / 1e6

        everything = np.array([found["all"] for found in self.rounds]) / 1e6
        rows = [row(figure, text, "CPU ms", of({key: text})) for key, text in (parts | own).items()]
        rows.insert(len(parts), row(figure, rest, "CPU ms", everything - of(parts) - of(own)))
        return [row(figure, "all of the runtime", "CPU ms", everything - of(own)), *rows]


TICK_PARTS = {
    "state": "publish the state",
    "chunks": "take in chunks",
    "hear": "hear people and heartbeats",
    "drive": "trajectory and limiter",
    "tick": "publish the tick",
}
TICK_OWN = {"read": "reading the arm (its driver)", "send": "sending to the arm (its driver)"}


def _metered_servo(path: Path, rig: Rig, options: ServoOptions, pipe: Connection) -> None:
    """``servo_process.run_servo`` with a meter at its parts."""
    meter = Meter()
    inside = [
        (servo_process._Servo, "_publish_state", "state"),
        (servo_process._Servo, "_take_chunks", "chunks"),
        (servo_process._Servo, "_obey", "hear"),
        (servo_process._Servo, "_inputs", "hear"),
        (servo_process._Servo, "_publish_tick", "tick"),
        (servo_process._Servo, "_publish_step", "tick"),
        (DrivenArm, "read", "read"),
        (DrivenArm, "drive", "drive"),
        (DrivenArm, "_send", "send"),
    ]
    wait = Ticker.wait

    def wait_for_tick(ticker: Ticker) -> Any:
        meter.cut()
        tick = wait(ticker)
        meter.begin()
        return tick

    with ExitStack() as stack:
        for owner, name, part in inside:
            stack.enter_context(mock.patch.object(owner, name, meter.timed(part, getattr(owner, name))))
        stack.enter_context(mock.patch.object(Ticker, "wait", wait_for_tick))
        servo_process.run_servo(rig, options, pipe)
    path.write_text(json.dumps(meter.rounds[len(meter.rounds) // 10 :]))


def servo_tick(kind: str, seconds: float, folder: Path) -> list[Row]:
    """``kind``: a key of ARMS."""
    path = folder / "rounds.json"
    metered = mock.patch.object(servo_module, "_run", functools.partial(_metered_servo, path))
    with with_twins(Rig("tick", arms=ARMS[kind][0])) as (rig, _), metered, servo_bench(rig) as bench:
        sine, end = Sine(bench), now_ns() + round(seconds * 1e9)
        bench.until(lambda tick: tick["due_ns"] > end, seconds + 30, feed=sine)
    meter = Meter()
    meter.rounds = json.loads(path.read_text())
    return meter.rows(f"servo tick, {kind}", TICK_OWN, TICK_PARTS, "stall contract and the loop itself")


def chunk(folder: Path, chunks: int) -> list[Row]:
    import runtime_jitter as jitter  # imports torch, which no other part needs

    from robolearn_deploy.local_policy import LocalPolicy
    from robolearn_deploy.policy_process import PolicyOptions, Thinking
    from robolearn_deploy.recorder import sample_fields
    from robolearn_deploy.rig_senses import SESSION_FIELDS, RigHandles, RigSenses
    from robolearn_hardware.ring import Ring

    meter = Meter()
    with servo_bench(simulated_rig(folder)) as bench, ExitStack() as stack:
        spec = jitter.spec_of(bench)
        cameras = {name: Ring.create(sample_fields(spec.observation[name]), 32) for name in jitter.CAMERAS}
        session = Ring.create(SESSION_FIELDS, 4)
        for ring in (*cameras.values(), session):
            stack.enter_context(ring)
        session.publish({"episode": 0, "stop": 0})
        streams = {"state": bench.state.handle, **{name: ring.handle for name, ring in cameras.items()}}
        senses = RigSenses(RigHandles(streams, bench.chunks.handle, bench.ticks.handle, session.handle), spec)
        stack.callback(senses.close)
        policy = stack.enter_context(
            contextlib.closing(LocalPolicy(jitter.write_policy(folder / "checkpoint", spec, bench.servo.start)))
        )
        thinking = Thinking(senses, policy, PolicyOptions(spec, "naive", jitter.TA))
        infer = policy.infer

        def metered(request: Request) -> Iterator[Reply]:
            step = meter.timed("infer", functools.partial(next, infer(request), None))
            while (reply := step()) is not None:
                yield reply

        senses.observe = meter.timed("observe", senses.observe)  # type: ignore[method-assign]
        senses.publish = meter.timed("publish", senses.publish)  # type: ignore[method-assign]
        policy.infer = metered  # type: ignore[method-assign]
        over = threading.Event()

        def look() -> None:
            picture = np.random.default_rng(0).integers(0, 256, (*jitter.SIZE, 3)).astype(np.uint8)
            while not over.wait(1 / jitter.CAMERA_HZ):
                bench.keep_beating()
                for ring in cameras.values():
                    ring.publish({"capture_ns": now_ns(), "received_ns": now_ns(), "value": picture})

        looking = threading.Thread(target=look)
        looking.start()
        stack.callback(looking.join)
        stack.callback(over.set)
        thinking.warm_up()
        while len(meter.rounds) < chunks + 3:
            before = bench.chunks.count
            meter.begin()
            due_ns = thinking.step()
            if bench.chunks.count > before:
                meter.cut()
            time.sleep(max(0.0, (due_ns - now_ns()) / 1e9))
    del meter.rounds[:3]
    parts = {"observe": "build the observation", "publish": "publish the chunk"}
    return meter.rows("chunk", {"infer": "the policy's own"}, parts, "schedule, commitment, following the ticks")


# Runs.


class SwingPolicy:
    """Swings base and wrist about where it first sees the arm."""

    def __init__(self, spec: PolicySpec, motion: tuple[float, float]) -> None:
        self.spec, self._motion = spec, motion
        self._middle: np.ndarray | None = None
        self._calls = -3  # warm-up

    def infer(self, request: Request) -> Iterator[Reply]:
        time.sleep(0.02)
        state = request.observation["state"][-1].astype(np.float64)
        self._calls += 1
        if self._middle is None and self._calls > 0:
            self._middle = state
        steps = np.arange(self.spec.horizon, dtype=np.int64) - self.spec.start
        times = request.capture_ns + steps * round(1e9 / self.spec.rate_hz)
        actions = (state if self._middle is None else self._middle) + swing(times, *self._motion)
        yield Reply(actions.astype(np.float32), self.spec.horizon)

    def close(self) -> None: ...


def swing(times_ns: np.ndarray, amplitude_rad: float, hz: float) -> np.ndarray:
    """(n,) -> (n, 6)."""
    return amplitude_rad * SWINGING * np.sin(2 * np.pi * hz * (times_ns % (1000 * 10**9)) / 1e9)[:, None]


class KeyAndPage(_Terminal):
    """The terminal of `robolearn deploy`, which tells this benchmark when the run begins."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(3600.0)
        self._announcing = Announcing(pipe)

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        super().started(operator, instruct, pids, rings)
        self._announcing.started(operator, instruct, pids, rings)

    def message(self, text: str) -> None:
        self._announcing.message(text)


def _run_with_terminal(kind: str, terminal: int, pipe: Connection) -> None:
    os.dup2(terminal, 0)
    sys.stdin = open(0)  # noqa: SIM115
    with with_twins(Rig("e-stop", arms=ARMS[kind][0])) as (rig, _), KeyAndPage(pipe) as watcher:
        spec = spec_of((*ARMS[kind][1], "gripper"))
        options = RigOptions(3600.0, page=PageOptions(port=0))
        run_rig(rig, functools.partial(SwingPolicy, spec, FAST), spec, options, watcher)


def e_stop(folder: Path, kind: str, trials: int) -> list[Row]:
    """``kind``: a key of ARMS."""
    from websockets.sync.client import connect

    chance = random.Random(0)
    found: dict[str, list[list[float]]] = defaultdict(list)
    with ExitStack() as stack:
        keyboard, terminal = pty.openpty()
        run = patiently(lambda: RunProcess(stack, folder, _run_with_terminal, kind, terminal))
        limiter = limiter_at(run.rate_hz)
        stated = 1000 * stated_times_s(limiter.rest_time_s, limiter.dt_s, plan_s=1.0)["e-stop"]
        own = run.page.rstrip("/")
        page = stack.enter_context(connect(own.replace("http", "ws", 1) + "/socket", origin=own, proxy=None))  # type: ignore[arg-type]
        threading.Thread(target=_listen_to, args=(page,), daemon=True).start()
        presses: dict[str, Callable[[], None]] = {
            "ring of commands": lambda: run.operator.tell(Command.E_STOP),
            "page": lambda: page.send(json.dumps({"do": "E_STOP"})),
            "terminal's key": lambda: _type(keyboard, b"e"),
        }
        for _ in range(trials):
            for source, press in presses.items():
                stopped = None
                while stopped is None:
                    stopped = _press(run, press, limiter, chance.uniform(0, 0.02))
                found[source].append(stopped)
        run.end()
        os.close(keyboard)
    rows = []
    for source, stops in found.items():
        setpoint, stands, missed = np.array(stops).T
        more = {"limit": round(stated, 1), "missed": int(missed.sum())}
        rows.append(row(f"e-stop, {kind}: {source}", "setpoint at rest", "ms", setpoint, **more))
        rows.append(row(f"e-stop, {kind}: {source}", "arm stands", "ms", stands))
    return rows


def patiently(begin: Callable[[], RunProcess]) -> RunProcess:
    """On a machine that is busy with other things, devices may not open in time."""
    for _ in range(8):
        with contextlib.suppress(RuntimeError):
            return begin()
    return begin()


def _press(run: RunProcess, press: Callable[[], None], limiter: Limiter, wait_s: float) -> list[float] | None:
    """ms until the setpoint rests and until the arm stands, and deadlines missed on the way; None where it was not in
    full motion when it was pressed."""
    run.until(lambda t: bool((t["state"] == State.RUNNING).all()), 30, "it runs", lambda: _go_on(run))
    fast = 0.7 * limiter.velocity[0] * limiter.dt_s
    run.until(lambda t: _step(t) > fast, 2, "it is in full motion")
    time.sleep(wait_s)
    run.forget(100)
    pressed_ns = now_ns()
    press()
    run.until(lambda t: bool((t["at_rest"] & (t["state"] == State.E_STOPPED)).all()), 40, "it rests")
    every = run.ticks()
    before, ticks = every[every["done_ns"] < pressed_ns], every[every["done_ns"] >= pressed_ns]
    measured = ticks["measured"][:, :JOINTS].astype(np.float64)
    moving = np.flatnonzero(ticks["at_rest"] == 0)
    away = np.flatnonzero(np.abs(measured - measured[-1]).max(axis=1) > STANDS_RAD)
    if before["state"][-1] != State.RUNNING or _step(before) < 0.5 * fast or not (len(moving) and len(away)):
        return None  # a busy machine: the policy, or the twin's process, was late
    times = ticks["done_ns"][moving[-1] + 1], ticks["woke_ns"][away[-1] + 1]
    return [*((int(at_ns) - pressed_ns) / 1e6 for at_ns in times), float(ticks["missed"][: moving[-1] + 2].sum())]


def _type(keyboard: int, key: bytes) -> None:
    os.write(keyboard, key)


def _listen_to(page: Any) -> None:
    """As a browser does, or the server would wait for it."""
    with contextlib.suppress(Exception):
        for message in page:
            if isinstance(message, str) and (found := json.loads(message))["kind"] == "state":
                page.send(json.dumps({"seen": found["n"]}))


def _go_on(run: RunProcess) -> None:
    state = run.ticks()["state"][-1:]
    if (state == State.E_STOPPED).any():
        run.operator.tell(Command.RELEASE)
    elif (state == State.STOPPED).any():
        run.operator.tell(Command.RESUME)


def _step(ticks: np.ndarray) -> float:
    """Of the newest tick, rad."""
    return float(np.abs(np.diff(ticks["sent"][-2:, :JOINTS].astype(np.float64), axis=0)).max())


def limiter_at(rate_hz: float) -> Limiter:
    return Limiter(SIMULATED.open("arm").info, rate_hz)


class Leader:
    """A leader arm, half a radian away from the arm, that a person swings."""

    def open(self, name: str) -> Leader:
        return self

    def with_twin(self, name: str, twins: Twins) -> Leader:
        return self

    def connect(self) -> None: ...

    def read(self) -> Intent:
        now = now_ns()
        return Intent(now, True, leader_pose(np.array([now]))[0])

    def close(self) -> None: ...


def leader_pose(times_ns: np.ndarray) -> np.ndarray:
    """(n,) -> (n, 5)."""
    return np.array(READY["so101"]) + 0.5 + swing(times_ns, 0.4, 0.7)[:, :JOINTS]


def _run_with_leader(pipe: Connection) -> None:
    rig = Rig("take-over", arms={"arm": SIMULATED}, teleoperators={"leader": Leader()})
    spec = spec_of((*ARMS["simulated arm"][1], "gripper"))
    options = RigOptions(3600.0, teleoperators={"leader": "arm"})
    run_rig(rig, functools.partial(SwingPolicy, spec, SLOW), spec, options, Announcing(pipe))


MEASURES = {"step": "rad", "velocity": "rad/s", "acceleration": "rad/s^2", "jerk": "rad/s^3"}


def roughness(positions: np.ndarray, dt_s: float) -> list[float]:
    """The greatest of MEASURES in setpoints (n, J), one for each tick."""
    step = float(np.abs(np.diff(positions, axis=0)).max())
    return [step, *(float(np.abs(np.diff(positions, k, axis=0)).max()) / dt_s**k for k in (1, 2, 3))]


def take_over(folder: Path, trials: int) -> list[Row]:
    chance = random.Random(0)
    found: dict[str, list[list[float]]] = defaultdict(list)
    window = 40

    def positions(ticks: np.ndarray) -> np.ndarray:
        return ticks["sent"][:, :JOINTS].astype(np.float64)

    with ExitStack() as stack:
        run = patiently(lambda: RunProcess(stack, folder, _run_with_leader))
        limiter = limiter_at(run.rate_hz)

        def after(command: Command, states: tuple[State, ...], left: State) -> np.ndarray:
            """The ticks from just before the first one that is no more in ``left``, a window long."""
            run.forget(4)
            run.operator.tell(command)
            run.until(lambda t: bool(np.isin(t["state"], states).all()), window + 4, command.name)
            ticks = run.ticks()
            first = int(np.argmax(ticks["state"] != left))
            return ticks[first - 3 : first + window]

        while len(found["hand-back"]) < trials:
            run.until(lambda t: bool((t["state"] == State.RUNNING).all()), window + 4, "it runs", lambda: _go_on(run))
            run.wait(chance.uniform(0.0, 1.0))
            ordinary = run.ticks()[-window - 3 :]
            taken = after(Command.TAKE_OVER, (State.TELEOP,), State.RUNNING)
            if taken["state"][3] != State.TELEOP:  # a busy machine: the policy was late
                run.operator.tell(Command.HAND_BACK)
                continue
            found["a policy's motion"].append(roughness(positions(ordinary), limiter.dt_s))
            found["hand-over"].append(roughness(positions(taken), limiter.dt_s))
            jumped = np.concatenate([positions(taken)[:3], leader_pose(taken["due_ns"][3:])])
            found["naive hand-over"].append(roughness(jumped, limiter.dt_s))
            run.wait(chance.uniform(0.6, 1.4))
            found["a person's motion"].append(roughness(positions(run.ticks()[-window - 3 :]), limiter.dt_s))
            back = after(Command.HAND_BACK, tuple(s for s in State if s is not State.TELEOP), State.TELEOP)
            found["hand-back"].append(roughness(positions(back), limiter.dt_s))
        run.end()
    limits = [limiter.velocity[0] * limiter.dt_s, limiter.velocity[0], limiter.acceleration[0], limiter.jerk[0]]
    return [
        row(figure, measure, unit, np.array(found[figure])[:, k], limit=float(f"{limits[k]:.4g}"))
        for figure in ("a policy's motion", "a person's motion", "hand-over", "hand-back", "naive hand-over")
        for k, (measure, unit) in enumerate(MEASURES.items())
    ]


def main() -> None:
    figures = ("servo tick", "e-stop", "e-stop with a driver", "take-over", "chunk")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="of e-stops of each kind, and of take-overs")
    parser.add_argument("--seconds", type=float, default=30.0, help="of ticks, for each arm")
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=list(figures), choices=figures, metavar="FIGURE")
    parser.add_argument("--out", default="runtime_overhead", help="name of the result file; none: only print")
    options = parser.parse_args()
    measure: dict[str, Callable[[Path], list[Row]]] = {
        "servo tick": lambda folder: [one for kind in ARMS for one in servo_tick(kind, options.seconds, folder)],
        "e-stop": lambda folder: e_stop(folder, "simulated arm", options.trials),
        "e-stop with a driver": lambda folder: e_stop(folder, "SO-101's driver", options.trials),
        "take-over": lambda folder: take_over(folder, options.trials),
        "chunk": lambda folder: chunk(folder, options.chunks),  # last: it imports torch, which no run needs
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for figure, of in measure.items():
        path = FOLDER / f"{figure}.json"
        if figure in options.only:
            with tempfile.TemporaryDirectory(prefix="overhead-") as name:
                found = of(Path(name))
            path.write_text(json.dumps([{**one, "load": round(os.getloadavg()[0], 1)} for one in found]))
        if path.exists():
            rows += json.loads(path.read_text())
    columns = ("figure", "part", "unit", "n", "p50", "p99", "max", "limit", "missed", "load")
    table = Table(*columns)
    for one in rows:
        table.add_row(*(str(one.get(column, "")) for column in columns))
    Console(width=130).print(table)
    if options.out != "none":
        from results import write_results

        print(write_results(options.out, rows))


if __name__ == "__main__":
    main()
