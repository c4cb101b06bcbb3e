"""Statistics are those of numpy over the whole data, and components that do not vary are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.statistics import (
    StreamStatistics,
    degenerate_components,
    joint_statistics,
    statistics,
    statistics_from_json,
    statistics_to_json,
)
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    10.0,
    {
        "arm": Stream((3,), "float32", names=("x", "y", "grip")),
        "points": Stream((2, 2), "float64", names=("u", "v")),
        "count": Stream((), "int64", "info"),
        "camera": Stream((4, 4, 3), "uint8", "image"),
        "action": Stream((2,), "float32", "action"),
    },
)
LENGTHS = (40, 300, 25, 900)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("statistics") / "d"
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, SCHEMA, durable=False) as writer:
        for n in LENGTHS:
            writer.extend(
                {
                    "arm": np.stack([rng.normal(1000, 1, n), rng.normal(0, 1e-3, n), np.full(n, 0.04)], 1).astype("f4"),
                    "points": np.stack([rng.normal(size=(n, 2)), 5 + rng.uniform(0, 5e-5, (n, 2))], 1),
                    "count": rng.integers(0, 9, n),
                    "camera": np.zeros((n, 4, 4, 3), np.uint8),
                    "action": rng.exponential(size=(n, 2)).astype("f4"),
                }
            )
            writer.save_episode()
    return Dataset.open(path)


@pytest.mark.parametrize("episodes", [None, [1], [3, 0]])
def test_statistics_equal_those_of_numpy(dataset: Dataset, episodes: list[int] | None) -> None:
    found = statistics(dataset, episodes=episodes)
    assert set(found) == {"arm", "points", "count", "action"}  # images have a fixed scale
    chosen = range(dataset.episodes) if episodes is None else episodes
    for name, value in found.items():
        whole = np.concatenate([dataset.episode(e)[name] for e in chosen]).astype(np.float64)
        assert value.count == len(whole)
        np.testing.assert_array_equal(value.min, whole.min(0))
        np.testing.assert_array_equal(value.max, whole.max(0))
        np.testing.assert_allclose(value.mean, whole.mean(0), rtol=1e-12)
        np.testing.assert_allclose(value.std, whole.std(0), rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(value.q01, np.quantile(whole, 0.01, axis=0))
        np.testing.assert_array_equal(value.q99, np.quantile(whole, 0.99, axis=0))
        assert value.min.shape == SCHEMA.streams[name].shape


def test_statistics_of_several_datasets_are_those_of_their_chosen_rows_together(
    dataset: Dataset, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    other = Schema(10.0, {"action": Stream((2,), "float64", "action")})
    with DatasetWriter.create(tmp_path / "other", other, durable=False) as writer:
        for _ in range(2):
            writer.extend({"action": rng.normal(3, 5, (70, 2))})
            writer.save_episode()
    second = Dataset.open(tmp_path / "other")
    found = joint_statistics([(dataset, [1, 3]), (second, [0])], ["action"])["action"]
    parts = [dataset.episode(1), dataset.episode(3), second.episode(0)]
    whole = np.concatenate([part["action"] for part in parts]).astype(np.float64)
    assert found.count == len(whole)
    np.testing.assert_array_equal(found.max, whole.max(0))
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, whole.std(0), rtol=1e-9)
    np.testing.assert_array_equal(found.q99, np.quantile(whole, 0.99, axis=0))
    with pytest.raises(SchemaError, match="no stream 'arm'"):
        joint_statistics([(dataset, None), (second, None)], ["arm"])


def test_quantiles_of_a_long_dataset_come_from_evenly_spaced_rows(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robolearn_data.statistics._QUANTILE_ROWS", 400)
    found = statistics(dataset, ["action"])["action"]
    whole = dataset.read("action").astype(np.float64)
    np.testing.assert_array_equal(found.q99, np.quantile(whole[::4], 0.99, axis=0))  # 1265 rows: every 4th
    np.testing.assert_array_equal(found.max, whole.max(0))


def test_components_that_do_not_vary_are_named(dataset: Dataset) -> None:
    found = statistics(dataset)
    assert degenerate_components(SCHEMA.streams, found) == ["arm.grip", "points[1, u]", "points[1, v]"]
    assert degenerate_components(SCHEMA.streams, found, tolerance=0.1)[:2] == ["arm.y", "arm.grip"]


def test_a_component_far_from_zero_that_moves_within_float32_resolution_does_not_vary() -> None:
    def spread(low: float, high: float) -> bool:
        value = {k: np.array([low]) for k in ("min", "mean", "q01")} | {k: np.array([high]) for k in ("max", "q99")}
        return bool(StreamStatistics(count=2, std=np.array([0.0]), **value).degenerate()[0])

    assert spread(1e6, 1e6 + 0.5)
    assert not spread(1e6, 1e6 + 2)
    assert spread(0, 9e-5)
    assert not spread(0, 2e-4)


def test_rows_that_are_holes_are_not_counted(tmp_path: Path) -> None:
    schema = Schema(10.0, {"force": Stream((1,)), "action": Stream((1,), kind="action")})
    with DatasetWriter.create(tmp_path / "d", schema) as writer:
        for i in range(10):
            action = {"action": np.array([i], np.float32)}
            if i % 2:
                writer.add({"force": np.array([i], np.float32), **action})
            else:
                writer.add(action, holes=["force"])
        writer.save_episode()
    found = statistics(Dataset.open(tmp_path / "d"))
    assert (found["force"].count, found["action"].count) == (5, 10)
    assert found["force"].mean.tolist() == [5.0]
    assert found["force"].min.tolist() == [1.0]


def test_json_gives_the_same_statistics_back(dataset: Dataset) -> None:
    found = statistics(dataset)
    text = json.dumps(statistics_to_json(found), allow_nan=False)
    for name, value in statistics_from_json(json.loads(text)).items():
        for field in ("count", "min", "max", "mean", "std", "q01", "q99"):
            np.testing.assert_array_equal(getattr(value, field), getattr(found[name], field))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min": [float("nan")]}, "not finite"),
        ({"min": [0.0, 1.0]}, "unequal shapes"),
        ({"min": "low"}, "cannot be read"),
        ({"count": None}, "cannot be read"),
        ({"median": [0.0]}, "have keys"),
    ],
)
def test_statistics_that_are_damaged_are_refused(change: dict[str, object], message: str) -> None:
    whole = {"count": 3, **{k: [0.5] for k in ("min", "max", "mean", "std", "q01", "q99")}}
    StreamStatistics.from_json(whole)
    with pytest.raises(SchemaError, match=message):
        StreamStatistics.from_json({**whole, **change})


def test_images_and_empty_choices_are_refused(dataset: Dataset) -> None:
    with pytest.raises(SchemaError, match="'camera' holds images"):
        statistics(dataset, ["camera"])
    with pytest.raises(SchemaError, match="no valid row"):
        statistics(dataset, episodes=[])
    with pytest.raises(SchemaError, match="no stream 'arn'"):
        statistics(dataset, ["arn"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.floats(-1e6, 1e6), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_the_spread_survives_a_large_offset(tmp_path_factory, offset: float, scale: float, seed: int) -> None:
    values = offset + scale * np.random.default_rng(seed).normal(size=(1000, 1))
    path = tmp_path_factory.mktemp("offset") / "d"
    with DatasetWriter.create(path, Schema(1.0, {"a": Stream((1,), "float64")}), durable=False) as writer:
        writer.extend({"a": values})
        writer.save_episode()
    np.testing.assert_allclose(statistics(Dataset.open(path))["a"].std, values.std(0), rtol=1e-6)
