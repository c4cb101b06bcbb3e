"""Frames read past zarr are what zarr reads, and damaged files are named."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from robolearn_data import shards, storage
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError, Folder
from robolearn_data.frames import Frames
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

IMAGE = Stream((20, 30, 3), "uint8", "image")
COMPRESSIONS = {
    "jpeg-90": IMAGE,
    "lossless": IMAGE,
    "h264-30": IMAGE,
    "zstd-1": IMAGE,
    "zstd-5": Stream((40, 40), "float32"),
    "depth": Stream((20, 30, 1), "uint16", "image"),
}
SCHEMA = Schema(30.0, COMPRESSIONS)
STEPS = 277
"""More than one file of 256 rows, and no multiple of a group of pictures."""


def values(steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    small = {name: rng.integers(0, 250, (steps, *stream.shape)) // 8 * 8 for name, stream in COMPRESSIONS.items()}
    return {name: value.astype(COMPRESSIONS[name].dtype) for name, value in small.items()}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "d"
    with DatasetWriter.create(path, SCHEMA, compression={n: n for n in COMPRESSIONS}, durable=False) as writer:
        for steps in (3, STEPS - 3):
            writer.extend(values(steps))
            writer.save_episode()
    return path


@pytest.fixture(scope="module")
def known(path: Path) -> dict[str, tuple[Frames, np.ndarray]]:
    """Stream -> its reader, and all its rows as zarr reads them."""
    dataset = Dataset.open(path)
    return {name: (Frames(dataset.array(name)), np.asarray(dataset.array(name)[:])) for name in COMPRESSIONS}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(COMPRESSIONS)),
    rows=st.lists(st.lists(st.integers(0, STEPS - 1), min_size=2, max_size=2), max_size=8),
)
def test_any_rows_are_what_zarr_reads(
    known: dict[str, tuple[Frames, np.ndarray]], name: str, rows: list[list[int]]
) -> None:
    frames, expected = known[name]
    index = np.array(rows, np.int64).reshape(-1, 2)
    found = frames.read(index)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected[index])


@pytest.mark.parametrize("name", [name for name in COMPRESSIONS if not name.startswith("h264")])
def test_one_flipped_bit_anywhere_in_a_frame_is_found_here_by_zarr_and_by_a_copy(tmp_path: Path, name: str) -> None:
    with DatasetWriter.create(tmp_path / "d", Schema(30.0, {name: COMPRESSIONS[name]}), compression={name: name}) as w:
        w.extend({name: values(3)[name]})
        w.save_episode()
    array = Dataset.open(tmp_path / "d").array(name)
    (file,) = (path for path in (tmp_path / "d" / "data" / name / "c").rglob("*") if path.is_file())
    whole = file.read_bytes()
    first = len(shards.unpack(Folder(file.parent), file.name, array.shards[0])[0] or b"")  # pyright: ignore[reportOptionalSubscript]
    for place in np.random.default_rng(0).integers(0, first, 40):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(place) % 8
        file.write_bytes(broken)
        with pytest.raises(DatasetError, match="does not have its checksum"):
            Frames(array).read([0])
        with pytest.raises(DatasetError, match="row 0: it is damaged"):
            shards.stored_rows(array, slice(0, 2))
        with pytest.raises(ValueError, match=r"[Cc]hecksum"):
            array[0]
        np.testing.assert_array_equal(Frames(array).read([2]).shape, (1, *COMPRESSIONS[name].shape))


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_rows_not_yet_written_are_filled_as_zarr_fills_them(path: Path, name: str) -> None:
    dataset = Dataset.open(path)
    longer = storage.with_length(dataset.array(name), 300)
    np.testing.assert_array_equal(Frames(longer).read(range(250, 300)), np.asarray(longer[250:300]))


def test_a_row_that_the_array_does_not_have_is_an_index_error(path: Path) -> None:
    frames = Frames(Dataset.open(path).array("jpeg-90"))
    for row in (-1, STEPS):
        with pytest.raises(IndexError, match=r"rows must be in \[0, 277\)"):
            frames.read([row])
    assert frames.read([]).shape == (0, 20, 30, 3)
    assert frames.read(5).shape == (20, 30, 3)


def test_a_reader_follows_the_writer_that_replaces_its_file(tmp_path: Path) -> None:
    stream = {"a": IMAGE}
    with DatasetWriter.create(tmp_path / "d", Schema(30.0, stream), compression={"a": "lossless"}) as writer:
        frame = values(40)["lossless"]
        writer.extend({"a": frame[:10]})
        writer.save_episode()
        frames = Frames(storage.with_length(Dataset.open(tmp_path / "d").array("a"), 40))
        np.testing.assert_array_equal(frames.read(range(10)), frame[:10])
        for start in range(10, 40, 10):
            writer.extend({"a": frame[start : start + 10]})
            writer.save_episode()
            np.testing.assert_array_equal(frames.read(range(start + 10)), frame[: start + 10])


def test_a_reader_is_shared_by_threads_and_sent_to_processes(known: dict[str, tuple[Frames, np.ndarray]]) -> None:
    frames, expected = known["jpeg-90"]
    copy = pickle.loads(pickle.dumps(frames))
    wrong = []

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, STEPS, (20, 3))
        if not np.array_equal(copy.read(rows), expected[rows]):
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_damaged_files_are_named_and_never_read_as_frames(tmp_path: Path, path: Path, name: str) -> None:
    array = Dataset.open(path).array(name)
    file = path / "data" / name / array.metadata.encode_chunk_key((0,) * array.ndim)  # pyright: ignore[reportAttributeAccessIssue]
    whole = file.read_bytes()
    index = 16 * (array.shards or array.chunks)[0] // array.chunks[0] + 4
    frames = Frames(array)
    assert frames.read([0]).any()

    def fault(row: int = 0) -> str:
        with pytest.raises(DatasetError) as caught:
            frames.read([row])
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    try:
        for cut in (len(whole) - 1, len(whole) // 2, 10, 0):
            file.write_bytes(whole[:cut])
            assert "cut off or damaged: its index does not have its checksum" in fault()
        file.write_bytes(whole[-index:])  # an index whose frames are gone
        assert "beyond the end of the file" in fault(100)
        file.write_bytes(bytes(len(whole) - index) + whole[-index:])
        assert "row 0 cannot be decoded" in fault()
        noise = np.random.default_rng(0).bytes(len(whole) - index)
        file.write_bytes(noise + whole[-index:])
        assert "row 7 cannot be decoded" in fault(7)
        file.unlink()
        assert "the file is missing" in fault()
    finally:
        file.write_bytes(whole)
    assert frames.read([0]).any()


def test_arrays_of_another_kind_are_left_to_zarr(tmp_path: Path) -> None:
    plain = zarr.create_array(tmp_path / "plain", shape=(10, 4, 4, 3), chunks=(1, 4, 4, 3), dtype="uint8")
    memory = storage.create_array(MemoryStore(), "a", IMAGE)  # pyright: ignore[reportArgumentType]
    for array in (plain, memory):
        assert not Frames.readable(array)
        with pytest.raises(DatasetError, match="read it with zarr"):
            Frames(array)
