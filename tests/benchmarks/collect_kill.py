"""What is left of 200 demonstrations when a random process of the session is killed (SIGKILL) again and again.

    python tests/benchmarks/collect_kill.py [--episodes 200] [--out none]     # about half an hour on two cores

Sessions of short episodes (half a second of motion) on a simulated arm with a camera twin, a leader arm and a force
sensor: `collect_on_rig` with all its processes, a program in the place of the person. At a random instant (drawn from
the session's number; in every second session one within an episode) one process gets SIGKILL: the supervisor, the servo
loop, the recorder, the camera, the leader or the force sensor. Then everything must be gone by itself, and the next
session goes on in the same dataset, after `recover`, as a person would.

- saved: episodes of which the person was told that they are saved; lost: of these, the ones that are not there, or not
  as they were. Every episode that was there before is compared with its checksum after every kill.
- in flight: kills that hit an episode that was being recorded; recovered: of these, the ones that `recover` saved, and
  the control steps in them. Of an episode that was hit before its first control step there is nothing to save.
- torn: the dataset did not open, or `validate` found a fault.
- orphans: processes that outlived a session by more than 30 s.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TARGETS = ("supervisor", "servo", "recorder", "camera front", "hand", "tip")
KILL_S, INTO_S = (0.5, 16.0), (0.0, 1.2)
"""When: after the session, or the recording of an episode, has begun."""
ORPHAN_S = 30.0
RIG = """
arms:
  left: {kind: simulated, model: so101, plant: first_order, rate_hz: 100}
cameras:
  front: {kind: mjpeg, url: twin, width: 96, height: 64, rate_hz: 30}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="until so many were saved in all")
    parser.add_argument("--out", default="collect_kill", help="name of the result file; none: only print")
    parser.add_argument("--session", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.session:
        hold_session(options.session)
        return
    from results import write_results

    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Path(folder), options.episodes)
    print("killed         kills  saved  lost  torn in flight recovered orphans")
    for row in rows:
        print(
            f"{row['killed']:14} {row['kills']:5} {row['saved']:6} {row['lost']:5} {row['torn']:5} "
            f"{row['in_flight']:9} {row['recovered']:9} {row['orphans']:7}"
        )
    if options.out != "none":
        print(write_results(options.out, rows, episodes=sum(row["saved"] for row in rows)))


def hold_session(folder: Path) -> None:
    """The process of one session; what it tells goes to ``folder/told``, a line of JSON each."""
    from collect_fakes import CountingForceConfig, Demonstrator, WavingLeaderConfig

    from robolearn_deploy.collect_session import CollectSession, SessionOptions
    from robolearn_deploy.driven_arm import ServoOptions
    from robolearn_deploy.rig_collect import collect_on_rig
    from robolearn_deploy.rig_options import RigOptions
    from robolearn_hardware.rig import load_rig, with_twins

    class Teller(Demonstrator):
        told = -1

        def __init__(self) -> None:
            super().__init__(ticks=50)
            self.file = (folder / "told").open("a")

        def tell(self, **what: Any) -> None:
            self.file.write(json.dumps(what) + "\n")
            self.file.flush()

        def session(self, session: CollectSession, now_ns: int) -> None:
            if self.told < 0:
                self.tell(pids=self.pids)
            if session.total != self.told:
                self.told = session.total
                self.tell(saved=session.total)
            if not self.stages or self.stages[-1] is not session.stage:
                self.tell(stage=session.stage.name)
            super().session(session, now_ns)

    out = folder / "out.zarr"
    rig = load_rig(folder / "rig.yaml")
    devices = {"teleoperators": {"hand": WavingLeaderConfig()}, "force_sensors": {"tip": CountingForceConfig()}}
    options = RigOptions(
        float("inf"),
        out=out,
        resume=out.exists(),
        teleoperators={"hand": "left"},
        servo=ServoOptions(fifo=False),
        operator="program",
    )
    course = SessionOptions(("wave", "wave back"), 10**6, countdown_s=0.0)
    with with_twins(rig) as (reachable, _):
        report = collect_on_rig(dataclasses.replace(reachable, **devices), options, course, Teller(), check=False)
    print(report.rig.failure)


def soak(folder: Path, episodes: int) -> list[dict[str, Any]]:
    (folder / "rig.yaml").write_text(RIG)
    counts = {target: Counter[str]() for target in TARGETS}
    sums: list[str] = []
    number = saved = 0
    while saved < episodes:
        target = TARGETS[number % len(TARGETS)]
        found = kill_one(folder, target, random.Random(number), sums, within=bool(number // len(TARGETS) % 2))
        saved += found["saved"]
        counts[target].update({"kills": 1, **found})
        number += 1
        print(f"kill {number}: {target}: {dict(found)}; {saved} of {episodes} saved", flush=True)
    figures = ("kills", "saved", "lost", "torn", "in_flight", "recovered", "recovered_steps", "orphans")
    rows = [{"killed": target, **{name: counts[target][name] for name in figures}} for target in TARGETS]
    return [*rows, {"killed": "all", **{name: sum(row[name] for row in rows) for name in figures}}]


def kill_one(folder: Path, target: str, rng: random.Random, sums: list[str], *, within: bool) -> Counter[str]:
    """One session and its end. ``sums``: of the episodes that are there, brought up to date."""
    from robolearn_data.dataset import Dataset
    from robolearn_data.recover import recover
    from robolearn_data.validate import validate

    told = folder / "told"
    told.unlink(missing_ok=True)
    with (folder / "log").open("ab") as log:
        command = [sys.executable, __file__, "--session", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        pids = wait_for_pids(told, process)
        pids["supervisor"] = process.pid
        family = descendants(process.pid)
        time.sleep(rng.uniform(*KILL_S))
        family |= descendants(process.pid)
        if within:
            wait_for_an_episode(told, process)
            time.sleep(rng.uniform(*INTO_S))
        os.kill(pids[target], signal.SIGKILL)
        process.wait(90)
    finally:
        process.kill()
        process.wait()
    count: Counter[str] = Counter(lost=0, torn=0, orphans=count_orphans(family))
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    said = [line["saved"] for line in lines if "saved" in line]
    count["saved"] = said[-1] - said[0]
    try:
        dataset = Dataset.open(folder / "out.zarr")
        now = [checksum(dataset, i) for i in range(dataset.episodes)]
        count["lost"] = max(0, said[-1] - len(now)) + sum(a != b for a, b in zip(sums, now, strict=False))
        journal = folder / "out.zarr" / "journal"
        count["in_flight"] = int(journal.exists() and journal.stat().st_size > 100)
        recovered = recover(folder / "out.zarr")
        count["recovered"] = len(recovered.saved)
        count["recovered_steps"] = sum(steps for _, steps in recovered.saved)
        count["torn"] = int(bool(validate(folder / "out.zarr")))
        after = Dataset.open(folder / "out.zarr")
        sums[:] = now + [checksum(after, i) for i in range(len(now), after.episodes)]
    except Exception as error:  # whatever a reader makes of a broken dataset
        print(f"TORN: {type(error).__name__}: {error}", flush=True)
        count["torn"] = 1
    return count


def wait_for_pids(told: Path, process: subprocess.Popen[bytes]) -> dict[str, int]:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        if told.exists() and "\n" in (text := told.read_text()):
            return json.loads(text.split("\n")[0])["pids"]
        time.sleep(0.1)
    raise SystemExit(f"the session has not begun (exit code {process.poll()}); see its log")


def wait_for_an_episode(told: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the next one begins to be recorded."""
    begun = told.read_text().count("EPISODE")
    while process.poll() is None and told.read_text().count("EPISODE") == begun:
        time.sleep(0.005)


def checksum(dataset: Any, episode: int) -> str:
    """Of everything in it."""
    digest = hashlib.sha256(json.dumps(dataset.episode_info(episode), sort_keys=True).encode())
    for name, stream in sorted(dataset.schema.streams.items()):
        if stream.is_native:
            samples = dataset.samples(name, episode)
            digest.update(samples.time.tobytes())
            digest.update(bytes(memoryview(dataset.array(name)[samples.rows]).cast("B")))
        else:
            digest.update(dataset.array(name)[dataset.rows(episode)].tobytes())
    return digest.hexdigest()


def descendants(pid: int) -> set[int]:
    found, frontier = set(), {pid}
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def count_orphans(pids: set[int]) -> int:
    end = time.monotonic() + ORPHAN_S
    while (alive := [pid for pid in pids if lives(pid)]) and time.monotonic() < end:
        time.sleep(0.2)
    return len(alive)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
