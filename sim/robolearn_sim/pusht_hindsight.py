"""Human PushT demonstrations, relabelled in hindsight so that each ends exactly on the target.

The people stopped when the block looked right: the 206 published demonstrations end at 0.90 coverage on average, a few
pixels and degrees off, while success asks for 0.95. And as they stopped there, no demonstration shows how to mend the
last few pixels. But pushing looks the same wherever it happens on the table: where a push has brought the block is a
target that was reached. Turned and shifted as a whole until that place lies on the real target, any stretch of a
demonstration shows how to reach it from close by (hindsight relabelling, Andrychowicz et al. 2017, with the symmetry of
the plane instead of a policy that is told its goal).
"""

from __future__ import annotations

import math

import numpy as np

from robolearn_sim.pusht import AGENT_RADIUS, GOAL, PushT

STRETCH, EVERY = 32, 8
"""Control steps in a stretch, and between the ends of two."""
MOVED = 2.0
"""Least way of the block in a stretch: pixels, with a radian as 60 (half the length of its bar)."""
_REPLAYED = 10

Demonstration = tuple[np.ndarray, np.ndarray]
"""Streams "state" (T, 5), px and rad, and "action" (T, 2), px."""


def relabel(world: PushT, state: np.ndarray, action: np.ndarray) -> list[Demonstration]:
    """The whole demonstration, ending on the target, and then those stretches of it that end on the target as well.

    Args:
        world: simulates the last second; its episode is lost.
        state: (T, 5) as the stream "state".
        action: (T, 2) as the stream "action".
    """
    whole = onto_target(state, action, _end(world, state, action))
    # A stretch is of use where the block moved, just before its end and in all, and nothing leaves the table.
    way = np.column_stack([state[:, 2:4], 60 * np.unwrap(state[:, 4])]).astype(np.float64)
    moving = np.linalg.norm(np.diff(way, axis=0), axis=1) > 0.5
    stretches = []
    for end in range(STRETCH - EVERY, len(state) - 1, EVERY):
        start = max(0, end - STRETCH)
        if moving[end - 4 : end].any() and np.linalg.norm(way[end] - way[start]) >= MOVED:
            moved = onto_target(state[start:end], action[start:end], state[end, 2:5])
            if _on_table(*moved):
                stretches.append(moved)
    return [whole, *stretches]


def onto_target(state: np.ndarray, action: np.ndarray, pose: np.ndarray) -> Demonstration:
    """Turn and shift everything so that the block pose ``pose`` (x, y, angle) comes to lie on the target."""
    x, y, angle = (float(v) for v in pose)
    turn = (GOAL[2] - angle + math.pi) % (2 * math.pi) - math.pi
    c, s = math.cos(turn), math.sin(turn)

    def moved(points: np.ndarray) -> np.ndarray:
        return (points.astype(np.float64) - (x, y)) @ np.array([[c, s], [-s, c]]) + GOAL[:2]

    turned = (state[:, 4:].astype(np.float64) + turn) % (2 * math.pi)
    return np.concatenate([moved(state[:, :2]), moved(state[:, 2:4]), turned], axis=1), moved(action)


def _end(world: PushT, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where the block came to rest (x, y, angle): not recorded, since each row precedes its action, but simulated."""
    last = min(_REPLAYED, len(state))
    seen = world.restore(state[-last])
    for target in action[-last:]:
        seen = world.step(target.astype(np.float32)).observation
    return seen["state"][2:5]


def _on_table(state: np.ndarray, action: np.ndarray) -> bool:
    values = np.concatenate([state[:, :4].ravel(), action.ravel()])
    return bool(values.min() >= AGENT_RADIUS and values.max() <= 2 * GOAL[0] - AGENT_RADIUS)
