"""PushT: a round pusher moves a T-shaped block onto a target drawn on a table of 512 x 512 pixels.

The physics, reward and starts are those of the published human demonstrations and results (Florence et al., "Implicit
Behavioral Cloning", 2021; Chi et al., "Diffusion Policy", 2023), so that scores compare. Coordinates are pixels with
x to the right and y down; angles are radians, positive from x towards y. All constants below belong to the task.

The block's pose is that of the middle of the outer edge of its bar, and its own y axis points along its stem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pymunk

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim import pusht_picture

CONTROL_HZ = 10
PHYSICS_HZ = 100
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that draws the pusher to the action
SUCCESS_COVERAGE = 0.95
GOAL = (256.0, 256.0, math.pi / 4)  # x, y, angle
AGENT_RADIUS = 15.0
BAR = (-60.0, 0.0, 60.0, 30.0)  # left, top, right, bottom in the frame of the block
STEM = (-15.0, 30.0, 15.0, 120.0)
# Points on the block, in its frame, that the human demonstrations record as the stream "keypoint": a fit to those
# recordings, exact to 1e-4 pixels.
KEYPOINTS = np.array(
    [
        (9.26979, 90.04097),
        (-60.98347, -1.18673),
        (60.91276, -1.39336),
        (-0.27050, 25.54363),
        (-14.06493, 122.81585),
        (39.00274, 32.85740),
        (-39.96641, 32.72966),
        (-16.82434, 62.86318),
        (23.54146, -1.70029),
    ]
)

STATE = Stream(
    (5,),
    names=("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
    unit="px,px,px,px,rad",
    frame="table",
    wraps=(4,),
)
KEYPOINT = Stream((9, 2), names=("x", "y"), unit="px", frame="table")
IMAGE = Stream((96, 96, 3), "uint8", kind="image")
ACTION = Stream((2,), kind="action", names=("agent_x", "agent_y"), unit="px", frame="table")


def spec(*, images: bool = False, max_steps: int = 300) -> WorldSpec:
    """What PushT offers. ``images`` adds the stream "img", which costs time to draw."""
    streams = {"state": STATE, "keypoint": KEYPOINT, **({"img": IMAGE} if images else {}), "action": ACTION}
    return WorldSpec("pusht", Schema(CONTROL_HZ, streams), max_steps)


class PushT:
    """The world of the module's first lines. An action is where the pusher is drawn to, x and y in 0..512."""

    def __init__(self, *, images: bool = False, max_steps: int = 300) -> None:
        self.spec = spec(images=images, max_steps=max_steps)
        self._images = images
        self._picture = pusht_picture.Picture(_corners(GOAL))
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        rng = np.random.RandomState(seed)  # the generator of the published starts
        agent = rng.randint(50, 450), rng.randint(50, 450)
        block = rng.randint(100, 400), rng.randint(100, 400)
        angle = rng.randn() * 2 * math.pi - math.pi
        self._build()
        self._agent.position = float(agent[0]), float(agent[1])
        # Turning a body turns it about its centre of mass and so moves its origin. The human demonstrations and the
        # published results set the angle last, hence the block starts elsewhere than at the numbers drawn.
        self._block.position = float(block[0]), float(block[1])
        self._block.angle = float(angle)
        return self._begin()

    def restore(self, state: Sequence[float] | np.ndarray) -> Observation:
        """Begin an episode at ``state`` (the stream "state", (5,)), everything at rest."""
        x, y, block_x, block_y, angle = (float(v) for v in STATE.check("state", np.asarray(state)))
        self._build()
        self._agent.position = x, y
        self._block.angle = angle
        self._block.position = block_x, block_y
        return self._begin()

    def step(self, action: np.ndarray) -> Step:
        target_x, target_y = (float(v) for v in ACTION.check("action", action))
        self._target = target_x, target_y
        dt = 1.0 / PHYSICS_HZ
        agent, space = self._agent, self._space
        (x, y), (vx, vy) = agent.position, agent.velocity
        for _ in range(PHYSICS_HZ // CONTROL_HZ):
            vx += (STIFFNESS * (target_x - x) - DAMPING * vx) * dt
            vy += (STIFFNESS * (target_y - y) - DAMPING * vy) * dt
            agent.velocity = vx, vy
            space.step(dt)
            x, y = agent.position
        self._steps += 1
        block_x, block_y = self._block.position
        covered = coverage(block_x, block_y, self._block.angle)
        success = covered > SUCCESS_COVERAGE
        done = success or self._steps >= self.spec.max_steps
        return Step(self._observe(), min(covered / SUCCESS_COVERAGE, 1.0), success, done)

    def render(self) -> np.ndarray:
        """The table in full size, (512, 512, 3) uint8, with a red cross where the last action points."""
        return self._picture.draw(self._space, self._target)

    def close(self) -> None:
        """Nothing is held open."""

    def _build(self) -> None:
        # A new space for each episode: the solver remembers old contacts, which would leak into the next one.
        self._space = pymunk.Space()
        self._space.damping = 0.0  # nothing glides: the block moves only while it is pushed
        # The table's rim is one pixel off centre in the published task.
        for a, b in (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506))):
            wall = pymunk.Segment(self._space.static_body, a, b, 2)
            wall.color = pusht_picture.WALL
            self._space.add(wall)
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._agent.position = 256, 400
        disc = pymunk.Circle(self._agent, AGENT_RADIUS)
        disc.color = pusht_picture.AGENT
        self._space.add(self._agent, disc)
        # Both halves get the bar's moment of inertia: a slip of the published task which its physics depend on.
        inertia = 2 * pymunk.moment_for_poly(1.0, _rectangle(BAR))
        self._block = pymunk.Body(1.0, inertia)
        shapes = [pymunk.Poly(self._block, _rectangle(BAR)), pymunk.Poly(self._block, _rectangle(STEM))]
        self._block.center_of_gravity = (shapes[0].center_of_gravity + shapes[1].center_of_gravity) / 2
        self._block.position = 256, 300
        for shape in shapes:
            shape.color = pusht_picture.BLOCK
        self._space.add(self._block, *shapes)

    def _begin(self) -> Observation:
        self._space.step(1.0 / PHYSICS_HZ)  # pushes overlapping bodies apart
        self._steps = 0
        self._target: tuple[float, float] | None = None
        return self._observe()

    def _observe(self) -> Observation:
        (block_x, block_y), angle = self._block.position, self._block.angle
        state = np.array([*self._agent.position, block_x, block_y, angle % (2 * math.pi)])
        observation = {"state": state.astype(np.float32), "keypoint": keypoints(state).astype(np.float32)}
        if self._images:
            observation["img"] = self._picture.draw_small(self._space)
        return observation


def coverage(x: float, y: float, angle: float) -> float:
    """Share of the target that a block at this pose covers, in [0, 1]."""
    total = 0.0
    c, s = math.cos(GOAL[2]), math.sin(GOAL[2])
    dx, dy = x - GOAL[0], y - GOAL[1]
    in_goal = (c * dx + s * dy, -s * dx + c * dy, angle - GOAL[2])  # there the target's rectangles are upright
    for polygon in _corners(in_goal):
        for box in (BAR, STEM):
            total += _area(_clip(polygon, box))
    return total / _AREA


def keypoints(state: np.ndarray) -> np.ndarray:
    """The stream "keypoint" (..., 9, 2) that belongs to the stream "state" (..., 5)."""
    c, s = np.cos(state[..., 4, None]), np.sin(state[..., 4, None])
    u, v = KEYPOINTS.T
    return np.stack([state[..., 2, None] + c * u - s * v, state[..., 3, None] + s * u + c * v], axis=-1)


def mirror(state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same situation and action seen in a mirror that leaves the target where it is.

    The block is symmetric about its stem, so a reflection about the target's stem (the line x + y = 512) turns the
    task into itself: a point (x, y) goes to (512 - y, 512 - x), an angle to pi/2 - angle. Mirrored demonstrations are
    demonstrations, approximate only at the table's rim, which is one pixel off centre. Keypoints do not mirror onto
    each other: compute them anew from the mirrored state.

    Args:
        state: (..., 5) as the stream "state".
        action: (..., 2) as the stream "action".
    """
    state, action = np.asarray(state), np.asarray(action)
    side = 2 * GOAL[0]
    mirrored = np.stack(
        [
            side - state[..., 1],
            side - state[..., 0],
            side - state[..., 3],
            side - state[..., 2],
            (2 * GOAL[2] - state[..., 4]) % (2 * math.pi),
        ],
        axis=-1,
    )
    return mirrored.astype(state.dtype), (side - action[..., ::-1]).astype(action.dtype)


Polygon = list[tuple[float, float]]


def _rectangle(box: tuple[float, float, float, float]) -> Polygon:
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _corners(pose: tuple[float, float, float]) -> tuple[Polygon, Polygon]:
    """Corners of a block's bar and stem at ``pose`` (x, y, angle)."""
    x, y, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    bar, stem = ([(x + c * u - s * v, y + s * u + c * v) for u, v in _rectangle(box)] for box in (BAR, STEM))
    return bar, stem


def _clip(polygon: Polygon, box: tuple[float, float, float, float]) -> Polygon:
    """The part of a convex polygon inside an upright box (Sutherland and Hodgman, 1974)."""
    for axis, limit, sign in ((0, box[0], 1.0), (0, box[2], -1.0), (1, box[1], 1.0), (1, box[3], -1.0)):
        if not polygon:
            break
        kept: Polygon = []
        before = polygon[-1]
        depth_before = sign * (before[axis] - limit)
        for point in polygon:
            depth = sign * (point[axis] - limit)
            if (depth < 0) != (depth_before < 0):
                t = depth_before / (depth_before - depth)
                kept.append((before[0] + t * (point[0] - before[0]), before[1] + t * (point[1] - before[1])))
            if depth >= 0:
                kept.append(point)
            before, depth_before = point, depth
        polygon = kept
    return polygon


def _area(polygon: Polygon) -> float:
    twice = 0.0
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        twice += x0 * y1 - x1 * y0
    return abs(twice) / 2


_AREA = _area(_rectangle(BAR)) + _area(_rectangle(STEM))
