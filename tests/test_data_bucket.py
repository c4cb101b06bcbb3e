"""A dataset in an object store is what it is on a disk: on a local S3 server over HTTP, and in memory."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import ObjectStore

from robolearn.cli.main import main
from robolearn_data.bucket import Bucket
from robolearn_data.copying import EpisodeCopier, compression_of, new_dataset
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.location import locate
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

pytest.importorskip("obstore", reason="needs robolearn[cloud]")
PROCESSES = multiprocessing.get_context("spawn")
MS = 1_000_000
SCHEMA = Schema(
    10.0,
    {
        "camera": Stream((48, 64, 3), "uint8", "image", rate_hz=30.0),
        "wrench": Stream((6,), "float32", rate_hz=100.0, interpolation="linear"),
        "wrist": Stream((48, 64, 3), "uint8", "image"),
        "state": Stream((7,)),
        "action": Stream((7,), kind="action"),
    },
)
LOSSLESS = {"camera": "zstd-1", "wrist": "lossless"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket on a server of this machine."""
    server_module = pytest.importorskip("moto.server", reason="needs moto")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="robots")
        yield "s3://robots"
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """Where no dataset is yet."""
    base = request.getfixturevalue("s3") if request.param == "s3" else "memory://robots"
    return f"{base}/{uuid.uuid4().hex}/pour.zarr"


def add_episode(writer: DatasetWriter, steps: int = 12) -> None:
    seed = writer.episodes
    rng = np.random.default_rng(seed)
    start = 1_000_000_000
    frames, wrenches = 3 * steps, 10 * steps
    pictures = rng.integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8)
    writer.add_samples("camera", pictures, start + np.arange(frames) * 33 * MS, start + np.arange(frames) * 34 * MS)
    writer.add_samples(
        "wrench", rng.normal(size=(wrenches, 6)).astype(np.float32), start + np.arange(wrenches) * 10 * MS
    )
    for step in range(steps):
        values = rng.normal(size=(2, 7)).astype(np.float32)
        row = {"state": values[0], "action": values[1], "wrist": pictures[step]}
        holes = {"wrist"} if step == 5 else set()
        row = {name: value for name, value in row.items() if name not in holes}
        writer.add(
            row, time_ns=start + (step + 1) * 100 * MS, capture_ns={"state": start + step * 99 * MS}, holes=holes
        )
    writer.save_episode({"task": "pour", "number": seed})


def write(where: str | Path, episodes: int = 3) -> None:
    with DatasetWriter.create(where, SCHEMA, compression=LOSSLESS, buffer_bytes=200_000) as writer:
        add_episode(writer)
    with DatasetWriter.append(where, buffer_bytes=200_000) as writer:
        for _ in range(episodes - 1):
            add_episode(writer)


def assert_same(a: Dataset, b: Dataset) -> None:
    assert a.episodes == b.episodes
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
    for name, stream in SCHEMA.streams.items():
        np.testing.assert_array_equal(a.read(name), b.read(name))
        np.testing.assert_array_equal(a.valid(name), b.valid(name))
        if stream.is_native:
            for episode in range(a.episodes):
                found, expected = a.samples(name, episode), b.samples(name, episode)
                np.testing.assert_array_equal(found.time, expected.time)
                np.testing.assert_array_equal(found.received, expected.received)
                assert found.rows == expected.rows
                np.testing.assert_array_equal(
                    a.take(name, range(found.rows.start, found.rows.stop)),
                    b.take(name, range(found.rows.start, found.rows.stop)),
                )
    found, expected = a.times("state"), b.times("state")
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found, expected)


def test_what_is_written_to_a_url_reads_as_what_is_written_to_a_folder(url: str, tmp_path: Path) -> None:
    write(url)
    write(tmp_path / "d")
    there, here = Dataset.open(url), Dataset.open(tmp_path / "d")
    assert_same(there, here)
    assert [there.episode_info(i)["number"] for i in range(3)] == [0, 1, 2]
    assert there.fingerprint() == here.fingerprint()


def test_plain_zarr_reads_it_from_s3(s3: str) -> None:
    from obstore.store import from_url

    url = f"{s3}/{uuid.uuid4().hex}"
    write(url, 1)
    group = zarr.open_group(ObjectStore(from_url(url), read_only=True), mode="r")
    np.testing.assert_array_equal(np.asarray(group["data/wrist"][:]), Dataset.open(url).read("wrist"))  # pyright: ignore[reportArgumentType, reportIndexIssue]


def test_episodes_appear_only_when_they_are_saved_and_an_open_reader_keeps_its_view(url: str) -> None:
    write(url, 1)
    reader = Dataset.open(url)
    before = reader.take("wrist", [3, 9])
    with DatasetWriter.append(url, buffer_bytes=0) as writer:
        writer.add_samples("camera", np.zeros((1, 48, 64, 3), np.uint8), [5])
        sample = {"state": np.zeros(7), "action": np.zeros(7), "wrist": np.zeros((48, 64, 3), np.uint8)}
        for step in range(4):
            writer.add({k: v.astype(SCHEMA.streams[k].dtype) for k, v in sample.items()}, time_ns=10 + step)
        assert Dataset.open(url).episodes == 1
        writer.save_episode()
        assert Dataset.open(url).episodes == 2
    np.testing.assert_array_equal(reader.take("wrist", [3, 9]), before)  # its file is another one by now
    assert reader.episodes == 1


def test_a_second_writer_is_refused_and_told_who_the_first_is(url: str) -> None:
    with DatasetWriter.create(url, SCHEMA) as writer:
        with pytest.raises(DatasetError, match=rf"process {os.getpid()} on .* is writing to {url}"):
            DatasetWriter.append(url)
        add_episode(writer)
    with DatasetWriter.append(url) as writer:
        assert writer.episodes == 1


def test_a_writer_that_was_declared_dead_and_is_not_cannot_publish(url: str) -> None:
    first = DatasetWriter.create(url, SCHEMA)
    assert recover(url).exit_code == 0  # a person believes that it was killed
    with DatasetWriter.append(url) as second:
        with pytest.raises(DatasetError, match="has taken over"):
            add_episode(first)
        first.close()
        add_episode(second)
    assert Dataset.open(url).episodes == 1
    DatasetWriter.append(url).close()  # the first did not take the second's lock with it


def record_for_ever(url: str, saved: Connection) -> None:
    with DatasetWriter.append(url, buffer_bytes=100_000) as writer:
        for _ in itertools.count():
            add_episode(writer, 4)
            saved.send(writer.episodes)


def test_a_killed_writer_leaves_whole_episodes_and_a_lock_that_recover_takes_away(s3: str) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    DatasetWriter.create(url, SCHEMA, compression=LOSSLESS).close()
    events, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=record_for_ever, args=(url, theirs))
    process.start()
    theirs.close()
    told = 0
    for _ in range(3):
        told = events.recv()
    process.kill()
    process.join()
    dataset = Dataset.open(url)
    assert dataset.episodes >= told == 3
    for episode in range(dataset.episodes):
        found = dataset.read("camera", dataset.rows(episode))
        expected = np.random.default_rng(episode).integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
        np.testing.assert_array_equal(found[:, 0, 0], expected[[3, 6, 9, 11], 0, 0])
    with pytest.raises(DatasetError, match="if it was killed: `robolearn data recover"):
        DatasetWriter.append(url)
    assert main(["data", "recover", url]) == 0
    with DatasetWriter.append(url) as writer:
        add_episode(writer)
    assert Dataset.open(url).episodes == dataset.episodes + 1


def test_a_dataset_that_is_being_copied_to_a_url_is_not_there_before_it_is_whole(url: str, tmp_path: Path) -> None:
    write(tmp_path / "d")
    source = Dataset.open(tmp_path / "d")
    copier = EpisodeCopier(source)

    def fail() -> None:
        with new_dataset(url, SCHEMA, {}, compression_of(source)) as writer:
            copier.copy(0, writer)
            with pytest.raises(DatasetError, match="not a robolearn dataset"):
                Dataset.open(url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not locate(url).exists()
    with new_dataset(url, SCHEMA, {}, compression_of(source)) as writer:
        for episode in range(source.episodes):
            copier.copy(episode, writer)
    assert_same(Dataset.open(url), source)
    with pytest.raises(DatasetError, match="is not empty"):
        DatasetWriter.create(url, SCHEMA)


def test_a_server_that_is_gone_is_an_oserror_and_the_episode_is_kept(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    write(url, 1)
    writer = DatasetWriter.append(url)
    with monkeypatch.context() as gone:
        gone.setattr(writer.location, "client", _unreachable(url), raising=False)
        gone.setattr(writer._buffer._store, "store", _unreachable(url))
        with pytest.raises(OSError, match="check the URL, the network and the credentials"):
            add_episode(writer)
    assert writer.save_episode() == 1
    writer.close()
    assert Dataset.open(url).episodes == 2


def _unreachable(url: str):
    from obstore.store import from_url

    return from_url(url, config={"endpoint": "http://127.0.0.1:9"}, retry_config={"max_retries": 0})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://somewhere/x", "is not a URL of an object store .* valid: s3://"),
        ("memory://nothing/here", "no dataset at memory://nothing/here"),
    ],
)
def test_a_url_without_a_dataset_is_one_clear_line(url: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset.open(url)


def test_a_bucket_that_does_not_exist_is_named(s3: str) -> None:
    with pytest.raises(OSError, match=r"s3://nobody/x: .* 404 Not Found; check the URL"):
        Dataset.open("s3://nobody/x")
    with pytest.raises(OSError, match="s3://nobody/x"):
        DatasetWriter.create("s3://nobody/x", SCHEMA)
    assert isinstance(locate(f"{s3}/x"), Bucket)


def test_every_tool_that_makes_something_new_works_at_a_url(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(url)
    base = url.removesuffix("/pour.zarr")
    for words in (
        ["info", url],
        ["validate", url],
        ["stats", url],
        ["plot", url, "--episode", "1", "--out", str(tmp_path / "page.html")],
        ["merge", url, "--out", str(tmp_path / "here.zarr")],
        ["split", url, f"{base}/train.zarr", f"{base}/test.zarr", "--episodes", "1"],
        ["merge", f"{base}/train.zarr", f"{base}/test.zarr", "--out", f"{base}/joined.zarr"],
        ["convert", url, f"{base}/small.zarr", "--compression", "wrist=jpeg-80"],
        ["export", url, str(tmp_path / "replay.zarr"), "--format", "diffusion_policy"],
        ["import", str(tmp_path / "replay.zarr"), f"{base}/imported.zarr", "--format", "diffusion_policy"],
        ["validate", f"{base}/joined.zarr"],
    ):
        assert main(["data", *words]) == 0, capsys.readouterr()
    assert_same(Dataset.open(tmp_path / "here.zarr"), Dataset.open(url))
    joined, source = Dataset.open(f"{base}/joined.zarr"), Dataset.open(url)
    order = [joined.episode_info(i)["number"] for i in range(3)]
    assert order == [0, 2, 1]
    np.testing.assert_array_equal(joined.episode(2)["camera"], source.episode(1)["camera"])
    np.testing.assert_array_equal(Dataset.open(f"{base}/imported.zarr").read("state"), source.read("state"))


@pytest.mark.parametrize(
    "words", [["delete", "--episodes", "0", "--yes"], ["relabel", "--episodes", "0", "--set", "a=1"]]
)
def test_what_changes_a_dataset_in_place_says_that_it_works_on_a_disk_only(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"memory://robots/{uuid.uuid4().hex}"
    write(url, 2)
    assert main(["data", words[0], url, *words[1:]]) == 2
    assert "is in an object store; this works on datasets on a disk only" in capsys.readouterr().err
    assert Dataset.open(url).episodes == 2


def test_a_flipped_bit_in_a_bucket_is_found_by_validate(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    write(url, 1)
    place = locate(url)
    key = "data/wrist/c/0/0/0/0"
    broken = bytearray(place.read(key))
    broken[100] ^= 4
    place.put(key, bytes(broken), durable=True)
    assert main(["data", "validate", url]) == 1
    assert "data/wrist: row 0 is damaged" in capsys.readouterr().out
