"""Each compression gives back what it promises, takes what it says, and answers damaged data with a clear error."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from zarr.storage import MemoryStore

from robolearn_data import storage
from robolearn_data.codecs.chunk import ChunkCodec, CodecError
from robolearn_data.codecs.h264 import H264Codec
from robolearn_data.codecs.jpeg import JpegCodec
from robolearn_data.codecs.jpegxl import JpegXlCodec
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

CODECS: tuple[ChunkCodec, ...] = (JpegCodec(), JpegXlCodec(), H264Codec())
IMAGE = Stream((45, 62, 3), "uint8", "image")
DEPTH = Stream((45, 62, 1), "uint16", "image")


def pictures(steps: int, stream: Stream = IMAGE) -> np.ndarray:
    """Smooth pictures that move, (steps, H, W, C), of half the dtype's range."""
    height, width, channels = stream.shape
    t, y, x, c = np.ogrid[:steps, :height, :width, :channels]
    wave = np.sin(0.1 * x + 0.3 * t + c) * np.cos(0.13 * y - 0.2 * t)
    return np.rint((0.5 + 0.25 * wave) * np.iinfo(stream.dtype).max).astype(stream.dtype)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def decoded(codec: ChunkCodec, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    codec.decode_into(data, out, 0, len(out))
    return out


EXACT = {
    "zstd-1": IMAGE,
    "zstd-5": Stream((3, 50), "float64"),
    "lossless": IMAGE,
    "depth": DEPTH,
}
LOSSY = {"jpeg-95": 40.0, "jpeg-50": 33.0, "h264-23": 33.0}
"""Compression -> decibels that it must reach."""


@pytest.mark.parametrize("compression", [*EXACT, *LOSSY])
def test_episodes_read_back_through_writer_and_reader(tmp_path: Path, compression: str) -> None:
    stream = EXACT.get(compression, IMAGE)
    schema = Schema(30.0, {"camera": stream, "action": Stream((2,), kind="action")})
    rng = np.random.default_rng(0)
    episodes = [
        pictures(n, stream) if stream.kind == "image" else rng.normal(size=(n, *stream.shape)) for n in (5, 17, 1)
    ]
    found: list[list[np.ndarray]] = []
    with DatasetWriter.create(tmp_path / "d", schema, compression={"camera": compression}, durable=False) as writer:
        for episode in episodes:
            for frame in episode:
                writer.add({"camera": frame, "action": np.zeros(2, np.float32)})
            writer.save_episode()
            dataset = Dataset.open(tmp_path / "d")
            found.append([dataset.episode(i)["camera"] for i in range(dataset.episodes)])
    for number, episode in enumerate(episodes):
        for seen in found[number:]:  # what comes after an episode changes nothing of it, however lossy
            np.testing.assert_array_equal(seen[number], found[number][number])
        if compression in LOSSY:
            assert psnr(found[-1][number], episode) > LOSSY[compression]
        else:
            np.testing.assert_array_equal(found[-1][number], episode)
    assert validate(tmp_path / "d") == []


def test_images_are_jpeg_unless_told_otherwise_and_nothing_else_is(tmp_path: Path) -> None:
    streams = {
        "color": Stream((16, 16, 3), "uint8", "image"),
        "gray": Stream((16, 16, 1), "uint8", "image"),
        "exact": Stream((16, 16, 3), "uint8", "image"),
        "alpha": Stream((16, 16, 4), "uint8", "image"),
        "float": Stream((16, 16, 3), "float32", "image"),
        "depth": Stream((16, 16, 1), "uint16", "image"),
        "tactile": Stream((80, 80, 3), "uint8", "state"),
    }
    DatasetWriter.create(tmp_path / "d", Schema(1.0, streams), compression={"exact": "lossless"}).close()
    found = {}
    for name in streams:
        metadata = json.loads((tmp_path / "d" / "data" / name / "zarr.json").read_text())
        codecs = metadata["codecs"][0]["configuration"]["codecs"]
        assert codecs[-1]["name"] == "crc32c"
        found[name] = codecs[-2]["name"]
    jpegs = dict.fromkeys(("color", "gray"), "robolearn.jpeg")
    assert found == {**dict.fromkeys(streams, "blosc"), **jpegs, "exact": "robolearn.jpegxl"}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_lossless_frames_are_exact_for_any_shape_and_content(data: st.DataObject) -> None:
    side, channels = st.integers(1, 40), st.sampled_from([1, 3, 4])
    shape = (1, data.draw(side), data.draw(side), data.draw(channels))
    frame = data.draw(arrays.arrays(np.uint8, shape))
    np.testing.assert_array_equal(decoded(JpegXlCodec(), JpegXlCodec().encode_chunk(frame), shape), frame)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_depth_is_exact_for_any_shape_and_content(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), *data.draw(st.sampled_from([(), (1,)])))
    stream = Stream(shape, "uint16", "image" if len(shape) == 3 else "state")
    values = data.draw(arrays.arrays(np.uint16, (3, *shape)))
    array = storage.create_array(MemoryStore(), "depth", stream, rows=3, compression="depth")  # pyright: ignore[reportArgumentType]
    array[:] = values
    np.testing.assert_array_equal(np.asarray(array[:]), values)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 50), channels=st.sampled_from([1, 3]), value=st.integers(0, 255))
def test_jpeg_keeps_size_and_level_of_any_shape(height: int, width: int, channels: int, value: int) -> None:
    frame = np.full((1, height, width, channels), value, np.uint8)
    found = decoded(JpegCodec(), JpegCodec().encode_chunk(frame), frame.shape)
    assert np.abs(found.astype(int) - frame).max() <= 3


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), height=st.integers(1, 50), width=st.integers(1, 50))
def test_h264_keeps_count_size_and_order_of_any_shape(n: int, height: int, width: int) -> None:
    frames = np.repeat(np.arange(n, dtype=np.uint8) * 25 + 20, height * width * 3).reshape(n, height, width, 3)
    data = H264Codec(10).encode_chunk(frames)
    assert np.abs(decoded(H264Codec(), data, frames.shape).astype(int) - frames).max() <= 8
    last = np.zeros((1, height, width, 3), np.uint8)
    H264Codec().decode_into(data, last, n - 1, n)
    assert np.abs(last.astype(int) - frames[-1:]).max() <= 8


def test_h264_writes_within_a_chunk_leave_its_other_frames_as_they_are() -> None:
    store = MemoryStore()
    array = storage.create_array(store, "v", IMAGE, rows=16, compression="h264-20")  # pyright: ignore[reportArgumentType]
    assert array.chunks[0] == 8
    frames = pictures(16)
    array[:] = frames
    before = np.asarray(array[:])
    array[3:5] = 255 - frames[3:5]
    after = np.asarray(array[:])
    np.testing.assert_array_equal(np.delete(after, (3, 4), 0), np.delete(before, (3, 4), 0))
    assert psnr(after[3:5], 255 - frames[3:5]) > 33
    array[4:10] = frames[4:10]
    again = np.asarray(array[:])
    np.testing.assert_array_equal(again[:4], after[:4])
    np.testing.assert_array_equal(again[10:], after[10:])
    assert psnr(again[4:10], frames[4:10]) > 33
    array[2, 5:9, 5:9] = 0  # not whole frames: the chunk is encoded again
    assert np.asarray(array[2])[6:8, 6:8].max() < 60
    assert psnr(np.asarray(array[:2]), frames[:2]) > 33


@pytest.mark.parametrize(
    ("compression", "stream", "message"),
    [
        ("jpeg-95", Stream((4, 4, 3), "float32", "image"), r"JPEG takes uint8 images .*, not float32 \(4, 4, 3\)"),
        ("jpeg-95", Stream((4, 4, 4), "uint8", "image"), r"JPEG takes uint8 images \(height, width, 1 or 3\)"),
        ("jpeg-95", Stream((7,), "uint8"), r"JPEG takes uint8 images .*, not uint8 \(7,\)"),
        ("jpeg-95", Stream((4, 70_000, 3), "uint8", "image"), "at most 65500 pixels"),
        ("jpeg-95", Stream((4, 4, 3), "uint8"), "streams of kind 'image'"),
        ("jpeg-0", IMAGE, "JPEG quality must be a whole number from 1 to 100, not 0"),
        ("jpeg-101", IMAGE, "from 1 to 100, not 101"),
        ("jpeg", IMAGE, "compression 'jpeg' is unknown; valid: zstd-1, zstd-5, lossless, depth, jpeg-1 to jpeg-100"),
        ("jpeg--5", IMAGE, "is unknown"),
        ("zstd-3", IMAGE, "is unknown"),
        ("lossless-9", IMAGE, "is unknown"),
        ("lossless", DEPTH, r"lossless JPEG XL takes uint8 images .*, not uint16 \(45, 62, 1\)"),
        ("lossless", Stream((4, 4, 2), "uint8", "image"), "1 or 3 or 4"),
        ("depth", IMAGE, r"depth takes uint16 pictures .*, not uint8 \(45, 62, 3\)"),
        ("depth", Stream((4, 4, 3), "uint16", "image"), "depth takes uint16 pictures"),
        ("depth", Stream((4,), "uint16"), "depth takes uint16 pictures"),
        ("h264-52", IMAGE, "H.264 crf must be a whole number from 0 to 51, not 52"),
        ("h264-23", Stream((4, 4, 1), "uint8", "image"), r"H.264 takes uint8 images \(height, width, 3\)"),
    ],
)
def test_a_compression_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, compression: str, stream: Stream, message: str
) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        DatasetWriter.create(tmp_path / "d", Schema(1.0, {"a": stream}), compression={"a": compression})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def bomb(codec: ChunkCodec) -> bytes:
    """What decodes to a far larger picture than it should."""
    if isinstance(codec, JpegCodec):
        data = bytearray(codec.encode_chunk(np.zeros((1, 45, 62, 3), np.uint8)))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
        return bytes(data)
    if isinstance(codec, JpegXlCodec):
        return codec.encode_chunk(np.zeros((1, 8000, 8000, 1), np.uint8))
    return codec.encode_chunk(np.zeros((1, 1500, 1500, 3), np.uint8))


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_damaged_chunks_are_clear_errors(codec: ChunkCodec) -> None:
    frames = pictures(1)
    whole = codec.encode_chunk(frames)
    rng = np.random.default_rng(0)
    other = codec.encode_chunk(np.ascontiguousarray(frames[:, :31, :31]))
    damaged = [whole[:-1], whole[: len(whole) // 2], whole[:7], rng.bytes(1000), whole[:40] + rng.bytes(1000), other]
    damaged += [] if isinstance(codec, H264Codec) else [b""]  # no segment: nothing was written yet
    for data in damaged:
        with pytest.raises(CodecError) as caught:
            decoded(codec, data, frames.shape)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_flipped_bits_never_crash_a_decoder(codec: ChunkCodec) -> None:
    frames = pictures(2 if isinstance(codec, H264Codec) else 1)
    whole = codec.encode_chunk(frames)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(CodecError):
            decoded(codec, bytes(data), frames.shape)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_a_picture_that_claims_to_be_huge_is_refused_without_memory(codec: ChunkCodec) -> None:
    data = bomb(codec)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, limits[1]))
    try:
        with pytest.raises(CodecError, match=r"60000x60000 where|invalid out.shape|Invalid data found"):
            decoded(codec, data, (1, 45, 62, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(0, 3, 0), (2, 1, 0)], "do not fit"),  # overlap
        ([(7, 2, 0)], "do not fit"),  # beyond the chunk
        ([(0, 1, 8)], "do not fit"),  # more skipped than a chunk has
        ([(0, 0, 0)], "do not fit"),
        ([(0, 4, 0)], "ends after 3 of 4 frames"),
        ([(0, 2**32 - 1, 0)], "do not fit"),
    ],
)
def test_h264_segments_that_do_not_fit_are_refused(segments: list[tuple[int, int, int]], message: str) -> None:
    video = H264Codec().encode_chunk(pictures(3))[16:]
    data = b"".join(struct.pack("<4I", *segment, len(video)) + video for segment in segments)
    with pytest.raises(CodecError, match=message):
        decoded(H264Codec(), data, (8, *IMAGE.shape))


def test_metadata_that_asks_for_the_impossible_is_refused_when_opened(tmp_path: Path) -> None:
    DatasetWriter.create(tmp_path / "d", Schema(1.0, {"a": IMAGE})).close()
    file = tmp_path / "d" / "data" / "a" / "zarr.json"
    good = file.read_text()
    for old, new in (('"quality": 95', '"quality": "best"'), ('"quality": 95', '"speed": 1'), ("uint8", "uint16")):
        assert old in good
        file.write_text(good.replace(old, new))
        with pytest.raises(DatasetError, match="is damaged"):
            Dataset.open(tmp_path / "d")


def test_plain_zarr_opens_every_codec_where_the_package_is_installed(root: Path, tmp_path: Path) -> None:
    """Another process that imports zarr alone. It finds the codecs through the entry points of the install."""
    names = ("jpeg-95", "lossless", "h264-23", "depth", "zstd-5")
    streams = {name: DEPTH if name == "depth" else IMAGE for name in names}
    compression = {name: name for name in names}
    with DatasetWriter.create(tmp_path / "d", Schema(1.0, streams), compression=compression) as writer:
        writer.extend({name: pictures(9, stream) for name, stream in streams.items()})
        writer.save_episode()
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-compile"]
    install = subprocess.run([*command, "--target", tmp_path / "site", root], capture_output=True, text=True)
    assert install.returncode == 0, install.stderr
    program = (
        "import sys, zarr\n"
        f"group = zarr.open({str(tmp_path / 'd')!r}, mode='r')\n"
        "assert not any(name.startswith('robolearn') for name in sys.modules)\n"
        f"print([int(group['data/' + name][:].sum()) for name in {names}])\n"
        "print(sys.modules['robolearn_data'].__file__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sums, module = run.stdout.splitlines()
    dataset = Dataset.open(tmp_path / "d")
    assert json.loads(sums) == [int(dataset.read(name).sum()) for name in names]
    assert module.startswith(str(tmp_path / "site"))
