"""Quaternions (w, x, y, z) by Hamilton's product, and rotation vectors in rad (Solà, "Quaternion kinematics", 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def product(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return np.array(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        )
    )


def conjugate(q: np.ndarray) -> np.ndarray:
    return q * (1.0, -1.0, -1.0, -1.0)


def unit(q: np.ndarray) -> np.ndarray:
    return q / math.sqrt(float(q @ q))


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """conj(a) b: from a to b, in the axes of a."""
    return product(conjugate(a), b)


def rotated(q: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """q vector conj(q)"""
    w, v = q[0], q[1:]
    t = 2 * cross(v, vector)
    return vector + w * t + cross(v, t)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ax, ay, az = a
    bx, by, bz = b
    return np.array((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx))


def exp(turn: np.ndarray) -> np.ndarray:
    """Of a rotation vector (3,)."""
    angle = math.sqrt(float(turn @ turn))
    half = 0.5 * angle
    share = 0.5 - angle * angle / 48 if angle < 1e-4 else math.sin(half) / angle
    return np.array((math.cos(half), *(share * turn)))


def log(q: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) of the short way, up to pi long."""
    w, v = float(q[0]), q[1:]
    if w < 0:
        w, v = -w, -v
    sine = math.sqrt(float(v @ v))
    return v * (2.0 if sine < 1e-12 else 2 * math.atan2(sine, w) / sine)


def right_jacobian(turn: np.ndarray) -> np.ndarray:
    """(3, 3): body angular velocity of exp(turn) per change of ``turn``."""
    angle2 = float(turn @ turn)
    x, y, z = turn
    skew = np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
    if angle2 < 1e-8:
        return np.eye(3) - 0.5 * skew + skew @ skew / 6
    angle = math.sqrt(angle2)
    one = (1 - math.cos(angle)) / angle2
    two = (angle - math.sin(angle)) / (angle2 * angle)
    return np.eye(3) - one * skew + two * (skew @ skew)
