"""The training loop: exact resume, the same loss across processes, runs that cannot be mixed up, bad data refused."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robolearn.cli.main import main
from robolearn.policies.checkpoint import CheckpointError, list_checkpoints, load_policy, load_spec, resolve_checkpoint
from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.policy import Policy
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.training.batches import WindowBatches, free_bytes, place_of_images
from robolearn.training.config import ConfigError, OptimiserConfig, TrainConfig, dump_config, load_config
from robolearn.training.ema import Ema
from robolearn.training.loop import held_out_loss, learning_rate, train
from robolearn.training.metrics import read_metrics
from robolearn.training.processes import processes
from robolearn.training.sources import fingerprint, open_sources, spec_for, statistics_for
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    10.0,
    {
        "state": Stream((3,), names=("x", "y", "angle"), wraps=(2,)),
        "img": Stream((16, 16, 3), "uint8", kind="image"),
        "action": Stream((2,), kind="action"),
    },
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "circle.zarr"
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, SCHEMA) as writer:
        for length in (30, 12, 45):
            for t in range(length):
                state = np.array([np.cos(t / 5), np.sin(t / 5), (t / 5) % (2 * np.pi)], np.float32)
                image = rng.integers(0, 256, (16, 16, 3), np.uint8)
                writer.add({"state": state, "img": image, "action": 100 * state[:2]})
            writer.save_episode({})
    return path


def config(policy: str = "flow", **changes: object) -> TrainConfig:
    parts: PolicyConfig = replace(
        POLICIES[policy](), trunk=UNet1dConfig(widths=(16, 32), condition=16), encoder=EncoderConfig(image_width=16)
    )
    base = TrainConfig(
        policy=parts,
        observe=("state",),
        steps=40,
        batch_size=16,
        checkpoint_every=20,
        optimiser=OptimiserConfig(warmup=10),
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def run(settings: TrainConfig, data: Path | list[str | Path], out: Path, **options: object) -> Policy:
    with processes("cpu") as group:
        paths = data if isinstance(data, list) else [data]
        return train(settings, paths, out, group, **options)  # pyright: ignore[reportArgumentType]


def batches_of(settings: TrainConfig, *paths: Path, **options: object) -> WindowBatches:
    sources = open_sources(paths, settings.held_out)
    return WindowBatches(
        sources,
        spec_for(settings, sources),
        batch_size=settings.batch_size,
        seed=settings.seed,
        weights=settings.weights,
        **options,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
@pytest.mark.parametrize("observe", [("state",), ("state:x,y", "img")])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    policy: str, observe: tuple[str, ...], dataset: Path, tmp_path: Path
) -> None:
    settings = config(policy, observe=observe)
    run(settings, dataset, tmp_path / "whole")
    run(settings, dataset, tmp_path / "parts", stop_at=23)
    run(settings, dataset, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [row["step"] for row in read_metrics(tmp_path / "parts")] == [20, 23, 40]


@pytest.mark.parametrize(("workers", "images"), [(2, "disk"), (0, "disk"), (3, "memory")])
def test_threads_and_the_place_of_pictures_change_nothing(
    workers: int, images: str, dataset: Path, tmp_path: Path
) -> None:
    settings = config(observe=("state", "img"), steps=12, checkpoint_every=6)
    run(settings, dataset, tmp_path / "plain", images="memory")
    run(settings, dataset, tmp_path / "other", images=images, workers=workers, stop_at=7)
    run(settings, dataset, tmp_path / "other", images=images, workers=workers, resume=True)
    plain, other = (load_file(tmp_path / name / "training.safetensors") for name in ("plain", "other"))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_two_processes_compute_the_loss_of_one_with_the_joined_batch(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(config(steps=6)))
    words = ["train", str(dataset), "--config", str(tmp_path / "config.yaml"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, "-m", "robolearn.cli.main", *words, "--out", str(tmp_path / "one")]
    joined = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "robolearn.cli.main", *words, "--out", str(tmp_path / "two")),
    ]
    for command in (alone, joined):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name)[-1]["loss"] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5)
    weights = [load_policy(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_divided_among_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from robolearn.training.processes import Processes

    with pytest.raises(UserError, match="choose a multiple"):
        Processes(0, 3, torch.device("cpu")).share(16)


def test_batches_hold_the_rows_of_their_window(dataset: Path) -> None:
    data = Dataset.open(dataset)
    batches = batches_of(config(observe=("state", "img")), dataset)
    numbers = np.arange(len(batches.windows[0]))
    batch = batches.read(np.zeros_like(numbers), numbers)
    state, action, image = (data.read(name) for name in ("state", "action", "img"))
    episode, present = batches.windows[0].locate(numbers)
    begin = np.array([data.rows(e).start for e in range(3)])[episode]
    end = data.episode_ends[episode]
    wanted = (begin + present)[:, None] + np.arange(-1, 15)
    rows = np.clip(wanted, begin[:, None], end[:, None] - 1)
    np.testing.assert_array_equal(batch.action.numpy(), action[rows])
    np.testing.assert_array_equal(batch.observation["state"].numpy(), state[rows[:, :2]])
    np.testing.assert_array_equal(batch.observation["img"].numpy(), image[rows[:, :2]])
    np.testing.assert_array_equal(batch.is_pad.numpy(), rows != wanted)
    assert batch.is_pad.any()
    assert present.max() == 45 - 8  # as many actions follow as are carried out


def test_pad_after_brings_windows_nearer_to_their_episodes_end(dataset: Path) -> None:
    batches = batches_of(config(), dataset, pad_after=14)
    episode, present = batches.windows[0].locate(np.arange(len(batches.windows[0])))
    assert [present[episode == e].max() for e in range(3)] == [length - 1 for length in (30, 12, 45)]
    with pytest.raises(ConfigError, match=r"pad_after must be from 0 to .* = 14"):
        config(pad_after=15)


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
def test_a_run_with_given_prefixes_and_streaming_blocks_is_resumed_exactly(
    policy: str, dataset: Path, tmp_path: Path
) -> None:
    plain = config(policy, steps=12, checkpoint_every=6, pad_after=14)
    objective = replace(plain.policy.objective, prefix=4, streaming=4)
    settings = replace(plain, policy=replace(plain.policy, objective=objective))
    run(settings, dataset, tmp_path / "whole")
    run(settings, dataset, tmp_path / "parts", stop_at=7)
    run(settings, dataset, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert load_policy(tmp_path / "whole").config.objective == objective


def test_an_action_that_was_not_recorded_is_not_learned(tmp_path: Path) -> None:
    row = {"state": np.zeros(3, np.float32), "img": np.zeros((16, 16, 3), np.uint8), "action": np.ones(2, np.float32)}
    with DatasetWriter.create(tmp_path / "d.zarr", SCHEMA) as writer:
        for t in range(20):
            hole = t == 7
            writer.add({k: v for k, v in row.items() if not (hole and k == "action")}, holes=["action"] if hole else [])
        writer.save_episode()
    batches = batches_of(config(), tmp_path / "d.zarr")
    numbers = np.arange(len(batches.windows[0]))
    steps = batches.windows[0].locate(numbers)[1][:, None] + np.arange(-1, 15)
    expected = (steps < 0) | (steps > 19) | (steps == 7)
    np.testing.assert_array_equal(batches.read(0 * numbers, numbers).is_pad.numpy(), expected)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another robot's recording of the same kind: wider numbers, unnamed components, pictures stored as floats."""
    path = tmp_path_factory.mktemp("data") / "line.zarr"
    streams = {
        "state": Stream((3,), "float64", wraps=(2,)),
        "img": Stream((16, 16, 3), "float32", kind="image"),
        "action": Stream((2,), "float64", kind="action"),
    }
    rng = np.random.default_rng(1)
    with DatasetWriter.create(path, Schema(10.0, streams)) as writer:
        for length in (25, 20, 30, 40):
            state = np.stack([np.linspace(1000, 2000, length), np.zeros(length), np.zeros(length)], 1)
            pictures = rng.integers(0, 256, (length, 16, 16, 3)).astype(np.float32)
            writer.extend({"state": state, "img": pictures, "action": 10 * state[:, :2]})
            writer.save_episode()
    return path


def test_datasets_are_mixed_by_their_weights_and_each_window_is_its_own(dataset: Path, second: Path) -> None:
    settings = config(observe=("state", "img"), weights=(3.0, 1.0), batch_size=64)
    batches = batches_of(settings, dataset, second)
    alone = [batches_of(config(observe=("state", "img")), path) for path in (dataset, second)]
    of_second = 0
    for step in range(5):
        batch = batches.batch(step)
        datasets, numbers = batches.mixture.batch(step, 64)
        of_second += int((datasets == 1).sum())
        assert batch.observation["state"].dtype == batch.action.dtype == torch.float32
        assert batch.observation["img"].dtype == torch.uint8
        for i, (which, number) in enumerate(zip(datasets, numbers, strict=True)):
            expected = alone[which].read(np.array([0]), np.array([number]))
            assert torch.equal(batch.action[i], expected.action[0])
            assert torch.equal(batch.is_pad[i], expected.is_pad[0])
            for name, value in expected.observation.items():
                assert torch.equal(batch.observation[name][i], value[0])
    assert of_second == pytest.approx(5 * 64 / 4, rel=0.3)


def test_streams_with_rates_of_their_own_are_learned_from_at_the_control_steps(tmp_path: Path) -> None:
    streams = {
        "force": Stream((2,), rate_hz=100.0, interpolation="linear"),
        "camera": Stream((16, 16, 3), "uint8", "image", rate_hz=30.0),
        "action": Stream((2,), kind="action"),
    }
    rng = np.random.default_rng(0)
    path = tmp_path / "native.zarr"
    with DatasetWriter.create(path, Schema(10.0, streams), compression={"camera": "zstd-1"}) as writer:
        for begin in (10**9, 5 * 10**8):  # the clock of the second is behind that of the first
            ticks = begin + np.arange(20) * 10**8
            writer.extend({"action": rng.normal(size=(20, 2)).astype(np.float32)}, time_ns=ticks)
            for name, count, value in (("force", 200, rng.normal), ("camera", 60, None)):
                shape = (count, *streams[name].shape)
                values = rng.integers(0, 256, shape, np.uint8) if value is None else value(size=shape).astype("f4")
                times = begin - 10**7 + np.arange(count) * int(1e9 / streams[name].rate_hz)
                writer.add_samples(name, values, times)
            writer.save_episode()
    data = Dataset.open(path)
    settings = config(observe=("force", "camera"), steps=4, checkpoint_every=4)
    batches = batches_of(settings, path, images="disk")
    numbers = np.arange(len(batches.windows[0]))
    batch = batches.read(0 * numbers, numbers)
    episode, present = batches.windows[0].locate(numbers)
    rows = 20 * episode + present
    np.testing.assert_array_equal(batch.observation["camera"][:, 1].numpy(), data.read("camera")[rows])
    after = batch.observation["force"].numpy()  # the present is at a sample, so that nothing later is mixed in
    np.testing.assert_allclose(after[:, 1], data.read("force")[rows], rtol=1e-6)
    run(settings, path, tmp_path / "run", images="disk", workers=1)
    load_policy(tmp_path / "run")


def test_a_dataset_in_an_object_store_trains_the_same_policy(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="needs robolearn[cloud]")
    url = f"memory://{tmp_path.name}/circle.zarr"
    data = Dataset.open(dataset)
    with DatasetWriter.create(url, SCHEMA, compression={"img": "zstd-1"}) as writer:
        for episode in range(data.episodes):
            writer.extend(data.episode(episode))
            writer.save_episode()
    settings = config(observe=("state", "img"), steps=4, checkpoint_every=4)
    run(settings, [dataset], tmp_path / "folder", images="memory")
    run(settings, [url], tmp_path / "url", images="disk", workers=2)
    here, there = (load_file(tmp_path / name / "training.safetensors") for name in ("folder", "url"))
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_processes_read_only_their_share_of_each_batch(dataset: Path, second: Path) -> None:
    whole = batches_of(config(), dataset, second)
    shares = [batches_of(config(), dataset, second, rank=rank, processes=2) for rank in range(2)]
    for step in range(4):
        parts = [share.batch(step) for share in shares]
        assert [len(part.action) for part in parts] == [8, 8]
        assert torch.equal(whole.batch(step).action, torch.cat([part.action for part in parts]))


def test_statistics_and_fingerprint_are_those_of_all_training_episodes(
    dataset: Path, second: Path, tmp_path: Path
) -> None:
    trained = run(config(steps=1, checkpoint_every=1), [dataset, second], tmp_path / "run")
    assert trained.statistics["action"].max[0] == pytest.approx(20_000)
    assert trained.statistics["action"].min[0] == pytest.approx(-100, rel=0.1)
    found = fingerprint(open_sources([dataset, second]))
    assert found in (resolve_checkpoint(tmp_path / "run") / "policy.yaml").read_text()
    assert found not in (fingerprint(open_sources(paths)) for paths in ([dataset], [second], [second, dataset]))
    assert fingerprint(open_sources([dataset])) == Dataset.open(dataset).fingerprint()


def test_held_out_episodes_are_never_trained_on_and_their_loss_is_reported(
    dataset: Path, second: Path, tmp_path: Path
) -> None:
    settings = config(steps=12, checkpoint_every=4, held_out=0.3)
    sources = open_sources([dataset, second], 0.3)
    batches = batches_of(settings, dataset, second)
    for source, trained in zip(sources, batches.windows, strict=True):
        assert source.held_out
        assert set(trained.locate(np.arange(len(trained)))[0]) == set(source.train)
        assert set(source.train).isdisjoint(source.held_out)
    lengths = [np.diff(s.dataset.episode_ends, prepend=0)[list(s.held_out)] - 7 for s in sources]
    assert sum(len(batch.action) for batch in batches.held_out()) == sum(int(n.sum()) for n in lengths)
    values = statistics_for(sources, spec_for(settings, sources))
    assert values["action"].count == sum(
        np.diff(s.dataset.episode_ends, prepend=0)[list(s.train)].sum() for s in sources
    )

    run(settings, [dataset, second], tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run") if "held_out_loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    with processes("cpu") as group:
        again = held_out_loss(load_policy(tmp_path / "run"), batches, group, bf16=False)
    assert again == pytest.approx(rows[-1]["held_out_loss"], rel=1e-6)  # the same windows, noise and times
    run(settings, [dataset, second], tmp_path / "again", workers=2, stop_at=7)
    run(settings, [dataset, second], tmp_path / "again", workers=2, resume=True)
    resumed = [row["held_out_loss"] for row in read_metrics(tmp_path / "again") if "held_out_loss" in row]
    assert [resumed[0], resumed[-1]] == [rows[0]["held_out_loss"], rows[-1]["held_out_loss"]]


def test_datasets_that_do_not_agree_are_told_apart_in_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streams = dict(SCHEMA.streams)
    for name, schema, message in (
        ("rate", Schema(20.0, streams), "has a control rate of 20 Hz"),
        ("missing", Schema(10.0, {"action": streams["action"]}), "has no stream 'state'"),
        ("shape", Schema(10.0, {**streams, "action": Stream((3,), kind="action")}), "has shape (3,)"),
        ("unlike", Schema(10.0, {**streams, "state": replace(streams["state"], names=("x", "z", "angle"))}), "names"),
        ("delta", Schema(10.0, {**streams, "action": Stream((2,), kind="action", relative=(0,))}), "relative (0,)"),
        ("depth", Schema(10.0, {**streams, "img": Stream((16, 16, 1), "uint16", "image")}), "img: its pictures are"),
    ):
        path = tmp_path / name
        with DatasetWriter.create(path, schema, durable=False) as writer:
            writer.extend({n: np.zeros((20, *s.shape), s.dtype) for n, s in schema.streams.items()})
            writer.save_episode()
        paths = [str(path), str(dataset)] if name == "depth" else [str(dataset), str(path)]
        observe = ["state", "img"] if name == "depth" else ["state"]
        assert main(["train", *paths, "--observe", *observe, "--out", str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "run").exists()


def test_mistakes_about_mixing_and_holding_out_are_told_in_one_line(
    dataset: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    for words, message in (
        ([str(dataset), "--weights", "1", "2"], "2 weights for 1 dataset"),
        ([str(dataset), str(second), "--weights", "1", "0"], "weights must be positive"),
        ([str(dataset), "--held-out", "1"], "from 0 to below 1"),
        ([str(dataset), "--workers", "-1"], "must not be negative"),
        ([str(dataset), "--images", "cloud"], "--images"),
        ([], "name at least one dataset"),
    ):
        assert main(["train", *words, *out]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_with_the_datasets_it_began_with(
    dataset: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(dump_config(config(steps=4, checkpoint_every=2)))
    words = ["--config", str(tmp_path / "c.yaml"), "--weights", "2", "1", "--held-out", "0.3", "--workers", "1"]
    assert main(["train", str(dataset), str(second), *words, "--out", str(tmp_path / "run")]) == 0
    assert load_config(tmp_path / "run" / "config.yaml").weights == (2.0, 1.0)
    assert load_config(tmp_path / "run" / "config.yaml").held_out == 0.3
    resume = ["--resume", "--out", str(tmp_path / "run")]
    assert main(["train", str(second), str(dataset), *resume]) == 2
    assert "not those that" in capsys.readouterr().err
    assert main(["train", str(dataset), str(second), *resume, "--images", "disk"]) == 0


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_picture_ends_the_run_with_one_line_that_names_it(
    workers: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.zarr"
    shutil.copytree(dataset, broken)
    (file,) = (path for path in (broken / "data" / "img" / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    file.write_bytes(content)
    words = ["--observe", "state", "img", "--images", "disk", "--workers", workers, "--batch-size", "16"]
    assert main(["train", str(broken), *words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be decoded" in line
    assert "data/img" in line
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_interrupted_run_ends_at_once_with_all_its_threads(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_config(config(observe=("state", "img"), steps=10**6, checkpoint_every=10)))
    words = ["--config", str(tmp_path / "c.yaml"), "--images", "disk", "--workers", "2", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "robolearn.cli.main", "train", str(dataset), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: len(list_checkpoints(tmp_path / "run")) > 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.strip().endswith("robolearn: stopped")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("needed", "free", "place"), [(1000, 10_000, "memory"), (5000, 10_000, "disk"), (1000, 0, "disk")]
)
def test_pictures_are_in_memory_where_they_take_a_modest_part_of_it(
    needed: int, free: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert place_of_images(needed, free) == place
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert place_of_images(needed, free) == "disk"
    assert 2**28 < free_bytes() < 2**46


def test_a_dataset_without_episodes_is_refused(tmp_path: Path) -> None:
    DatasetWriter.create(tmp_path / "d.zarr", SCHEMA).close()
    with pytest.raises(UserError, match="no episodes to train on"):
        run(config(), tmp_path / "d.zarr", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_gives_the_same_chunks_as_the_policy_it_was_saved_from(dataset: Path, tmp_path: Path) -> None:
    trained = run(config(observe=("state", "img")), dataset, tmp_path / "run")
    loaded = load_policy(tmp_path / "run")
    seen = {"state": torch.rand(3, 2, 3), "img": torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8)}
    noise = loaded.noise(3)
    with torch.inference_mode():
        expected = trained.sample(trained.encode(seen), noise=noise)
        assert torch.equal(loaded.sample(loaded.encode(seen), noise=noise), expected)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["0000020", "0000040"]
    assert load_spec(tmp_path / "run") == loaded.spec
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000


def test_a_damaged_checkpoint_is_named(dataset: Path, tmp_path: Path) -> None:
    run(config(steps=2, checkpoint_every=2), dataset, tmp_path / "run")
    folder = resolve_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="--sampler is for diffusion"):
        load_policy(folder, sampler="ddpm")
    statistics = folder / "statistics.json"
    original = statistics.read_text()
    changed = json.loads(original)
    changed["action"]["max"][0] += 1
    statistics.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="changed after training"):
        load_policy(folder)
    statistics.write_text(original)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_policy(folder)


def test_a_run_folder_in_use_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    run(config(steps=2), dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        run(config(steps=2), dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match="differ"):
        run(config(steps=3), dataset, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observe": ("velocity",)}, "valid: state, img"),
        ({"observe": ("state:z",)}, "valid: x, y, angle"),
        ({"observe": ("action",)}, "valid: state, img"),
    ],
)
def test_streams_that_do_not_exist_are_named_with_the_valid_ones(
    changes: dict[str, tuple[str, ...]], message: str, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config("flow", **changes), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(dataset: Path, tmp_path: Path) -> None:
    wild = OptimiserConfig(lr=1e12, warmup=1, clip=1e12)
    with pytest.raises(UserError, match="not finite"):
        run(config(steps=200, checkpoint_every=500, optimiser=wild), dataset, tmp_path / "run")
    assert not list_checkpoints(tmp_path / "run")


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_the_checkpoints_before(
    dataset: Path, tmp_path: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = small_disk(1) / "run"
    (tmp_path / "c.yaml").write_text(dump_config(config(steps=200, checkpoint_every=2)))
    code = main(["train", str(dataset), "--config", str(tmp_path / "c.yaml"), "--out", str(run_folder)])
    assert code == 2
    assert "the disk is full" in capsys.readouterr().err.strip().splitlines()[-1]
    kept = list_checkpoints(run_folder)
    assert kept
    for checkpoint in kept:
        load_policy(checkpoint)
    assert not list(run_folder.rglob("*.partial"))


def test_components_that_never_vary_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DatasetWriter.create(tmp_path / "d.zarr", SCHEMA) as writer:
        for t in range(20):
            image = np.zeros((16, 16, 3), np.uint8)
            writer.add({"state": np.array([t, 3, 0], np.float32), "img": image, "action": np.array([t, 1], np.float32)})
        writer.save_episode()
    run(config(steps=1), tmp_path / "d.zarr", tmp_path / "run")
    assert "centred but not scaled: state.y, state.angle, action[1]" in " ".join(capsys.readouterr().out.split())


def test_evaluation_without_a_world_or_in_one_that_does_not_fit_is_refused_before_training(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(dataset), "--observe", "state", "--out", str(tmp_path / "run"), "--eval-every", "5"]
    for extra, message in (
        ([], "needs a world"),
        (["--world", "pusht"], "shape"),
        (["--world", "moon"], "valid: pusht"),
    ):
        assert main([*words, *extra]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--resume"], ["--config", "nowhere.yaml"], ["--preset", "lift-state"]])
def test_what_is_missing_is_named_in_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "no.zarr"), "--out", str(tmp_path / "run"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "no" in lines[0]


def test_evaluation_during_training_is_logged(dataset: Path, tmp_path: Path) -> None:
    from robolearn_sim.worlds import make_world

    path = tmp_path / "pusht.zarr"
    world = make_world("pusht")
    with DatasetWriter.create(path, world.spec.schema) as writer:
        seen = world.reset(0)
        for _ in range(20):
            step = world.step(np.array([256, 256], np.float32))
            writer.add({**seen, "action": np.array([256, 256], np.float32)})
            seen = step.observation
        writer.save_episode({})
    settings = config(steps=4, checkpoint_every=4, eval_every=2, eval_episodes=2)
    run(settings, path, tmp_path / "run", make_world=functools.partial(make_world, "pusht", max_steps=20))
    evaluated = [row for row in read_metrics(tmp_path / "run") if "success_rate" in row]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert all(0 <= row["score"] <= 1 for row in evaluated)


def test_configuration_survives_yaml_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for settings in (
        config(),
        config("diffusion"),
        TrainConfig(observe=("a", "b:x"), weights=(1.0, 2.5), held_out=0.1),
    ):
        path.write_text(dump_config(settings))
        assert load_config(path) == settings
    for text, message in (
        ("stepz: 3", "unknown key stepz; valid: optimiser, weights"),
        ("policy: {trunk: {kind: unet1d, width: 3}}", "unknown key policy.trunk.width"),
        ("policy: {trunk: {kind: resnet}}", "unet1d"),
        ("steps: many", "steps"),
        ("steps: 0", "at least 1"),
        ("steps: [", "not YAML"),
        ("- 3", "c.yaml"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            load_config(path)
        assert "\n" not in str(error.value)


def test_average_forgets_the_start_and_then_follows_slowly() -> None:
    module = torch.nn.Linear(1, 1)
    ema = Ema(module, power=0.75, max_decay=0.9999)
    assert ema.decay(0) == 0
    assert ema.decay(9999) == pytest.approx(0.999)
    assert ema.decay(10**9) == 0.9999
    with torch.no_grad():
        module.weight.fill_(3.0)
    ema.update(module, 0)
    assert float(ema.module.weight) == 3.0  # pyright: ignore[reportArgumentType, reportCallIssue]
    with torch.no_grad():
        module.weight.fill_(4.0)
    ema.update(module, 9999)
    assert float(ema.module.weight) == pytest.approx(3.001)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_learning_rate_rises_linearly_and_falls_to_zero() -> None:
    optimiser = OptimiserConfig(lr=1.0, warmup=10)
    rates = [learning_rate(optimiser, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
