"""What recording costs beside teleoperation: samples dropped, cores used, and how late the servo loop is.

    python tests/benchmarks/collect_load.py [--seconds 60]        # two rows: about three minutes

One simulated arm follows a waved leader at 100 Hz, three cameras (H.264 files, 640 x 480 at 30 Hz, decoded in a process
each), a force sensor at 1 kHz. The same run with and without a dataset, one after the other, as `robolearn collect` and
`robolearn deploy` run it: ``run_rig`` without a policy.

- cores: CPU time over the run's length, of the recorder, and of all processes of the run together.
- lost: samples that were overwritten in shared memory before the recorder took them; refused: of wrong time.

On a machine that does other work, give it a session of its own that goes first:

    setsid bash -c 'echo -15 > /proc/self/autogroup; exec python tests/benchmarks/collect_load.py'
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results

sys.path.insert(0, str(Path(__file__).parents[1]))
from collect_fakes import CountingForceConfig, WavingLeaderConfig

from robolearn_data.dataset import Dataset
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_hardware.rig import Rig, load_rig

CAMERAS, SIZE, CAMERA_HZ, FORCE_HZ = 3, (480, 640), 30, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each row")
    parser.add_argument("--out", default="collect_load", help="name of the result file; none: only print")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rig = make_rig(Path(folder))
        rows = [measure(rig, out, options.seconds) for out in (None, Path(folder) / "out.zarr")]
    for row in rows:
        print(row)
    if options.out != "none":
        print(write_results(options.out, rows, seconds=options.seconds, cameras=CAMERAS, force_hz=FORCE_HZ))


def make_rig(folder: Path) -> Rig:
    write_video(folder / "scene.mp4")
    cameras = "\n".join(f"  camera{i}: {{kind: video, path: scene.mp4}}" for i in range(CAMERAS))
    (folder / "rig.yaml").write_text(
        f"arms:\n  left: {{kind: simulated, model: so101, plant: first_order, rate_hz: 100}}\ncameras:\n{cameras}\n"
    )
    return dataclasses.replace(
        load_rig(folder / "rig.yaml"),
        teleoperators={"hand": WavingLeaderConfig()},
        force_sensors={"tip": CountingForceConfig(FORCE_HZ)},
    )


def write_video(path: Path, seconds: int = 4) -> None:
    """A moving pattern with some grain."""
    import av

    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=CAMERA_HZ)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for i in range(seconds * CAMERA_HZ):
            wave = np.stack([np.sin((x + k * 3 * i) / 17) + np.cos((y - 2 * i) / 23) for k in (1, 2, 3)], -1)
            picture = np.clip(128 + 50 * wave + rng.normal(0, 4, (*SIZE, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


class Meter:
    """Reads the CPU time of every process when the run begins, and until it ends."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.before: dict[str, float] = {}
        self.used: dict[str, float] = {}
        self._next_s = 1.0

    def started(self, operator: Operator, instruct: Any, pids: Mapping[str, int], rings: Any) -> None:
        self.pids = {**pids, "supervisor": os.getpid()}
        self.before = {name: cpu_s(pid) for name, pid in self.pids.items()}

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        if elapsed_s > self._next_s:
            self._next_s = elapsed_s + 1
            self.used = {name: (cpu_s(pid) - self.before[name]) / elapsed_s for name, pid in self.pids.items()}

    def message(self, text: str) -> None:
        print(text)


def measure(rig: Rig, out: Path | None, seconds: float) -> dict[str, Any]:
    meter = Meter()
    options = RigOptions(seconds, out=out, teleoperators={"hand": "left"}, servo=ServoOptions(), operator="benchmark")
    report = run_rig(rig, None, None, options, meter)
    if report.failure:
        raise SystemExit(report.failure)
    print(f"servo loop at {report.rate_hz:g} Hz, {report.granted}; load average {os.getloadavg()[0]:.1f}")
    row: dict[str, Any] = {
        "recording": "yes" if out is not None else "no",
        "lateness_p50_ms": report.lateness.p50_ms,
        "lateness_p99_ms": report.lateness.p99_ms,
        "missed": report.missed,
        "ticks": report.ticks,
        "cores_recorder": round(meter.used.get("recorder", 0.0), 3),
        "cores_all": round(sum(meter.used.values()), 3),
    }
    if out is None:
        return row
    counts = Dataset.open(out).episode_info(0)["recorded"]
    return row | {
        "samples": sum(count["taken"] for count in counts.values()),
        "lost": sum(count["lost"] + count["refused"] for count in counts.values()),
        "mb": round(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6, 1),
    }


def cpu_s(pid: int) -> float:
    """CPU time of a process, all its threads, in user and kernel; of one that is gone: 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
