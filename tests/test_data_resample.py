"""Values between samples: exact at the samples, in between what the stream's schema says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robolearn_data.resample import blend, places
from robolearn_data.schema import Interpolation, SchemaError, Stream

TIMES = np.array([10, 20, 40], np.int64) * 10**6


def value(samples: np.ndarray, at: float, how: Interpolation) -> np.ndarray:
    before, share = places(TIMES, np.array([int(at * 10**6)]), how)
    after = np.minimum(before + 1, len(samples) - 1)
    return blend(samples[before], samples[after], share, how)[0]


def test_previous_never_looks_ahead_and_nearest_takes_the_closer_one() -> None:
    samples = np.array([1.0, 2.0, 4.0])[:, None]
    for at, previous, nearest, linear in (
        (0, 1, 1, 1),
        (10, 1, 1, 1),
        (19.999, 1, 2, 1.9999),
        (20, 2, 2, 2),
        (29, 2, 2, 2.9),
        (31, 2, 4, 3.1),
        (40, 4, 4, 4),
        (99, 4, 4, 4),
    ):
        assert value(samples, at, "previous")[0] == previous
        assert value(samples, at, "nearest")[0] == nearest
        assert value(samples, at, "linear")[0] == pytest.approx(linear)


rotations = hnp.arrays(np.float64, 3, elements=st.floats(-1.7, 1.7))


@settings(deadline=None)
@given(rotations, st.floats(0, 1))
def test_rotation_vectors_turn_at_constant_speed_about_one_axis(rotation: np.ndarray, share: float) -> None:
    out = blend(np.zeros((1, 3)), rotation[None], np.array([share]), "rotation_vector")[0]
    np.testing.assert_allclose(out, share * rotation, atol=1e-7)


def as_quaternion(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector)
    return np.concatenate(([np.cos(angle / 2)], 0.5 * np.sinc(angle / 2 / np.pi) * vector))


@settings(deadline=None)
@given(rotations, rotations, st.floats(0, 1), st.sampled_from([-1, 1]))
def test_quaternions_take_the_shorter_way_whatever_their_sign(
    a: np.ndarray, b: np.ndarray, share: float, sign: int
) -> None:
    qa, qb = as_quaternion(a), as_quaternion(b)
    out = blend(qa[None], sign * qb[None], np.array([share]), "quaternion")[0]
    assert np.linalg.norm(out) == pytest.approx(1)
    whole = 2 * np.arccos(np.clip(abs(qa @ qb), 0, 1))
    part = 2 * np.arccos(np.clip(abs(qa @ out), 0, 1))
    assert part == pytest.approx(share * whole, abs=1e-6)


def test_a_schema_refuses_an_interpolation_that_its_shape_or_dtype_cannot_have() -> None:
    assert set(get_args(Interpolation)) == {"previous", "nearest", "linear", "quaternion", "rotation_vector"}
    for shape, dtype, how in (
        ((4, 4, 3), "uint8", "linear"),
        ((3,), "float32", "quaternion"),
        ((4,), "float32", "rotation_vector"),
        ((4,), "float32", "cubic"),
    ):
        with pytest.raises(SchemaError, match="interpolation"):
            Stream(shape, dtype, rate_hz=30.0, interpolation=how)  # pyright: ignore[reportArgumentType]


def test_an_episode_without_samples_of_a_stream_is_an_error_not_an_invented_value() -> None:
    with pytest.raises(SchemaError, match="without samples"):
        places(np.empty(0, np.int64), TIMES, "linear")
