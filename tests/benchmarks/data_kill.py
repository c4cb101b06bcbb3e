"""What is left when a writer that never rests is killed (SIGKILL) at a random instant, a thousand times.

    python tests/benchmarks/data_kill.py [KILLS [SIDE ...]]     # 1000 of each side: about 5 minutes a side, 20 in all

Every side writes the same episodes, 3 to 60 steps of a picture (48x64) and two vectors, one after the other:

* robolearn: ``DatasetWriter`` with its defaults and an exact codec; `recover` runs after each kill;
* zarr: as diffusion_policy's ReplayBuffer appends (v2, Blosc): resize and fill every array, then ``episode_ends``;
* hdf5: as robomimic's files grow, a group per demo, flushed to the disk after each;
* hdf5-unflushed: the same without flushing, as h5py does it by itself.

After each kill the dataset is opened and every episode that came since the kill before is compared bit for bit.

* torn: it does not open, or an episode it names is not what was written. A torn dataset is put away and the next kill
  begins a new one, so that each kill counts once.
* refused by its own class: ReplayBuffer asserts that its arrays end with the last episode. Here the rows beyond are
  ignored and overwritten instead, which is kinder than that.
* episodes lost: saved, as far as the writer's call had returned, and not there; all those of a torn dataset.
* steps lost: of the episode in flight, taken by the writer (``add`` had returned) and neither there nor recovered.

Goes on counting where an earlier run stopped, with a new dataset; the kills so far are in the temporary folder, and
`--fresh` forgets them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

PROCESSES = multiprocessing.get_context("forkserver")  # starts in milliseconds what has been imported once
PROCESSES.set_forkserver_preload(["robolearn_data.validate", "robolearn_data.recover", "h5py"])
LONGEST_S = 0.3
FOLDER = Path(tempfile.gettempdir()) / f"robolearn_benchmarks_{os.getuid()}" / "kill"
SCHEMA = Schema(
    50.0,
    {"camera": Stream((48, 64, 3), "uint8", "image"), "state": Stream((7,)), "action": Stream((7,), kind="action")},
)
Told = Any
"""Shared int64: number of the episode in flight, its steps taken, and how many episodes were saved."""


class Torn(Exception):
    """The dataset is not whole."""


def episode(number: int) -> dict[str, np.ndarray]:
    """What episode ``number`` holds, whoever writes it."""
    rng = np.random.default_rng(number)
    steps = int(rng.integers(3, 61))
    return {
        "camera": rng.integers(0, 256, (steps, 48, 64, 3), dtype=np.uint8),
        "state": rng.normal(size=(steps, 7)).astype(np.float32),
        "action": rng.normal(size=(steps, 7)).astype(np.float32),
    }


def same(found: dict[str, np.ndarray], number: int, *, prefix: bool = False) -> None:
    for name, expected in episode(number).items():
        steps = len(found[name]) if prefix else len(expected)
        if not np.array_equal(found[name], expected[:steps]):
            raise Torn(f"episode {number} does not hold the {name} that was written")


# Writers: (path, number of the first episode, told, pipe), until they are killed.


def write_robolearn(path: Path, first: int, told: Told, ready: Any) -> None:
    with DatasetWriter.append(path, buffer_bytes=200_000) as writer:  # so that some episodes outgrow it
        ready.send(True)
        for number in range(first, first + 10**6):
            told[0], told[1] = number, 0
            writer.note(number=number)
            rows, now = episode(number), time.monotonic_ns()
            for i in range(len(rows["action"])):
                writer.add({name: value[i] for name, value in rows.items()}, time_ns=now + i)
                told[1] = i + 1
            writer.save_episode()
            told[2] += 1


def write_zarr(path: Path, first: int, told: Told, ready: Any) -> None:
    import zarr

    root: Any = zarr.open_group(path, mode="r+")
    ready.send(True)
    for number in range(first, first + 10**6):
        told[0] = number
        rows, ends = episode(number), root["meta/episode_ends"]
        told[1] = steps = len(rows["action"])
        stop = (int(ends[-1]) if ends.shape[0] else 0) + steps
        for name, value in rows.items():
            array = root[f"data/{name}"]
            array.resize((stop, *array.shape[1:]))
            array[stop - steps :] = value
        ends.resize((ends.shape[0] + 1,))
        ends[-1] = stop
        told[2] += 1


def write_hdf5(path: Path, first: int, told: Told, ready: Any, *, flush: bool = True) -> None:
    import h5py

    with h5py.File(path, "a") as file:
        data = file.require_group("data")
        ready.send(True)
        for number in range(first, first + 10**6):
            told[0] = number
            rows = episode(number)
            told[1] = len(rows["action"])
            demo = data.create_group(f"demo_{number}")
            for name, value in rows.items():
                demo.create_dataset("actions" if name == "action" else f"obs/{name}", data=value)
            demo.attrs["num_samples"] = len(rows["action"])
            data.attrs["total"] = data.attrs.get("total", 0) + len(rows["action"])
            if flush:
                file.flush()
            told[2] += 1


def write_hdf5_unflushed(path: Path, first: int, told: Told, ready: Any) -> None:
    write_hdf5(path, first, told, ready, flush=False)


def write_for_a_while(write: Callable[..., None], *arguments: Any) -> None:
    signal.alarm(60)  # so that no writer outlives a soak that was stopped
    write(*arguments)


# Checks: (path, episodes there were before) -> (episodes now, what else is to be counted). Raise Torn or anything else.


def check_robolearn(path: Path, before: int, told: Told) -> tuple[int, Counter[str]]:
    published = Dataset.open(path)
    numbers = _check_published(published, before)
    count: Counter[str] = Counter()
    found = recover(path)
    after = Dataset.open(path)
    count[f"recover_exit_{found.exit_code}"] += 1
    expected = 0 if not found.losses else 3 if after.episodes > published.episodes else 1
    lossy = list((path / "unfinished").glob("*.lossy"))
    if found.exit_code != expected or len(lossy) != len(found.losses) or after.episodes - published.episodes > 1:
        raise Torn(f"recover said {found} with {lossy} and {after.episodes - published.episodes} more episodes")
    for file in lossy:
        file.unlink()
    _check_published(after, published.episodes)
    if told[0] not in numbers:  # it was in flight
        saved = len(after.episode(-1)["action"]) if after.episodes > published.episodes else 0
        count["steps_lost"] += max(told[1] - saved, 0)
        count["steps_recovered"] += saved
        count["killed_within_an_episode"] += 1
    return after.episodes, count


def _check_published(dataset: Dataset, before: int) -> list[int]:
    numbers = []
    for i in range(before, dataset.episodes):
        info = dataset.episode_info(i)
        same(dict(dataset.episode(i)), info["number"], prefix=bool(info.get("recovered")))
        numbers.append(info["number"])
    return numbers


def check_zarr(path: Path, before: int, told: Told) -> tuple[int, Counter[str]]:
    import zarr

    root: Any = zarr.open_group(path, mode="r")
    ends = root["meta/episode_ends"][:]
    rows = {name: root[f"data/{name}"].shape[0] for name in SCHEMA.streams}
    last = int(ends[-1]) if len(ends) else 0
    if any(np.diff(ends, prepend=0) <= 0) or min(rows.values()) < last:
        raise Torn(f"arrays of {rows} rows, episode ends {ends[-2:]}")
    begins = np.concatenate([[0], ends])
    for i in range(before, len(ends)):
        found = {name: root[f"data/{name}"][begins[i] : ends[i]] for name in rows}
        same(found, told[3] + i - before)
    in_flight = told[3] + len(ends) - before <= told[0]
    refused = set(rows.values()) != {last}
    return len(ends), Counter(steps_lost=int(told[1]) * in_flight, refused_by_its_own_class=int(refused))


def check_hdf5(path: Path, before: int, told: Told) -> tuple[int, Counter[str]]:
    import h5py

    with h5py.File(path, "r") as file:
        data: Any = file["data"]
        demos = sorted(data, key=lambda name: int(name.removeprefix("demo_")))
        for name in demos[before:]:
            found = {k: data[name]["actions" if k == "action" else f"obs/{k}"][:] for k in SCHEMA.streams}
            same(found, int(name.removeprefix("demo_")))
    return len(demos), Counter(steps_lost=int(told[1]) if f"demo_{told[0]}" not in demos else 0)


def new_robolearn(path: Path) -> None:
    DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"}).close()


def new_zarr(path: Path) -> None:
    import zarr
    from numcodecs import Blosc

    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, s in SCHEMA.streams.items():
        chunks = (100, *s.shape)
        root.create_array(
            f"data/{name}",
            shape=(0, *s.shape),
            chunks=chunks,
            dtype=s.dtype,
            compressors=Blosc("zstd", 5, Blosc.BITSHUFFLE),
        )
    root.create_array("meta/episode_ends", shape=(0,), chunks=(1024,), dtype="int64", compressors=None)


def new_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("data")


SIDES: dict[str, tuple[Callable[..., None], Callable[..., None], Callable[..., tuple[int, Counter[str]]]]] = {
    "robolearn": (new_robolearn, write_robolearn, check_robolearn),
    "zarr": (new_zarr, write_zarr, check_zarr),
    "hdf5": (new_hdf5, write_hdf5, check_hdf5),
    "hdf5-unflushed": (new_hdf5, write_hdf5_unflushed, check_hdf5),
}
NAMES = {
    "robolearn": "robolearn",
    "zarr": "zarr, as diffusion_policy appends",
    "hdf5": "HDF5, flushed after each episode",
    "hdf5-unflushed": "HDF5, not flushed",
}


def main(words: list[str]) -> None:
    from results import write_results  # what the killed processes need not import

    if "--fresh" in words:
        shutil.rmtree(FOLDER, ignore_errors=True)
        words = [word for word in words if word != "--fresh"]
    kills = int(words[0]) if words else 1000
    rows = []
    for side in words[1:] or SIDES:
        rows.append({"writer": NAMES[side], **soak(side, kills)})
        print(rows[-1])
    if not words[1:]:
        print("results:", write_results("data_kill", rows, kills=rows[0]["kills"], torn=rows[0]["torn"]))


def soak(side: str, kills: int) -> dict[str, Any]:
    new, write, check = SIDES[side]
    folder = FOLDER / side
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "kills.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    path = folder / "dataset"
    if path.exists():  # of a run that was stopped, perhaps in the middle of a kill that is not in the log
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    episodes = 0
    began = time.monotonic()
    with log.open("a") as file:
        for number in range(len(lines), kills):
            if not path.exists():
                new(path)
                episodes = 0
            line = kill(write, check, path, number, episodes)
            if line["torn"]:
                line["lost"] = episodes + line["saved"]
            episodes = line["episodes"]
            if line["torn"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
            if number % 50 == 49:
                left = (kills - number - 1) * (time.monotonic() - began) / (number + 1 - (len(lines) - number - 1))
                print(
                    f"{side}: {number + 1} kills, {sum(bool(x['torn']) for x in lines)} torn, about {left:.0f} s left"
                )
    total: Counter[str] = Counter()
    for line in lines:
        total.update(line["count"])
    faults = validate(path) if side == "robolearn" and path.exists() else []
    return {
        "kills": len(lines),
        "torn": sum(bool(line["torn"]) for line in lines) + bool(faults),
        "saved_episodes": sum(line["saved"] for line in lines),
        "saved_episodes_lost": sum(line["lost"] for line in lines),
        **dict(sorted(total.items())),
    }


def kill(write: Callable[..., None], check: Callable[..., Any], path: Path, number: int, before: int) -> dict[str, Any]:
    told = PROCESSES.Array("q", 4, lock=False)
    told[3] = first = number * 10_000
    ready, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=write_for_a_while, args=(write, path, first, told, theirs))
    process.start()
    theirs.close()
    try:
        ready.recv()
        time.sleep(np.random.default_rng(number).uniform(0, LONGEST_S))
    except EOFError:
        pass
    process.kill()
    process.join()
    ready.close()
    saved = int(told[2])
    try:
        if process.exitcode != -9:
            raise Torn(f"the writer could not go on: exit code {process.exitcode}")
        episodes, count = check(path, before, told)
        lost = max(saved - (episodes - before), 0)
        return {"torn": "", "episodes": episodes, "saved": saved, "lost": lost, "count": count}
    except Exception as error:  # whatever a reader makes of a broken file
        torn = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"torn": torn, "episodes": 0, "saved": saved, "lost": 0, "count": {}}


if __name__ == "__main__":
    main(sys.argv[1:])
