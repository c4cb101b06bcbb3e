"""Datasets are written and read back exactly, refuse what does not fit, and show readers whole episodes only."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from zarr.storage import LocalStore

from robolearn_data import storage
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError, Folder
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((8, 6, 3), "uint8", "image"),
        "joints": Stream((3,), "float32", "state", names=("a", "b", "c"), unit="rad", wraps=(2,)),
        "gripper": Stream((), "float64"),
        "action": Stream((2,), "float32", "action"),
    },
)

EXACT = {"camera": "lossless"}


def rows(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "camera": rng.integers(0, 256, (steps, 8, 6, 3), dtype=np.uint8),
        "joints": rng.normal(size=(steps, 3)).astype(np.float32),
        "gripper": rng.normal(size=steps),
        "action": rng.normal(size=(steps, 2)).astype(np.float32),
    }


def row(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in rows(1, seed).items()}


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_rows_added_one_by_one_read_back_exactly(tmp_path: Path) -> None:
    episodes = [rows(n, seed) for seed, n in enumerate((5, 1, 300))]
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT, metadata={"rig": "bench"}) as writer:
        for number, values in enumerate(episodes):
            for i in range(len(values["action"])):
                writer.add({name: value[i] for name, value in values.items()})
            assert writer.save_episode({"task": f"t{number}", "success": True}) == number
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.schema == SCHEMA
    assert dataset.metadata == {"rig": "bench"}
    assert dataset.episode_ends.tolist() == [5, 6, 306]
    assert (dataset.episodes, dataset.steps) == (3, 306)
    for number, values in enumerate(episodes):
        assert_same(dataset.episode(number), values)
        info = dataset.episode_info(number)
        assert (info["task"], info["success"]) == (f"t{number}", True)
    assert_same(dataset.episode(-1), episodes[-1])
    assert len({dataset.episode_info(i)["uuid"] for i in range(3)}) == 3


def test_the_caller_may_reuse_the_arrays_it_added(tmp_path: Path) -> None:
    values = row()
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.add(values)
        expected = {name: value.copy()[None] for name, value in values.items()}
        values["camera"][:] = 0
        values["joints"][:] = 0
        writer.save_episode()
    assert_same(Dataset.open(tmp_path / "d").episode(0), expected)


def test_plain_zarr_reads_the_dataset(tmp_path: Path) -> None:
    values = rows(40)
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.extend(values)
        writer.save_episode()
    group = zarr.open_group(str(tmp_path / "d"), mode="r")
    assert group.attrs["robolearn"] == {"format": 1, "schema": SCHEMA.to_json(), "metadata": {}}
    assert np.asarray(group["meta/episode_ends"]).tolist() == [40]
    for name, value in values.items():
        np.testing.assert_array_equal(np.asarray(group[f"data/{name}"]), value)
    camera = group["data/camera"]
    assert isinstance(camera, zarr.Array)
    assert camera.chunks == (1, 8, 6, 3)  # each frame can be read alone
    assert camera.shards is not None


def test_a_second_writer_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    with (
        DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT),
        pytest.raises(DatasetError, match="another process is writing"),
    ):
        DatasetWriter.append(tmp_path / "d")
    DatasetWriter.append(tmp_path / "d").close()


def test_a_closed_writer_refuses_rows(tmp_path: Path) -> None:
    writer = DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT)
    writer.close()
    with pytest.raises(DatasetError, match="closed"):
        writer.add(row())
    with pytest.raises(DatasetError, match="closed"):
        writer.save_episode()


def test_leaving_the_writer_discards_the_unsaved_episode(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.extend(rows(3, 1))
        writer.save_episode()
        writer.extend(rows(9, 2))
    assert Dataset.open(tmp_path / "d").episode_ends.tolist() == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": np.zeros(4, np.float32)}, r"'joints' has shape \(4,\), expected \(3,\)"),
        ({"joints": np.array([0, np.nan, 0], np.float32)}, "'joints' holds NaN"),
        ({"action": np.array([np.inf, 0], np.float32)}, "'action' holds NaN or infinity"),
        ({"action": np.array([1e300, 0])}, "'action' holds NaN or infinity"),
        ({"camera": np.zeros((8, 6, 3), np.float32)}, "'camera' has dtype float32, expected uint8"),
        ({"jionts": np.zeros(3, np.float32)}, "no stream 'jionts'; valid: action, camera, gripper, joints"),
        ({"gripper": None}, "gripper"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_not_taken(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.add(row())
        bad = {name: value for name, value in {**row(1), **change}.items() if value is not None}
        with pytest.raises(SchemaError, match=message):
            writer.add(bad)
        assert writer.pending == 1
        writer.save_episode()
    assert_same(Dataset.open(tmp_path / "d").episode(0), {name: value[None] for name, value in row().items()})


def test_an_episode_without_rows_or_with_info_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        with pytest.raises(SchemaError, match="without rows"):
            writer.save_episode()
        writer.add(row())
        with pytest.raises(SchemaError, match="JSON"):
            writer.save_episode({"score": float("nan")})
        with pytest.raises(SchemaError, match="JSON"):
            writer.save_episode({"score": np.zeros(2)})
        assert writer.save_episode({"score": 1.0}) == 0  # the rows were kept


def test_create_refuses_an_existing_path_and_bad_options(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(DatasetError, match="exists"):
        DatasetWriter.create(tmp_path / "there", SCHEMA)
    with pytest.raises(SchemaError, match="metadata"):
        DatasetWriter.create(tmp_path / "d", SCHEMA, metadata={"a": float("inf")})
    with pytest.raises(SchemaError, match="none named 'tick'"):
        DatasetWriter.create(tmp_path / "d", Schema(1.0, {"tick": Stream((1,))}))
    with pytest.raises(SchemaError, match="do not exist: jionts"):
        DatasetWriter.create(tmp_path / "d", SCHEMA, compression={"jionts": "zstd-5"})
    with pytest.raises(SchemaError, match="'lz77' is unknown; valid: zstd-1, zstd-5, lossless"):
        DatasetWriter.create(tmp_path / "d", SCHEMA, compression={"camera": "lz77"})
    assert [p.name for p in tmp_path.iterdir()] == ["there"]  # nothing half made is left


def test_times_and_holes_stay_aligned_with_the_rows(tmp_path: Path) -> None:
    values = rows(6)
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.extend(rows(4, 9))  # nothing known about time here
        writer.save_episode()
        before = time.monotonic_ns()
        for i in range(6):
            sample = {name: value[i] for name, value in values.items()}
            holes = ("camera",) if i in (0, 3, 4) else ()
            for name in holes:
                del sample[name]
            capture = {} if holes else {"camera": before + 1000 * i - 7}
            writer.add(sample, capture_ns=capture, time_ns=before + 1000 * i, holes=holes)
        writer.save_episode()
        writer.extend(rows(2, 8), time_ns=[5, 6])
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "d")
    tick, camera_time, valid = dataset.times(), dataset.times("camera"), dataset.valid("camera")
    assert tick is not None
    assert camera_time is not None
    assert tick.tolist() == [0] * 4 + [before + 1000 * i for i in range(6)] + [5, 6]
    captured = [0 if i in (0, 3, 4) else before + 1000 * i - 7 for i in range(6)]
    assert camera_time.tolist() == [0] * 4 + captured + [0, 0]
    assert valid.tolist() == [True] * 4 + [False, True, True, False, False, True] + [True] * 2
    assert dataset.valid("joints").all()
    assert dataset.times("joints") is None
    frames = dataset.episode(1)["camera"]
    np.testing.assert_array_equal(frames[[1, 2, 5]], values["camera"][[1, 2, 5]])
    np.testing.assert_array_equal(frames[[3, 4]], values["camera"][[2, 2]])  # a stand-in, marked as invalid
    assert not frames[0].any()
    np.testing.assert_array_equal(dataset.episode(1)["joints"], values["joints"])
    info = dataset.episode_info(1)
    assert abs(info["wall_time_ns"] - time.time_ns()) < 60e9
    assert info["wall_time_ns"] == before + info["wall_offset_ns"]
    assert "wall_time_ns" not in dataset.episode_info(0)


def test_control_steps_must_move_forward_in_time(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.add(row(), time_ns=10)
        with pytest.raises(SchemaError, match="must increase"):
            writer.add(row(), time_ns=10)
        with pytest.raises(SchemaError, match="dtype float64"):
            writer.add(row(), time_ns=11.5)  # pyright: ignore[reportArgumentType]
        assert writer.pending == 1


def test_an_episode_larger_than_the_buffer_is_written_on_the_way_and_not_seen_before_it_is_saved(
    tmp_path: Path,
) -> None:
    values = rows(2000)
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT, buffer_bytes=20_000) as writer:
        for start in range(0, 2000, 100):
            writer.extend({name: value[start : start + 100] for name, value in values.items()})
            assert Dataset.open(tmp_path / "d").episodes == 0
        assert len(list((tmp_path / "d/data/camera/c").iterdir())) > 3
        writer.discard_episode()
        writer.extend({name: value[500:] for name, value in values.items()})
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "d")
    assert_same(dataset.episode(0), {name: value[500:] for name, value in values.items()})
    assert dataset.array("camera").shape[0] == 1500


def test_a_reader_opened_before_an_append_keeps_its_view(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.extend(rows(5, 0))
        writer.save_episode()
        old = Dataset.open(tmp_path / "d")
        writer.extend(rows(5, 1))
        writer.save_episode()
    assert (old.episodes, old.steps) == (1, 5)
    assert_same({name: old.read(name) for name in SCHEMA.streams}, rows(5, 0))
    assert Dataset.open(tmp_path / "d").steps == 10


def _write_many(path: Path, episodes: int) -> None:
    with DatasetWriter.append(path) as writer:
        for seed in range(episodes):
            writer.extend(rows(7 + seed % 5, seed))
            writer.save_episode({"seed": seed})


def test_readers_beside_a_writer_see_only_whole_episodes(tmp_path: Path) -> None:
    DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT).close()
    process = multiprocessing.get_context("spawn").Process(target=_write_many, args=(tmp_path / "d", 40))
    process.start()
    seen = set()
    while process.is_alive():
        dataset = Dataset.open(tmp_path / "d")
        seen.add(dataset.episodes)
        if dataset.episodes:
            assert_same(dataset.episode(-1), rows(7 + (dataset.episodes - 1) % 5, dataset.episodes - 1))
            assert dataset.episode_info(-1)["seed"] == dataset.episodes - 1
        plain = np.asarray(zarr.open_array(str(tmp_path / "d"), path="meta/episode_ends", mode="r")[:])
        assert (np.diff(plain, prepend=0) > 0).all()  # a reader without this package never sees a torn end either
    process.join()
    assert process.exitcode == 0
    assert len(seen) > 2
    assert Dataset.open(tmp_path / "d").episodes == 40


def test_ten_thousand_episodes_open_in_under_half_a_second(tmp_path: Path) -> None:
    schema = Schema(10.0, {"action": Stream((2,), "float32", "action")})
    with DatasetWriter.create(tmp_path / "d", schema, durable=False) as writer:
        writer.extend({"action": np.zeros((3, 2), np.float32)})
        writer.save_episode()
    store = LocalStore(tmp_path / "d")
    many = np.arange(1, 10_001) * 3
    for name, values in (
        ("data/action", np.ones((30_000, 2), np.float32)),
        (storage.INFO, np.array([f'{{"uuid": "{i}"}}' for i in range(10_000)], object)),
        (storage.ENDS, many),
    ):
        array = storage.with_length(storage.open_array(store, name, "r+"), len(values))
        array[:] = values
        storage.set_length(Folder(tmp_path / "d"), name, len(values), durable=False)
    began = time.perf_counter()
    dataset = Dataset.open(tmp_path / "d")
    assert time.perf_counter() - began < 0.5
    assert dataset.episodes == 10_000
    assert dataset.episode_info(9_999) == {"uuid": "9999"}


def test_a_dataset_can_be_pickled_for_loader_processes(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, compression=EXACT) as writer:
        writer.extend(rows(5))
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "d")
    dataset.read("joints")
    copy = pickle.loads(pickle.dumps(dataset))
    assert_same(copy.episode(0), rows(5))


@pytest.mark.parametrize("stream", [Stream((3,)), Stream((20, 30, 3), "uint8", "image")], ids=["vector", "image"])
def test_any_rows_are_taken_in_any_order_and_row_minus_one_is_zeros(tmp_path: Path, stream: Stream) -> None:
    values = np.random.default_rng(0).integers(1, 255, (40, *stream.shape)).astype(stream.dtype)
    with DatasetWriter.create(tmp_path / "d", Schema(10.0, {"a": stream}), compression={"a": "zstd-1"}) as writer:
        writer.extend({"a": values})
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "d")
    wanted = np.array([[39, 3, 3], [0, 20, 21]])
    np.testing.assert_array_equal(dataset.take("a", wanted), values[wanted])
    np.testing.assert_array_equal(dataset.take("a", np.arange(40)), values)
    np.testing.assert_array_equal(dataset.take("a", [5, -1]), np.stack([values[5], np.zeros_like(values[0])]))
    assert dataset.take("a", np.empty((0, 2), np.int64)).shape == (0, 2, *stream.shape)
    for wrong in (-2, 40):
        with pytest.raises(IndexError, match="must be from -1 to 39"):
            dataset.take("a", [wrong])


def test_a_piece_of_a_stream_is_read_and_converted_only_without_loss(tmp_path: Path) -> None:
    schema = Schema(10.0, {"img": Stream((4, 4, 3), "float32", "image"), "action": Stream((1,), kind="action")})
    img = np.random.default_rng(0).integers(0, 256, (700, 4, 4, 3)).astype(np.float32)
    with DatasetWriter.create(tmp_path / "d", schema) as writer:
        writer.extend({"img": img, "action": np.full((700, 1), 0.5, np.float32)})
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "d")
    np.testing.assert_array_equal(dataset.read("img", slice(250, 600)), img[250:600])
    as_bytes = dataset.read("img", dtype="uint8")
    assert as_bytes.dtype == np.uint8
    np.testing.assert_array_equal(as_bytes, img)
    with pytest.raises(SchemaError, match="'action' of float32 cannot be read as uint8"):
        dataset.read("action", dtype="uint8")
    with pytest.raises(SchemaError, match="no stream 'image'; valid: action, img"):
        dataset.read("image")
    with pytest.raises(SchemaError, match="no episode 1; the dataset has 1"):
        dataset.episode(1)


def test_the_fingerprint_follows_values_ends_and_schema(tmp_path: Path) -> None:
    def fingerprint(name: str, values: dict[str, np.ndarray], cuts: tuple[int, ...], schema: Schema = SCHEMA) -> str:
        with DatasetWriter.create(tmp_path / name, schema) as writer:
            for start, stop in zip((0, *cuts), (*cuts, 6), strict=True):
                writer.extend({k: v[start:stop] for k, v in values.items()})
                writer.save_episode()
        return Dataset.open(tmp_path / name).fingerprint()

    changed = rows(6)
    changed["joints"][5, 2] += 1
    first = fingerprint("a", rows(6), (2,))
    assert first == fingerprint("b", rows(6), (2,))
    others = {
        fingerprint("c", rows(6), (3,)),
        fingerprint("d", changed, (2,)),
        fingerprint("e", rows(6), (2,), Schema(21.0, SCHEMA.streams)),
    }
    assert len(others | {first}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no dataset at"),
        (lambda p: p.mkdir(), "is not a robolearn dataset"),
        (lambda p: p.write_text("x"), "is not a robolearn dataset"),
        (lambda p: zarr.create_group(p, zarr_format=3), "is not a robolearn dataset"),
        (lambda p: zarr.create_group(p, zarr_format=2), "is a zarr v2 store; not a robolearn dataset"),
        (
            lambda p: zarr.create_group(p, zarr_format=2).create_array("meta/episode_ends", shape=(1,), dtype="i8"),
            "import it: `robolearn data import --format diffusion_policy",
        ),
        (
            lambda p: zarr.create_group(p, attributes={"robolearn": {"format": 99}}),
            "has dataset format 99, this version reads 1",
        ),
        (lambda p: zarr.create_group(p, attributes={"robolearn": {"format": 1}}), "is damaged"),
    ],
)
def test_what_is_not_a_dataset_is_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "d"
    make(path)
    for attempt in (Dataset.open, DatasetWriter.append):
        with pytest.raises(DatasetError, match=message) as caught:
            attempt(path)
        assert "\n" not in str(caught.value)


class WriterMachine(RuleBasedStateMachine):
    """Any order of adding, saving, discarding, closing and appending gives the dataset that a list would give."""

    @initialize()
    def create(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "d"
        self.schema = Schema(
            5.0, {"frame": Stream((40, 40, 3), "uint8", "image"), "action": Stream((2,), kind="action")}
        )
        self.writer = DatasetWriter.create(
            self.path, self.schema, compression={"frame": "zstd-1"}, durable=False, buffer_bytes=600_000
        )
        self.saved: list[dict[str, np.ndarray]] = []
        self.pending: list[dict[str, np.ndarray]] = []
        self.count = 0

    @rule(steps=st.integers(1, 400))
    def extend(self, steps: int) -> None:
        numbers = np.arange(self.count, self.count + steps)
        self.count += steps
        frame = np.broadcast_to((numbers % 251).astype(np.uint8)[:, None, None, None], (steps, 40, 40, 3))
        action = np.stack([numbers, -numbers], 1).astype(np.float32)
        self.pending.append({"frame": frame, "action": action})
        self.writer.extend(self.pending[-1])

    @rule()
    def save(self) -> None:
        if self.pending:
            self.writer.save_episode({"n": len(self.saved)})
            self.saved.append({k: np.concatenate([p[k] for p in self.pending]) for k in self.pending[0]})
            self.pending = []

    @rule()
    def discard(self) -> None:
        self.writer.discard_episode()
        self.pending = []

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = DatasetWriter.append(self.path, durable=False, buffer_bytes=600_000)
        self.pending = []

    @invariant()
    def readers_see_what_was_saved(self) -> None:
        dataset = Dataset.open(self.path)
        assert dataset.episodes == len(self.saved)
        for number, expected in enumerate(self.saved):
            assert dataset.episode_info(number)["n"] == number
            np.testing.assert_array_equal(dataset.episode(number)["action"], expected["action"])
        if self.saved:
            np.testing.assert_array_equal(dataset.episode(-1)["frame"], self.saved[-1]["frame"])

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.folder.cleanup()


TestWriterMachine = pytest.mark.slow(WriterMachine.TestCase)
TestWriterMachine.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 3000), max_size=2), dtype=st.sampled_from(["uint8", "float32", "int64"]))
def test_no_file_grows_beyond_the_block_size_and_none_holds_less_than_a_row(shape: list[int], dtype: str) -> None:
    stream = Stream(tuple(shape), dtype)
    size = stream.size * np.dtype(dtype).itemsize
    assert storage.rows_per_file(stream) >= 1
    assert storage.rows_per_file(stream) * size <= max(32 * 2**20, size)
