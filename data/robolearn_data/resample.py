"""Values of a stream between its samples. n = samples, m = instants, ... = shape of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from robolearn_data.schema import Interpolation, SchemaError


def places(
    times: np.ndarray, at: np.ndarray, how: Interpolation, first: Any = 0, last: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples are needed at instants ``at`` (m,) ns, given capture times (n,) ns that increase.

    Returns the number of the sample before (m,), and the share (m,) of the way to the next one, from 0 to 1; the share
    is 0 where the sample itself is the answer. Only the samples ``first`` to ``last``, numbers or (m,), are used: all
    of them by default. Instants outside them get the first or the last one.
    """
    if not len(times):
        raise SchemaError("a stream without samples in an episode has no value there")
    last = len(times) - 1 if last is None else last
    before = np.clip(np.searchsorted(times, at, side="right") - 1, first, last)
    if how == "previous":
        return before, np.zeros(len(at))
    after = np.minimum(before + 1, last)
    gap = np.maximum(times[after] - times[before], 1)
    share = np.where(after > before, np.clip((at - times[before]) / gap, 0, 1), 0)
    if how == "nearest":
        return np.where(share > 0.5, after, before), np.zeros(len(at))
    return before, share


def blend(first: np.ndarray, second: np.ndarray, share: np.ndarray, how: Interpolation) -> np.ndarray:
    """The value (m, ...) a ``share`` (m,) of the way from ``first`` to ``second``, both (m, ...)."""
    share = share.reshape(-1, *[1] * (first.ndim - 1))
    if how == "linear":
        return (first + share * (second - first)).astype(first.dtype)
    if how == "quaternion":
        return _slerp(first.astype(np.float64), second.astype(np.float64), share).astype(first.dtype)
    if how == "rotation_vector":
        a, b = _quaternion(first.astype(np.float64)), _quaternion(second.astype(np.float64))
        return _rotation_vector(_slerp(a, b, share)).astype(first.dtype)
    return first


def _slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Shoemake (1985), along the shorter of the two ways."""
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    cosine = np.sum(a * b, axis=-1, keepdims=True)
    b = np.where(cosine < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    sine = np.sin(angle)
    near = sine < 1e-8  # no way to go: the straight line is exact enough
    safe = np.where(near, 1, sine)
    weight_a = np.where(near, 1 - share, np.sin((1 - share) * angle) / safe)
    weight_b = np.where(near, share, np.sin(share * angle) / safe)
    mixed = weight_a * a + weight_b * b
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def _quaternion(vector: np.ndarray) -> np.ndarray:
    """axis * angle (..., 3) in rad -> (w, x, y, z)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * vector], axis=-1)


def _rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """(w, x, y, z) -> axis * angle (..., 3), angle from 0 to pi."""
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    return np.where(sine > 1e-12, angle / np.where(sine > 1e-12, sine, 1), 2) * quaternion[..., 1:]
