"""A dry run says what a slow, obvious comparison says; and a rig shows a policy what its training windows showed it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robolearn.cli.deploy_dry_run import run_dry
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.contracts import Batch
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn_data.dataset import Dataset
from robolearn_data.reading import View, WindowReader
from robolearn_data.schema import Schema, Stream
from robolearn_data.statistics import statistics
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.dry_run import DryRunError, DryRunOptions, dry_run, replayed
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.recorder import sample_fields
from robolearn_deploy.rig_senses import SESSION_FIELDS, RigHandles, RigSenses
from robolearn_deploy.servo_process import tick_fields
from robolearn_hardware.clock import now_ns
from robolearn_hardware.ring import Ring

CONTROL_HZ, PERIOD_NS = 20.0, 50_000_000
TO, TP, TA = 2, 8, 4
ACTION = Stream((2,), kind="action", names=("reach", "turn"), unit="m,rad")
PLAIN = Schema(CONTROL_HZ, {"state": Stream((2,), names=("phase", "other")), "action": ACTION})
SPEC = PolicySpec({"state": PLAIN.streams["state"]}, ACTION, CONTROL_HZ, TO, TP, TA)


def plain_dataset(path: Path, lengths: tuple[int, ...] = (40, 3, 57), *, shift: float = 0.0) -> Dataset:
    """The action is a function of the state, and differs from step to step."""
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, PLAIN, durable=False) as writer:
        for length in lengths:
            phase = rng.uniform(0, 6) + 0.8 * np.arange(length)
            state = np.stack([np.sin(phase), np.cos(phase)], 1).astype(np.float32) + np.float32(shift)
            action = np.stack([0.3 * np.sin(phase), 2 * np.cos(phase)], 1).astype(np.float32)
            writer.extend({"state": state, "action": action})
            writer.save_episode()
    return Dataset.open(path)


class Recall:
    """Knows what was recorded, and answers it with an error of its own."""

    def __init__(self, dataset: Dataset, *, error: float = 0.0, nan_at: int = -1) -> None:
        self.spec = SPEC
        self._state, self._action = dataset.read("state"), dataset.read("action")
        self._ends, self._error, self._nan_at = dataset.episode_ends, error, nan_at
        self.requests: list[Request] = []

    def infer(self, request: Request) -> Iterator[Reply]:
        self.requests.append(request)
        row = int(np.flatnonzero((self._state == request.observation["state"][-1]).all(1))[0])
        end = self._ends[np.searchsorted(self._ends, row, side="right")]
        rows = np.minimum(np.arange(row - TO + 1, row - TO + 1 + TP), end - 1)
        actions = self._action[rows] + np.float32(self._error) * np.arange(TP, dtype=np.float32)[:, None]
        if request.sequence == self._nan_at and len(self.requests) > 3:
            actions[5, 1] = np.nan
        yield Reply(actions, TP)

    def close(self) -> None: ...


def test_errors_are_those_of_the_formula_in_units_and_over_the_spread_and_baselines_too(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path / "d.zarr")
    report = replayed(Recall(dataset, error=0.01), dataset, 1000).report()
    # Index 1 is the first action carried out: its error is 0.01, that of index i is 0.01 i.
    done, before, first, chunk = [], [], [], []
    for episode in range(dataset.episodes):
        actions = dataset.read("action", dataset.rows(episode)).astype(np.float64)
        for step in [s for s in range(len(actions)) if s % TA == 0 and (s + TA <= len(actions) or s == 0)]:
            ahead = actions[step : step + TP - TO + 1]
            first.append(0.01)
            chunk += [0.01 * (i + 1) for i in range(len(ahead))]
            done.append(ahead[:TA])
            before.append(actions[step - 1] if step else None)
    spread = np.concatenate(done).std(0)
    compared = [(a, b) for a, b in zip(done, before, strict=True) if b is not None]
    assert report.inferences == len(first)
    assert [c.first for c in report.components] == pytest.approx([0.01, 0.01], rel=1e-4)
    assert [c.chunk for c in report.components] == pytest.approx([np.mean(chunk)] * 2, rel=1e-4)
    assert [c.spread for c in report.components] == pytest.approx(spread, rel=1e-6)
    repeat = np.concatenate([np.abs(a - b) for a, b in compared]).mean(0) / spread
    mean = np.abs(np.concatenate([a for a, _ in compared]) - np.concatenate(done).mean(0)).mean(0) / spread
    assert report.relative["repeat"] == pytest.approx(repeat.mean(), rel=1e-6)
    assert report.relative["mean"] == pytest.approx(mean.mean(), rel=1e-6)
    assert report.relative["policy"] == pytest.approx(np.mean(0.025 / spread), rel=1e-4)
    assert report.along[0] == pytest.approx(np.mean(0.01 / spread), rel=1e-4)
    assert [c.name for c in report.components] == ["action.reach", "action.turn"]
    assert [c.unit for c in report.components] == ["m", "rad"]
    assert not report.fault


def test_the_policy_is_asked_as_in_deployment_one_request_after_another(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path / "d.zarr")
    policy = Recall(dataset)
    report = replayed(policy, dataset, 7).report()
    asked = policy.requests[3:]  # warm-up
    assert [r.sequence for r in asked] == list(range(7))
    assert all(r.committed is None and r.observation["state"].shape == (TO, 2) for r in asked)
    state = dataset.read("state")
    np.testing.assert_array_equal(asked[0].observation["state"], state[[0, 0]])  # an episode's edge repeats
    assert report.inferences == 7


def test_a_chunk_with_nan_is_counted_named_and_kept_out_of_the_errors(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path / "d.zarr")
    report = replayed(Recall(dataset, nan_at=2), dataset, 20).report()
    assert report.not_finite == 1
    assert report.relative["policy"] == 0
    assert "1 of 20 chunks hold NaN" in report.fault


@pytest.mark.parametrize(("error", "words"), [(1.0, "repeating the last action"), (0.001, "")])
def test_a_policy_no_better_than_a_baseline_is_said_to_be_so(tmp_path: Path, error: float, words: str) -> None:
    dataset = plain_dataset(tmp_path / "d.zarr")
    report = replayed(Recall(dataset, error=error), dataset, 1000).report()
    assert words in report.fault
    assert bool(words) == bool(report.fault)
    assert str(report).startswith("data ")


def test_the_worst_episode_is_named(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path / "d.zarr")

    class OneBad(Recall):
        def infer(self, request: Request) -> Iterator[Reply]:
            for reply in super().infer(request):
                row = int(np.flatnonzero((self._state == request.observation["state"][-1]).all(1))[0])
                yield Reply(reply.actions + np.float32(row >= 43), TP)

    assert replayed(OneBad(dataset), dataset, 1000).report().worst[0][0] == 2


def test_actions_that_never_change_and_too_few_questions_are_mistakes(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "flat.zarr", PLAIN, durable=False) as writer:
        state = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
        writer.extend({"state": state, "action": np.ones((20, 2), np.float32)})
        writer.save_episode()
    flat = Dataset.open(tmp_path / "flat.zarr")
    with pytest.raises(DryRunError, match="never change"):
        replayed(Recall(flat), flat, 10).report()
    with pytest.raises(DryRunError, match="give 1 or more"):
        replayed(Recall(flat), flat, 0)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dataset, a policy that has learned it, and one that has not learned anything."""
    folder = tmp_path_factory.mktemp("fitted")
    dataset = plain_dataset(folder / "d.zarr", (40,) * 6)
    torch.manual_seed(0)
    config = replace(POLICIES["flow"](), trunk=UNet1dConfig(widths=(16, 32), condition=16))
    assert isinstance(config, PolicyConfig)
    policy = Policy(SPEC, statistics(dataset, ["state", "action"]), config)
    save_policy(policy.eval(), folder / "untrained", dataset_fingerprint=dataset.fingerprint())
    views = {"state": View("state", TO), "action": View("action", TP, ahead=TP - TO)}
    values, missing = WindowReader(dataset, views).read(np.repeat(np.arange(6), 16), np.tile(np.arange(0, 32, 2), 6))
    batch = Batch(
        {"state": torch.from_numpy(values["state"])},
        torch.from_numpy(values["action"]),
        torch.from_numpy(missing["action"]),
    )
    optimiser = torch.optim.AdamW(policy.train().parameters(), 5e-3)
    for step in range(100):
        draws = policy.draw(96, torch.Generator().manual_seed(step))
        loss = policy.loss(batch, draws=draws).total()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_policy(policy.eval(), folder / "trained", dataset_fingerprint=dataset.fingerprint())
    return folder / "d.zarr", folder / "trained", folder / "untrained"


def test_a_trained_checkpoint_passes_and_an_untrained_one_does_not(
    fitted: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, trained, untrained = fitted
    assert run_dry(trained, dataset, inferences=40, json_path=tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert "trained on this dataset" in out
    assert "warning" not in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["relative"]["policy"] < 0.5 * found["relative"]["repeat"]
    assert run_dry(untrained, dataset, inferences=40) == 1
    assert "no better than" in capsys.readouterr().err


def test_a_dataset_that_the_checkpoint_was_not_trained_on_is_said_in_words(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plain_dataset(tmp_path / "other.zarr", (30,), shift=1.0)
    report = dry_run(fitted[1], tmp_path / "other.zarr", DryRunOptions(5))
    assert "another than the checkpoint was trained on" in report.belongs
    assert any("not the dataset that the checkpoint was trained on" in w for w in report.warnings)
    assert any(w.startswith("state.phase is beyond what the policy was trained on") for w in report.warnings)


def test_streams_of_another_meaning_are_warned_of_and_of_another_rate_refused(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    degrees = replace(ACTION, unit="m,deg")
    for name, schema in {
        "degrees": Schema(CONTROL_HZ, {**PLAIN.streams, "action": degrees}),
        "slow": Schema(10.0, PLAIN.streams),
    }.items():
        with DatasetWriter.create(tmp_path / name, schema, durable=False) as writer:
            rows = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
            writer.extend({"state": rows, "action": rows})
            writer.save_episode()
    warnings = dry_run(fitted[1], tmp_path / "degrees", DryRunOptions(2)).warnings
    assert "stream 'action' has unit 'm,deg' in the dataset and 'm,rad' in the checkpoint" in warnings
    with pytest.raises(SpecError, match="20 Hz"):
        dry_run(fitted[1], tmp_path / "slow")


# Parity: what a rig shows a policy is what its training windows showed it.

RATES = {"state": 100.0, "front": 30.0, "wrench": 250.0}


def rig_schema(interpolation: str) -> Schema:
    state = Stream((3,), rate_hz=RATES["state"], interpolation=interpolation)  # pyright: ignore[reportArgumentType]
    return Schema(
        CONTROL_HZ,
        {
            "state": state,
            "front": Stream((4, 6, 3), "uint8", "image", rate_hz=RATES["front"]),
            "wrench": Stream((6,), rate_hz=RATES["wrench"]),
            "instruction": Stream((16,), "uint8", "text", rate_hz=1.0),
            "action": Stream((3,), kind="action"),
        },
    )


def record_rig(path: Path, interpolation: str = "previous", *, late_ns: int = 0, begin_ns: int) -> Dataset:
    """Cameras and forces that come when they like, states every 10 ms, of which one is ``late_ns`` before each control
    step; all differ from sample to sample."""
    rng, schema, length = np.random.default_rng(1), rig_schema(interpolation), 30
    lossless = {"front": "zstd-1"}
    with DatasetWriter.create(path, schema, compression=lossless, durable=False) as writer:
        ticks = begin_ns + np.arange(length) * PERIOD_NS
        writer.extend({"action": rng.normal(size=(length, 3)).astype(np.float32)}, time_ns=ticks)
        for name, rate in RATES.items():
            stream, count = schema.streams[name], int(length / CONTROL_HZ * rate)
            period = round(1e9 / rate)
            times = begin_ns - period + np.arange(count) * period
            times += -late_ns + period if name == "state" else rng.integers(0, period // 2, count)
            values = rng.integers(0, 256, (count, *stream.shape)) if name == "front" else _walk(rng, count, stream.size)
            writer.add_samples(name, values.astype(stream.dtype), times)
        for second, text in enumerate(("pick it up", "put it down")):
            value = schema.streams["instruction"].check("instruction", text)
            writer.add_samples("instruction", value[None], [begin_ns + second * 700_000_000 - 1])
        writer.save_episode()
    return Dataset.open(path)


def _walk(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    return np.cumsum(rng.normal(size=(count, size)), axis=0)


def spec_of(dataset: Dataset) -> PolicySpec:
    streams = {n: s for n, s in dataset.schema.streams.items() if n != "action"}
    return PolicySpec(streams, dataset.schema.streams["action"], CONTROL_HZ, TO, TP, TA)


def as_deployed(dataset: Dataset, step: int) -> dict[str, np.ndarray]:
    """The samples that had been captured by a control step, published into rings and read as on a rig."""
    spec = spec_of(dataset)
    ticks = dataset.times()
    assert ticks is not None
    rings = {
        "chunks": Ring.create(chunk_fields(spec.action, TP), 4),
        "ticks": Ring.create(tick_fields(3), 4),
        "session": Ring.create(SESSION_FIELDS, 4),
    }
    streams = {name: Ring.create(sample_fields(stream), 1024) for name, stream in spec.observation.items()}
    try:
        rings["session"].publish({"episode": 0, "stop": 0})
        for name, ring in streams.items():
            samples = dataset.samples(name, 0)
            for time, value in zip(samples.time.tolist(), np.asarray(dataset.array(name)[samples.rows]), strict=True):
                if time <= ticks[step]:
                    ring.publish({"capture_ns": time, "received_ns": time, "value": value})
        handles = {name: ring.handle for name, ring in streams.items()}
        senses = RigSenses(
            RigHandles(handles, rings["chunks"].handle, rings["ticks"].handle, rings["session"].handle), spec
        )
        try:
            assert senses.newest() is not None
            observation = senses.observe()
            assert observation is not None
            return observation
        finally:
            senses.close()
    finally:
        for ring in (*rings.values(), *streams.values()):
            ring.close()


def as_trained(dataset: Dataset, step: int) -> dict[str, np.ndarray]:
    spec = spec_of(dataset)
    views = {name: View(name, spec.obs_horizon) for name in spec.observation}
    values, _ = WindowReader(dataset, views).read(np.array([0]), np.array([step]))
    return {name: value[0] for name, value in values.items()}


def soon() -> int:
    """So far ahead that on a busy machine no sample is taken for that of a silent device."""
    return now_ns() + 60_000_000_000


@pytest.mark.parametrize("step", [1, 2, 7, 16, 29])
def test_a_rig_shows_bit_for_bit_what_the_training_window_of_a_control_step_holds(tmp_path: Path, step: int) -> None:
    """States, pictures, forces and texts at rates of their own, To = 2: a frame that slips shows."""
    dataset = record_rig(tmp_path / "rig.zarr", begin_ns=soon())
    deployed, trained = as_deployed(dataset, step), as_trained(dataset, step)
    assert deployed.keys() == trained.keys()
    for name, value in trained.items():
        assert deployed[name].dtype == value.dtype
        np.testing.assert_array_equal(deployed[name], value, err_msg=name)


def test_the_parity_test_would_see_a_picture_that_slips_by_one_frame(tmp_path: Path) -> None:
    dataset = record_rig(tmp_path / "rig.zarr", begin_ns=soon())
    slipped = as_deployed(dataset, 15)["front"]
    assert not np.array_equal(slipped, as_trained(dataset, 16)["front"])


def test_of_an_interpolated_state_the_present_is_equal_and_the_past_is_off_by_less_than_a_sample(
    tmp_path: Path,
) -> None:
    """Training blends the two samples around an instant of the past, a rig takes the newer of those captured by then,
    and counts back from the state's capture and not from the control step. Measured here, where states are captured
    4 ms before each step: off by 0.43 of the change from sample to sample; with states captured at the step by 0."""
    dataset = record_rig(tmp_path / "rig.zarr", "linear", late_ns=4_000_000, begin_ns=soon())
    samples = dataset.array("state")[: dataset.samples_before("state", 1)]
    largest = np.abs(np.diff(samples, axis=0)).max()
    worst = 0.0
    for step in (2, 9, 17):
        deployed, trained = as_deployed(dataset, step)["state"], as_trained(dataset, step)["state"]
        np.testing.assert_array_equal(deployed[-1], trained[-1])
        worst = max(worst, float(np.abs(deployed[0] - trained[0]).max()))
    assert 0 < worst <= largest


def test_with_states_that_come_when_they_like_a_rig_shows_the_present_exactly_and_the_past_between_samples(
    tmp_path: Path,
) -> None:
    """States every 10 ms, 0.1 ms earlier or later, 3 rad/s; steps are stamped with the capture of their state."""
    begin, rng, length = soon(), np.random.default_rng(3), 150
    capture = begin + np.arange(length) * 10_000_000 + rng.integers(-100_000, 100_000, length)
    seconds = np.arange(length) * 0.01
    state = np.stack([np.sin(3 * seconds), np.cos(2 * seconds), np.sin(seconds)], 1).astype(np.float32)
    streams = {n: s for n, s in rig_schema("linear").streams.items() if n in ("state", "action")}
    with DatasetWriter.create(tmp_path / "rig.zarr", Schema(CONTROL_HZ, streams), durable=False) as writer:
        action = rng.normal(size=(length // 5, 3)).astype(np.float32)
        writer.extend({"action": action}, time_ns=capture[::5])
        writer.add_samples("state", state, capture)
        writer.save_episode()
    dataset = Dataset.open(tmp_path / "rig.zarr")
    for step in range(2, 28):
        deployed, trained = as_deployed(dataset, step)["state"], as_trained(dataset, step)["state"]
        np.testing.assert_array_equal(deployed[-1], trained[-1])
        assert np.abs(deployed[0] - trained[0]).max() < 3 * 0.0004  # rad: 0.2 ms on each side
