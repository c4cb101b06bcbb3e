"""How late an arm is behind the hand that moves it: leader arm, gamepad, SpaceMouse, keyboard on the twin of a SO-101.

The processes are those of `robolearn collect --rig`: a teleoperator's process reads the device, the servo process
(100 Hz) turns its intents into setpoints, limits them and writes them to the bus. The twins are this process: it moves
the device at an instant that it knows.

input-to-command: from the event at the device's wire (a leader: from when the hand begins to move it) until the servo
has sent the first setpoint that differs. command-to-motion: from when the setpoints have gone 0.01 rad until the twin's
motors have; most of it is the motors' lag (first order, 50 ms) and their bus. Leaders are read over a bus too.

    python tests/benchmarks/collect_latency.py [--trials 100]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from results import RESULTS, write_results

from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import BEAT_FIELDS, COMMAND_FIELDS, Command, Operator, beat
from robolearn_deploy.recorder import sample_fields, step_fields
from robolearn_deploy.rig_processes import teleop_process
from robolearn_deploy.rig_senses import SESSION_FIELDS
from robolearn_deploy.servo import ServoProcess
from robolearn_deploy.servo_process import ServoHandles, tick_fields
from robolearn_deploy.stall import State, Watch
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.worker import Worker, wait_ready
from robolearn_hardware.clock import SECOND_NS, period_ns
from robolearn_hardware.rig import Rig
from robolearn_hardware.ring import Ring
from robolearn_hardware.servo.calibration import default_calibration, save_calibration
from robolearn_hardware.servo.kinds import So101Config, So101LeaderConfig
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.teleop.gamepad import BUTTONS, GamepadConfig
from robolearn_hardware.teleop.keyboard import KeyboardConfig
from robolearn_hardware.teleop.spacemouse import SpaceMouseConfig
from robolearn_hardware.twins.gamepad import GamepadTwin
from robolearn_hardware.twins.keyboard import KeyboardTwin
from robolearn_hardware.twins.servo_bus import ServoBusTwin
from robolearn_hardware.twins.spacemouse import SpaceMouseTwin

START = (0.0, -1.0, 0.8, 0.6, 0.0, 0.5)
GONE_RAD = 0.01
DEADMAN = BUTTONS.index("left_shoulder")


@dataclass
class Device:
    name: str
    config: Any
    begin: Callable[[], object]
    """The deadman is taken, and nothing else."""
    push: Callable[[bool], int]
    """Forward or back; returns when (ns)."""
    close: Callable[[], None]


def gamepad() -> Device:
    twin = GamepadTwin(hand_hz=0.0)
    twin.start()

    def push(forth: bool) -> int:
        return twin.push((0, -1.0 if forth else 1.0), [DEADMAN])

    return Device("gamepad", GamepadConfig(device=twin.address), lambda: twin.push((), [DEADMAN]), push, twin.close)


def spacemouse() -> Device:
    twin = SpaceMouseTwin(hand_hz=0.0)
    twin.start()

    def push(forth: bool) -> int:
        return twin.push((0, -1.0 if forth else 1.0, 0, 0, 0, 0))

    return Device("spacemouse", SpaceMouseConfig(device=twin.address), lambda: twin.push((0,) * 6), push, twin.close)


def keyboard(wire: Any, name: str) -> Device:
    twin = KeyboardTwin(wire, hand=False)
    twin.start()
    deadman = ("left_shift",) if wire == "events" else ()

    def push(forth: bool) -> int:
        return twin.hold(*deadman, "up" if forth else "down")

    return Device(name, KeyboardConfig(device=twin.address), lambda: twin.hold(*deadman), push, twin.close)


def leader(stack: ExitStack) -> Device:
    model = MODELS["so101"]
    calibration = default_calibration(model)
    twin = ServoBusTwin(calibration, baud=model.baud, start=START)
    twin.guide(START)
    twin.start()
    path = stack.enter_context(_calibrated())
    config = So101LeaderConfig(port=twin.address, calibration=path)
    away = (0.0, -0.9, 0.7, 0.6, 0.0, 0.5)
    here = [START]

    def push(forth: bool) -> int:
        here[0] = away if forth else START
        return twin.guide(here[0])

    return Device("leader SO-101", config, lambda: twin.guide(here[0]), push, twin.close)


@contextmanager
def _calibrated() -> Iterator[Any]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.yaml"
        save_calibration(path, default_calibration(MODELS["so101"]))
        yield path


class Table:
    """One arm's twin, its servo process and the process of a device."""

    def __init__(self, stack: ExitStack, device: Device) -> None:
        model = MODELS["so101"]
        self.twin = ServoBusTwin(default_calibration(model), baud=model.baud, start=START)
        self.twin.start()
        stack.callback(self.twin.close)
        path = stack.enter_context(_calibrated())
        rig = Rig("latency", arms={"arm": So101Config(port=self.twin.address, calibration=path)})
        servo = stack.enter_context(ServoProcess(rig, ServoOptions(fifo=True)))
        layout, n = servo.layout, len(servo.layout.names)
        schema = layout.schema(30.0, servo.rate_hz, {}, wrench=False)

        def ring(fields: Any, slots: int = 64) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        self.ticks = ring(tick_fields(n), 4096)
        state, steps = ring(sample_fields(schema.streams["state"])), ring(step_fields(schema))
        chunks = ring(chunk_fields(layout.action(), 8))
        self.heart, commands = ring(BEAT_FIELDS, 4), ring(COMMAND_FIELDS)
        intents, session, buttons = ring(intent_fields(5), 16), ring(SESSION_FIELDS, 4), ring(COMMAND_FIELDS)
        self.operator = Operator(commands)
        told = (device.config, intents.handle, 5, buttons.handle, {}, session.handle, self.ticks.handle, 0)
        worker = Worker("hand", teleop_process, "hand", *told)
        stack.callback(lambda: (session.publish({"episode": 0, "stop": 1}), worker.stop(5)))
        stack.callback(lambda: self.operator.tell(Command.END))
        wait_ready([worker], 60, lambda: None)
        self.beat()
        servo.begin(
            ServoHandles(
                chunks=chunks.handle,
                horizon=8,
                period_ns=period_ns(30.0),
                start=0,
                streams={"state": state.handle},
                steps=steps.handle,
                ticks=self.ticks.handle,
                beats={"supervisor": self.heart.handle},
                watches=(Watch("supervisor", 20 * SECOND_NS, teleop=True),),
                commands={"supervisor": commands.handle},
                intents={"arm": intents.handle},
            )
        )
        worker.release()

    def beat(self) -> None:
        beat(self.heart)

    def newest(self) -> np.void:
        found = self.ticks.newest()
        while found is None:
            time.sleep(0.01)
            found = self.ticks.newest()
        return found[1]

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.beat()
            time.sleep(0.02)

    def take_over(self) -> None:
        """Anew if the watch over this process has ended it: the machine was busy."""
        while State(int(self.newest()["state"])) is not State.TELEOP:
            self.operator.tell(Command.RESUME)  # recovers an arm whose bus was lost
            self.wait(0.5)
            self.operator.tell(Command.TAKE_OVER)
            self.wait(0.5)

    def settle(self) -> None:
        """Until setpoints and motors have rested for a third of a second."""
        rested, last = 0, self.twin.observe()["positions"]
        while rested < 10:
            self.wait(0.03 + random.uniform(0, 0.005))  # out of step with every loop
            here = self.twin.observe()["positions"]
            rested = rested + 1 if self.newest()["at_rest"] and np.abs(here - last).max() < 1e-4 else 0
            last = here

    def trial(self, device: Device, forth: bool) -> tuple[float, float] | None:
        """(input-to-command, command-to-motion) ms; None where the twin's bus was lost: the machine is overloaded."""
        before, place = self.newest()["sent"], self.twin.observe()["positions"]
        index = self.ticks.count
        pushed_ns = device.push(forth)
        moved_ns, end = 0, time.monotonic() + 5.0
        while not moved_ns:
            if time.monotonic() > end:
                tick = self.newest()
                said = f"{State(int(tick['state'])).name}, {tick['cause'].decode()}, person {tick['person']}"
                print(f"{device.name}: the arm has not moved within 5 s ({said}); once more", flush=True)
                device.begin()
                return None
            time.sleep(0.002)
            self.beat()
            if np.abs(self.twin.observe()["positions"] - place).max() > GONE_RAD:
                moved_ns = time.monotonic_ns()
        device.begin()
        ticks = [tick for _, tick in self.ticks.since(index)]
        first = next(int(t["done_ns"]) for t in ticks if t["done_ns"] > pushed_ns and (t["sent"] != before).any())
        gone = next(int(t["done_ns"]) for t in ticks if np.abs(t["sent"] - before).max() > GONE_RAD)
        return (first - pushed_ns) / 1e6, (moved_ns - gone) / 1e6


def measure(device: Device, trials: int) -> list[dict[str, Any]]:
    random.seed(0)
    with ExitStack() as stack:
        stack.callback(device.close)
        table = Table(stack, device)
        table.wait(1.0)
        device.begin()
        found = []
        for i in itertools.count():
            if len(found) == trials:
                break
            table.take_over()
            table.settle()
            timed = table.trial(device, i % 2 == 0)
            found += [timed] if timed else []
        table.operator.tell(Command.END)
    rows = []
    for stage, values in zip(("input-to-command", "command-to-motion"), zip(*found, strict=True), strict=True):
        p50, p99 = np.percentile(values, [50, 99])
        rows.append(
            {"teleoperator": device.name, "stage": stage, "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "n": trials}
        )
        print(f"{device.name:20s} {stage:18s} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms", flush=True)
    return rows


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the rows that others have written of theirs."""
    path = RESULTS / "collect_latency.json"
    mine = {(row["teleoperator"], row["stage"]) for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in old if (row["teleoperator"], row["stage"]) not in mine] + rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="below 20 nothing is written")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # the twins are threads of this process
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for device in (
            lambda: leader(stack),
            gamepad,
            spacemouse,
            lambda: keyboard("events", "keyboard"),
            lambda: keyboard("terminal", "keyboard, terminal"),
        ):
            rows += measure(device(), options.trials)
    if options.trials >= 20:
        print(write_results("collect_latency", merged(rows)))


if __name__ == "__main__":
    main()
