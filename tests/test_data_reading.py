"""Windows are what a slow, obvious reading gives, and an observation is made of nothing captured after its present."""

from __future__ import annotations

import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.reading import View, WindowReader, image_bytes
from robolearn_data.resample import blend
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.writer import DatasetWriter

CONTROL_HZ = 10.0
RATES = {"camera": 15.0, "force": 50.0, "arm": 30.0, "turn": 20.0, "axis": 12.0}
SCHEMA = Schema(
    CONTROL_HZ,
    {
        "state": Stream((2,), "float64"),
        "top": Stream((2, 3, 3), "uint8", "image"),
        "action": Stream((2,), kind="action"),
        "camera": Stream((2, 2, 3), "uint8", "image", rate_hz=RATES["camera"], interpolation="nearest"),
        "force": Stream((3,), rate_hz=RATES["force"]),
        "arm": Stream((2,), "float64", rate_hz=RATES["arm"], interpolation="linear"),
        "turn": Stream((4,), "float64", rate_hz=RATES["turn"], interpolation="quaternion"),
        "axis": Stream((3,), "float64", rate_hz=RATES["axis"], interpolation="rotation_vector"),
    },
)
ALIGNED = ("state", "top", "action")
EXACT = {"top": "zstd-1", "camera": "zstd-1"}

Recording = list[dict[str, Any]]
"""Of each episode: "ticks", rows and validity of each aligned stream, (times, values) of each native one."""


def record(path: Path, seed: int, lengths: list[int]) -> Recording:
    """Episodes of random samples with holes, gaps and streams that gave nothing; the clock begins anew in each."""
    rng = np.random.default_rng(seed)
    episodes: Recording = []
    with DatasetWriter.create(path, SCHEMA, compression=EXACT, durable=False) as writer:
        for length in lengths:
            begin = int(rng.integers(10**9, 2 * 10**9))
            ticks = begin + np.arange(length) * 10**8 + rng.integers(0, 10**7, length)
            episode: dict[str, Any] = {"ticks": ticks, "valid": {}}
            for name in ALIGNED:
                episode[name] = values_of(SCHEMA.streams[name], length, rng)
                episode["valid"][name] = rng.random(length) > 0.2
            writer.extend({name: episode[name] for name in ALIGNED}, time_ns=ticks, valid=episode["valid"])
            for name, rate in RATES.items():
                count = 0 if rng.random() < 0.2 else int(length / CONTROL_HZ * rate) + 2
                start = begin + int(rng.integers(-(2 * 10**8), 3 * 10**8))
                times = start + np.cumsum(rng.integers(1, int(2e9 / rate), count))
                kept = times[rng.random(count) > 0.3]
                episode[name] = kept, values_of(SCHEMA.streams[name], len(kept), rng)
                writer.add_samples(name, episode[name][1], kept)
            writer.save_episode()
            episodes.append(episode)
    return episodes


def values_of(stream: Stream, count: int, rng: np.random.Generator) -> np.ndarray:
    if stream.dtype == "uint8":
        return rng.integers(0, 256, (count, *stream.shape), np.uint8)
    values = rng.normal(size=(count, *stream.shape))
    if stream.interpolation == "quaternion":
        values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values.astype(stream.dtype)


def slowly(episode: dict[str, Any], view: View, step: int) -> tuple[np.ndarray, np.ndarray]:
    """One window of one view, value by value."""
    stream, ticks = SCHEMA.streams[view.stream], episode["ticks"]
    values, missing = [], []
    for offset in range(view.ahead - view.horizon + 1, view.ahead + 1):
        if not stream.is_native:
            row = step + offset * round(CONTROL_HZ / (view.rate_hz or CONTROL_HZ))
            inside = min(max(row, 0), len(ticks) - 1)
            values.append(episode[view.stream][inside])
            missing.append(row != inside or not episode["valid"][view.stream][inside])
            continue
        times, samples = episode[view.stream]
        row = min(max(step + offset, 0), len(ticks) - 1)
        instant = int(ticks[step]) + round(offset * 1e9 / view.rate_hz) if view.rate_hz else int(ticks[row])
        seen = [i for i in range(len(times)) if view.ahead > 0 or times[i] <= ticks[step]]
        values.append(value_at(instant, times[seen], samples[seen], stream))
        newest = max((int(t) for t in times if t <= instant), default=None)
        stale = newest is None or instant - newest >= 1.5 * 1e9 / stream.rate_hz
        missing.append(stale or (not view.rate_hz and row != step + offset))
    return np.stack(values), np.array(missing)


def value_at(instant: int, times: np.ndarray, samples: np.ndarray, stream: Stream) -> np.ndarray:
    if not len(times):
        return np.zeros(stream.shape, stream.dtype)
    before = max((i for i in range(len(times)) if times[i] <= instant), default=None)
    if before is None:
        return samples[0]
    if before == len(times) - 1 or stream.interpolation == "previous":
        return samples[before]
    share = (instant - times[before]) / (times[before + 1] - times[before])
    if stream.interpolation == "nearest":
        return samples[before + 1] if share > 0.5 else samples[before]
    return blend(samples[before][None], samples[before + 1][None], np.array([share]), stream.interpolation)[0]


@st.composite
def views(draw: st.DrawFn) -> dict[str, View]:
    found = {}
    for name in SCHEMA.streams:
        horizon = draw(st.integers(1, 6))
        rates = [0.0, 10.0, 5.0, 2.5] if name in ALIGNED else [0.0, 10.0, 7.3, 60.0]
        ahead = draw(st.integers(0, 7) | st.just(0))
        found[f"{name} seen"] = View(name, horizon, ahead, draw(st.sampled_from(rates)))
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=4), views(), st.booleans())
def test_windows_are_what_a_slow_reading_of_the_recording_gives(
    seed: int, lengths: list[int], views: dict[str, View], on_disk: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recording = record(Path(folder, "d"), seed, lengths)
        reader = WindowReader(Dataset.open(Path(folder, "d")), views, images="disk" if on_disk else "memory")
        places = [(e, s) for e, length in enumerate(lengths) for s in range(length)]
        places = [places[i] for i in np.random.default_rng(seed).permutation(len(places))]
        values, missing = reader.read(*np.array(places).T)
        for name, view in views.items():
            stream = SCHEMA.streams[view.stream]
            assert values[name].shape == (len(places), view.horizon, *stream.shape)
            assert values[name].dtype == stream.dtype
            for i, (episode, step) in enumerate(places):
                expected, holes = slowly(recording[episode], view, step)
                np.testing.assert_allclose(values[name][i], expected, atol=1e-12, err_msg=f"{name} {episode} {step}")
                np.testing.assert_array_equal(missing[name][i], holes, err_msg=f"{name} {episode} {step}")


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_what_comes_after_the_present_changes_no_observation(seed: int) -> None:
    """Two recordings that are alike up to a step, and differ after it."""
    rng = np.random.default_rng(seed)
    present = 10**9 + 4 * 10**8 + 5
    native = [name for name in SCHEMA.streams if name not in ALIGNED]
    views = {name: View(name, 4, 0, rate) for rate in (0.0, 25.0) for name in native} | {
        name: View(name, 4) for name in ALIGNED
    }
    samples = {name: values_of(SCHEMA.streams[name], 60, rng) for name in native}
    rows = {name: values_of(SCHEMA.streams[name], 10, rng) for name in ALIGNED}
    times = {name: 10**9 + np.arange(60) * int(1e9 / RATES[name]) for name in native}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for other in (False, True):
            with DatasetWriter.create(Path(folder, str(other)), SCHEMA, compression=EXACT, durable=False) as writer:
                mine = {name: rows[name].copy() for name in ALIGNED}
                for name in ALIGNED if other else ():
                    mine[name][5:] = values_of(SCHEMA.streams[name], 5, rng)
                writer.extend(mine, time_ns=10**9 + np.arange(10) * 10**8 + 5)
                for name in native:
                    values = samples[name].copy()
                    late = times[name] > present
                    if other:
                        values[late] = values_of(SCHEMA.streams[name], int(late.sum()), rng)
                    writer.add_samples(name, values, times[name])
                writer.save_episode()
            reader = WindowReader(Dataset.open(Path(folder, str(other))), views)
            found.append(reader.read(np.array([0]), np.array([4])))
    for part in range(2):
        for name in views:
            np.testing.assert_array_equal(found[0][part][name], found[1][part][name], err_msg=name)


def test_the_present_of_a_native_stream_at_the_control_rate_is_what_the_dataset_reads_there(tmp_path: Path) -> None:
    record(tmp_path / "d", 3, [20, 7, 30])
    dataset = Dataset.open(tmp_path / "d")
    reader = WindowReader(dataset, {"force": View("force", 1)})
    places = [(e, s) for e in range(3) for s in range(dataset.rows(e).stop - dataset.rows(e).start)]
    values, missing = reader.read(*np.array(places).T)
    np.testing.assert_array_equal(values["force"][:, 0], dataset.read("force"))
    np.testing.assert_array_equal(missing["force"][:, 0], ~dataset.valid("force"))


def test_pictures_from_disk_are_those_in_memory_in_threads_and_in_another_process(tmp_path: Path) -> None:
    record(tmp_path / "d", 5, [20, 30])
    views = {"top": View("top", 3, 1), "camera": View("camera", 2, 0, 30.0)}
    memory = WindowReader(Dataset.open(tmp_path / "d"), views, images="memory")
    disk = WindowReader(Dataset.open(tmp_path / "d"), views, images="disk")
    copy = pickle.loads(pickle.dumps(disk))
    episode, step = np.repeat([0, 1], 20), np.tile(np.arange(20), 2)
    expected = memory.read(episode, step)[0]
    with ThreadPoolExecutor(4) as pool:
        for values, _ in pool.map(lambda reader: reader.read(episode, step), [disk, copy] * 8):
            for name in views:
                np.testing.assert_array_equal(values[name], expected[name])
    assert image_bytes(memory.dataset, views) == sum(
        memory.dataset.array(name).shape[0] * memory.dataset.schema.streams[name].size for name in views
    )


def test_pictures_stored_as_floats_are_read_as_bytes_and_refused_when_they_are_not_whole(tmp_path: Path) -> None:
    schema = Schema(10.0, {"camera": Stream((2, 2, 3), "float32", "image")})
    for name, value in (("whole", 200.0), ("broken", 0.5)):
        with DatasetWriter.create(tmp_path / name, schema, durable=False) as writer:
            writer.extend({"camera": np.full((3, 2, 2, 3), value, np.float32)})
            writer.save_episode()
    views = {"camera": View("camera", 1)}
    for images in ("memory", "disk"):
        reader = WindowReader(Dataset.open(tmp_path / "whole"), views, images=images)
        found = reader.read(np.array([0]), np.array([1]))[0]["camera"]
        assert found.dtype == np.uint8
        assert (found == 200).all()
        with pytest.raises(SchemaError, match="cannot be read as uint8"):
            WindowReader(Dataset.open(tmp_path / "broken"), views, images=images).read(np.array([0]), np.array([1]))


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    record(tmp_path / "d", 1, [5, 4])
    dataset = Dataset.open(tmp_path / "d")
    for view, message in (
        (View("wrench", 2), "no stream 'wrench'"),
        (View("state", 0), "horizon above 0"),
        (View("force", 2, 0, -1.0), "horizon above 0"),
        (View("state", 2, 0, 4.0), "divided by a whole number"),
        (View("state", 2, 0, 20.0), "divided by a whole number"),
    ):
        with pytest.raises(SchemaError, match=message):
            WindowReader(dataset, {"v": view})
    reader = WindowReader(dataset, {"state": View("state", 2)})
    for episode, step in ((-1, 0), (2, 0), (0, -1), (1, 4)):
        with pytest.raises(IndexError):
            reader.read(np.array([episode]), np.array([step]))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    record(tmp_path / "d", 1, [5])
    reader = WindowReader(Dataset.open(tmp_path / "d"), {"top": View("top", 2)}, images="disk")
    (file,) = (path for path in (tmp_path / "d" / "data" / "top" / "c").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="data/top"):
        reader.read(np.array([0]), np.array([1]))


def test_capture_times_that_do_not_increase_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "d", 2, [9])
    array = zarr.open_array(tmp_path / "d" / "streams" / "force" / "time")
    array[:2] = np.asarray(array[:2])[::-1].copy()
    with pytest.raises(DatasetError, match="streams/force/time does not increase"):
        WindowReader(Dataset.open(tmp_path / "d"), {"force": View("force", 2)})
