"""Episodes exported for viewers, read back with the readers of MCAP and Rerun: values, times, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from robolearn.cli.main import main
from robolearn_data import shards
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

mcap_reader = pytest.importorskip("mcap.reader", reason="needs robolearn[viewers]")
rerun = pytest.importorskip("rerun", reason="needs robolearn[viewers]")

MS = 1_000_000
START = 5_000_000_000
STEPS = 6
SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((32, 48, 3), "uint8", "image", rate_hz=30.0),
        "wrist": Stream((16, 16, 3), "float32", "image"),
        "depth": Stream((8, 8, 1), "uint16", "image"),
        "wrench": Stream((6,), "float32", unit="N,N,N,Nm,Nm,Nm", rate_hz=200.0, interpolation="linear"),
        "state": Stream((2,), "float64", names=("x", "y"), unit="m", frame="base"),
        "keypoint": Stream((4, 2), "float32"),
        "counter": Stream((), "int64", "info"),
        "contact": Stream((2,), "bool", "info"),
        "action": Stream((2,), "float32", "action", names=("x", "y"), unit="m"),
    },
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two episodes with streams of their own rates, capture and receive times, and a dropped frame of the wrist."""
    path = tmp_path_factory.mktemp("viewers") / "d"
    rng = np.random.default_rng(0)
    compression = {"camera": "jpeg-80", "wrist": "zstd-5", "depth": "depth"}
    with DatasetWriter.create(path, SCHEMA, compression=compression, metadata={"rig": "x"}, durable=False) as writer:
        for episode in range(2):
            begin = START + episode * 10_000 * MS
            for name, period, count in (("camera", 33 * MS, 9), ("wrench", 5 * MS, 60)):
                stream = SCHEMA.streams[name]
                times = begin + np.arange(count) * period
                if name == "camera":
                    values = np.broadcast_to(
                        (20 + 20 * np.arange(count))[:, None, None, None], (count, *stream.shape)
                    ).astype("uint8")
                else:
                    values = rng.normal(size=(count, 6)).astype("float32")
                writer.add_samples(name, values, times, times + 3 * MS)
            for step in range(STEPS):
                now = begin + step * 50 * MS
                row = {
                    "wrist": np.full((16, 16, 3), 30 * step, "float32"),
                    "depth": rng.integers(0, 2**16, (8, 8, 1), dtype=np.uint16),
                    "state": rng.normal(size=2),
                    "keypoint": rng.normal(size=(4, 2)).astype("float32"),
                    "counter": 2**53 + step,
                    "contact": np.array([step % 2 == 0, True]),
                    "action": rng.normal(size=2).astype("float32"),
                }
                holes = ["wrist"] if step == 3 else []
                writer.add(
                    {name: value for name, value in row.items() if name not in holes},
                    time_ns=now,
                    capture_ns={"state": now - 2 * MS},
                    received_ns={"state": now - MS},
                    holes=holes,
                )
            writer.save_episode({"task": "lift", "success": episode == 0})
    return Dataset.open(path)


def messages(path: Path) -> dict[str, list[tuple[int, int, Any]]]:
    """Topic -> (log time, publish time, decoded message) of all messages, and the metadata records."""
    from mcap_protobuf.decoder import DecoderFactory

    found: dict[str, list[tuple[int, int, Any]]] = {}
    with path.open("rb") as file:
        reader = mcap_reader.make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for schema, channel, message in reader.iter_messages():
            if channel.message_encoding == "json":
                value = json.loads(message.data)
            else:
                decode = DecoderFactory().decoder_for(channel.message_encoding, schema)
                assert decode is not None
                value = decode(message.data)
            found.setdefault(channel.topic, []).append((message.log_time, message.publish_time, value))
    return found


@pytest.fixture(scope="module")
def mcap(recorded: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcap") / "out.mcap"
    assert main(["data", "export", "--format", "mcap", "--episodes", "1", str(recorded.path), str(path)]) == 0
    return path


def test_mcap_has_every_sample_of_native_streams_at_its_capture_time(recorded: Dataset, mcap: Path) -> None:
    found, offset = messages(mcap), recorded.episode_info(1)["wall_offset_ns"]
    for name in ("camera", "wrench"):
        samples = recorded.samples(name, 1)
        assert [log for log, _, _ in found[f"/{name}"]] == (samples.time + offset).tolist()
        assert [publish for _, publish, _ in found[f"/{name}"]] == (samples.received + offset).tolist()
    values = np.array([message["values"] for _, _, message in found["/wrench"]], "float32")
    assert values.tobytes() == recorded.take("wrench", np.arange(60, 120)).tobytes()


def test_mcap_has_the_stored_jpegs_byte_for_byte(recorded: Dataset, mcap: Path) -> None:
    stored = shards.stored_rows(recorded.array("camera"), slice(9, 18))
    pictures = messages(mcap)["/camera"]
    assert [message.data for _, _, message in pictures] == stored
    assert {message.format for _, _, message in pictures} == {"jpeg"}
    assert [message.timestamp.ToNanoseconds() for _, _, message in pictures] == [log for log, _, _ in pictures]


def test_mcap_has_values_times_names_and_units_of_control_steps_and_no_stand_ins(recorded: Dataset, mcap: Path) -> None:
    found, info = messages(mcap), recorded.episode_info(1)
    rows = recorded.rows(1)
    ticks = recorded.times()
    assert ticks is not None
    ticks = ticks[rows] + info["wall_offset_ns"]
    assert [(log, publish) for log, publish, _ in found["/state"]] == [(t - 2 * MS, t - MS) for t in ticks.tolist()]
    assert [[m["x"], m["y"]] for _, _, m in found["/state"]] == recorded.read("state", rows).tolist()
    assert [m["values"] for _, _, m in found["/keypoint"]] == recorded.read("keypoint", rows).reshape(6, -1).tolist()
    assert [m["value"] for _, _, m in found["/counter"]] == recorded.read("counter", rows).tolist()
    assert [m["values"] for _, _, m in found["/contact"]] == recorded.read("contact", rows).tolist()
    wrist = found["/wrist"]
    assert [log for log, _, _ in wrist] == np.delete(ticks, 3).tolist()
    for (_, _, message), step in zip(wrist, (0, 1, 2, 4, 5), strict=True):
        assert np.abs(simplejpeg.decode_jpeg(message.data).astype(int) - 30 * step).max() <= 2
    for (_, _, message), depth in zip(found["/depth"], recorded.read("depth", rows), strict=True):
        assert (message.encoding, message.width, message.height, message.step) == ("16UC1", 8, 8, 16)
        assert message.data == depth.tobytes()
    [(begin, _, start)] = found["/episode"]
    assert start == {"episode": 1, "info": info}
    assert begin == min(log for topic in found.values() for log, _, _ in topic)
    with mcap.open("rb") as file:
        reader = mcap_reader.make_reader(file)
        [record] = list(reader.iter_metadata())
        summary = reader.get_summary()
    assert Schema.from_json(json.loads(record.metadata["schema"])) == recorded.schema
    assert json.loads(record.metadata["metadata"]) == {"rig": "x"}
    schemas = {schema.name: schema.data for schema in summary.schemas.values()}
    assert json.loads(schemas["robolearn.state"])["properties"]["y"] == {"type": "number", "description": "m"}
    channels = {channel.topic: channel.metadata for channel in summary.channels.values()}
    assert channels["/wrench"]["rate_hz"] == "200"
    assert channels["/state"]["frame"] == "base"


def test_rerun_has_values_pictures_and_times_of_every_stream(recorded: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "out.rrd"
    assert main(["data", "export", "--format", "rerun", "--episodes", "0-1", str(recorded.path), str(path)]) == 0
    recording = rerun.dataframe.load_recording(path)
    for episode in (0, 1):
        offset = recorded.episode_info(episode)["wall_offset_ns"]
        for name, component in (("wrench", "Scalar"), ("state", "Scalar"), ("camera", "Blob")):
            entity = f"/episode_{episode}/{name}"
            view = recording.view(index="captured", contents=entity)
            table = view.select().read_all()
            values = f"{entity}:{component}"
            times = table["captured"].to_numpy().astype("datetime64[ns]").astype(np.int64)
            received = table["received"].to_numpy().astype("datetime64[ns]").astype(np.int64)
            stream = recorded.schema.streams[name]
            if stream.is_native:
                samples = recorded.samples(name, episode)
                expected, came = samples.time, samples.received
                rows = np.arange(samples.rows.start, samples.rows.stop)
            else:
                here = recorded.rows(episode)
                captured, arrived = recorded.times(name), recorded.received(name)
                assert captured is not None
                assert arrived is not None
                expected, came, rows = captured[here], arrived[here], np.arange(here.start, here.stop)
            np.testing.assert_array_equal(times, expected + offset)
            np.testing.assert_array_equal(received, came + offset)
            if name == "camera":
                files = [bytes(row[0]) for row in table[values].to_pylist()]
                assert files == shards.stored_rows(recorded.array(name), slice(int(rows[0]), int(rows[-1]) + 1))
            else:
                found = np.array(table[values].to_pylist())
                np.testing.assert_array_equal(found, recorded.take(name, rows).astype("float64"))


@pytest.mark.parametrize("form", ["mcap", "rerun"])
def test_a_dataset_without_times_is_shown_at_its_rate(form: str, tmp_path: Path) -> None:
    schema = Schema(10.0, {"action": Stream((2,), kind="action")})
    with DatasetWriter.create(tmp_path / "d", schema, durable=False) as writer:
        for _ in range(2):
            writer.extend({"action": np.ones((3, 2), "float32")})
            writer.save_episode()
    target = tmp_path / f"out.{form}"
    assert main(["data", "export", "--format", form, str(tmp_path / "d"), str(target)]) == 0
    if form == "mcap":
        logs = [log for log, _, _ in messages(target)["/action"]]
        assert np.diff(logs).tolist() == [100 * MS, 100 * MS, 1100 * MS, 100 * MS, 100 * MS]
    else:
        view = rerun.dataframe.load_recording(target).view(index="elapsed", contents="/episode_1/**")
        elapsed = view.select().read_all()["elapsed"].to_numpy().astype(np.int64)
        assert elapsed[~np.isnat(elapsed.astype("timedelta64[ns]"))].tolist() == [0, 100 * MS, 200 * MS]


@pytest.mark.parametrize("form", ["mcap", "rerun"])
@pytest.mark.parametrize(("episodes", "message"), [("7", "no episode 7"), ("x", "names no episodes")])
def test_episodes_that_are_not_there_are_refused(
    recorded: Dataset, form: str, episodes: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    words = ["data", "export", "--format", form, "--episodes", episodes, str(recorded.path), str(target)]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
