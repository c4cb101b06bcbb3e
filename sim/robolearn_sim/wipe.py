"""Wipe: a Panda arm draws a soft tool along a line of dirt on a board whose height and tilt nobody knows, and presses
neither too little nor too hard. It is for policies that feel: the arm is stiff and the tool springs, so that force is
known from the force sensor alone. In the variant "perturbed" the board rises and sinks while it is wiped.

World frame: the arm's base frame; x forward, y left, z up, metres. The tool points down all the time.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Instant, Step, WorldSpec
from robolearn_sim.camera import Camera
from robolearn_sim.manipulation import rotation, rotation_vector
from robolearn_sim.meshes import simplify_looks
from robolearn_sim.worlds import WorldError

CONTROL_HZ, FAST_HZ, FORCE_HZ = 20, 100, 500
"""Of actions; of what may act inside a control step (``Wipe.advance``); of physics and force sensor."""
FAST_STEPS, FORCE_STEPS = FAST_HZ // CONTROL_HZ, FORCE_HZ // FAST_HZ
IMAGE_SIZE, VIEW_SIZE = 84, 256

BAND_N = (3.0, 9.0)
"""The force upwards on the tool with which dirt comes off."""
LIMIT_N = 16.0
"""Beyond it the board is damaged, and the episode over."""
SPOTS, LINE_M, WIPE_M = 16, 0.2, 0.012
"""Of dirt, along a line so long; each comes off where the tool is so near."""
SEEN_M = 0.02
"""How far off the tool the first dirty spot is seen; one farther off is seen in its direction."""
WIPED = 15 / SPOTS
"""Share of the spots that counts as success."""
TOOL_STIFFNESS = 700.0  # N/m
ARM_STIFFNESS = 2500.0  # 1/s^2, of the controller
FASTEST_M_S = 0.4  # of the tool
NOISE = np.array([0.1, 0.1, 0.1, 0.005, 0.005, 0.005])
"""Standard deviation of the sensor, N and N m."""
HEIGHT_M, TILT_RAD = 0.015, 0.1
"""The board's middle lies ``START_M`` below the tool's start, or this more or less; tilted at most so about x and y."""
MOVES, MOVE_M, MOVE_S = 3, (0.010, 0.018), 0.15
"""Of the board in the variant "perturbed": how many, how far, how long each takes."""
MOVE_AFTER_S = 0.5
"""A move begins at most so long after the share of wiped spots that calls for it."""
START_M = 0.04
BOARD = np.array([0.50, 0.0])
"""Its middle, from above."""
POSTURE = np.array([0.0, 0.35, 0.0, -2.27, 0.0, 2.62, math.pi / 4])

STATE = Stream(
    (8,),
    names=(*("tool_x", "tool_y", "tool_z"), *("to_next_x", "to_next_y"), *("to_end_x", "to_end_y"), "dirty"),
    unit="m,m,m,m,m,m,m,1",
    frame="base",
)
"""The tool's tip, as if its spring were relaxed; from it towards the first dirty spot, ``SEEN_M`` where that is farther
away, and to the last of the line (the board's height is not told); the share that is dirty."""
WRENCH = Stream(
    (FORCE_HZ // CONTROL_HZ, 6),
    names=("fx", "fy", "fz", "tx", "ty", "tz"),
    unit="N,N,N,N m,N m,N m",
    frame="base",
)
"""What the board does to the tool: every sample of the sensor in the control period that ends now, oldest first. The
rows of consecutive steps make up the signal at ``FORCE_HZ`` without a gap. The tool's weight is taken off."""
ACTION = Stream((3,), kind="action", names=("x", "y", "z"), unit="m", frame="base")
"""Where the tip shall be at the end of the control period, were its spring relaxed."""
RELATIVE = Stream((3,), kind="action", names=("dx", "dy", "dz"), unit="m", frame="base", relative=(0, 1, 2))
"""With relative actions: how far it shall go from where the one before has led."""
IMAGE = Stream((IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", kind="image")

VARIANTS: dict[str, dict[str, Any]] = {
    "calm": {},
    "perturbed": {"perturbed": True},
    "calm-relative": {"relative": True},
    "perturbed-relative": {"perturbed": True, "relative": True},
}


def spec(*, images: bool = False, max_steps: int = 200, perturbed: bool = False, relative: bool = False) -> WorldSpec:
    """What the world offers.

    Args:
        images: add the stream "side".
        perturbed: the board moves.
        relative: an action is a change of the tip's place.
    """
    camera = {"side": IMAGE} if images else {}
    action = RELATIVE if relative else ACTION
    streams = {"state": STATE, "wrench": WRENCH, **camera, "action": action}
    return WorldSpec("wipe", Schema(CONTROL_HZ, streams), max_steps)


class Wipe:
    """A ``FastWorld``. The score is the share of wiped spots; solved when ``WIPED`` of them are."""

    fast_steps = FAST_STEPS

    def __init__(
        self, *, images: bool = False, max_steps: int = 200, perturbed: bool = False, relative: bool = False
    ) -> None:
        """Options as of ``spec``.

        Raises:
            WorldError: robosuite, which has the arm's model, is not installed.
        """
        self.spec = spec(images=images, max_steps=max_steps, perturbed=perturbed, relative=relative)
        for package in ("mujoco", "robosuite"):
            if importlib.util.find_spec(package) is None:
                raise WorldError(
                    f"the world 'wipe' needs {package}, which is not installed; run: pip install 'robolearn[sim]'"
                )
        from robolearn_sim.osc import PoseController

        self._mujoco: Any = importlib.import_module("mujoco")
        self._images, self._perturbed = images, perturbed
        self._model = model = _build(self._mujoco)
        self._data = self._mujoco.MjData(model)
        self._tool = model.site("tool").id
        self._board = int(model.body("board").mocapid[0])
        self._spots = [model.geom(f"spot_{i}").id for i in range(SPOTS)]
        self._sensor_site = model.site("sensor").id
        self._weight = np.array([0.0, 0.0, -float(model.body_mass[model.body("tip").id]) * 9.81])
        joints = np.arange(7)
        self._arm = PoseController(
            model, self._data, site=self._tool, joints=joints, actuators=joints, stiffness=ARM_STIFFNESS
        )
        self._camera = Camera(model, max_size=VIEW_SIZE)
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        data, rng = self._data, np.random.default_rng(seed)
        self._noise = np.random.default_rng([seed, 3])
        self._mujoco.mj_resetData(self._model, data)
        data.qpos[:7] = POSTURE + rng.normal(0, 0.02, 7)
        self._mujoco.mj_forward(self._model, data)
        tool = data.site_xpos[self._tool].copy()
        self._height = tool[2] - START_M + rng.uniform(-HEIGHT_M, HEIGHT_M)
        """Of the board's middle, without the moves."""
        tilt = rotation(np.array([*rng.uniform(-TILT_RAD, TILT_RAD, 2), 0.0]))
        self._normal = tilt[:, 2]
        self._mujoco.mju_mat2Quat(data.mocap_quat[self._board], tilt.ravel())
        middle = BOARD + rng.uniform(-0.02, 0.02, 2)
        angle = rng.uniform(-0.5, 0.5) + rng.choice([math.pi / 2, -math.pi / 2])
        along = np.array([math.cos(angle), math.sin(angle)])
        self.line = middle + np.linspace(-LINE_M / 2, LINE_M / 2, SPOTS)[:, None] * along
        """(SPOTS, 2): where the dirt is."""
        self._dirty = np.ones(SPOTS, bool)
        for i, spot in enumerate(self._spots):  # on the board, in its frame
            x, y = self.line[i] - BOARD
            z = -(self._normal[0] * x + self._normal[1] * y) / self._normal[2]
            self._model.geom_pos[spot] = tilt.T @ np.array([x, y, z])
            self._model.geom_rgba[spot, 3] = 1.0
        shares = np.sort(rng.uniform(0.05, 0.85, MOVES)) if self._perturbed else []
        signs, sizes = rng.choice([-1.0, 1.0], MOVES), rng.uniform(*MOVE_M, MOVES)
        waits = rng.uniform(0, MOVE_AFTER_S, MOVES)
        self._calls = list(zip(shares, signs * sizes, waits, strict=False))
        """Moves to come: the share of wiped spots that calls for it, how far up (m), after which time (s)."""
        self.moves: list[tuple[float, float]] = []
        """Of this episode so far: when one began (s since the episode's begin), and how far up (m)."""
        self.commanded = tool
        """(3,): where the tip is drawn to now."""
        self._time_steps = self._control_steps = self._fast_steps = 0
        self.damaged = False
        """Whether the force has been above ``LIMIT_N``."""
        self._place_board()
        self._mujoco.mj_forward(self._model, data)
        self._arm.reset(data.qpos[:7].copy())
        self._wrenches = np.tile(self._noise_free(), (FORCE_HZ // CONTROL_HZ, 1))
        self.in_band_steps = self.contact_steps = 0
        """Fast periods so far in which the tool touched the board; and those with the force in ``BAND_N``."""
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        stream = self.spec.schema.stream("action")
        action, start = stream.check("action", action).astype(np.float64), self.commanded
        way = action if stream.relative else action - start
        for i in range(FAST_STEPS):
            self.advance(start + way * (i + 1) / FAST_STEPS)
        return self.finish()

    def advance(self, target: np.ndarray) -> Instant:
        """One fast period of a control step, with the tip drawn to ``target`` (3,) m; after ``FAST_STEPS`` of them
        comes ``finish``. ``step`` does all that with targets on the way to its action.

        Raises:
            SchemaError: not three finite numbers.
            WorldError: the control step is over; call ``finish``.
        """
        target = ACTION.check("action", target).astype(np.float64)
        if self._fast_steps == FAST_STEPS:
            raise WorldError(f"a control step of 'wipe' has {FAST_STEPS} fast periods; finish it before the next")
        mujoco, model, data = self._mujoco, self._model, self._data
        move = target - self.commanded
        farthest = FASTEST_M_S / FAST_HZ
        self.commanded = self.commanded + move * min(1.0, farthest / max(float(np.linalg.norm(move)), 1e-12))
        felt = np.empty((FORCE_STEPS, 6))
        for i in range(FORCE_STEPS):
            self._place_board()
            mujoco.mj_step1(model, data)
            if i == 0:
                axes = data.site_xmat[self._tool].reshape(3, 3)
                turn = rotation_vector(_DOWN @ axes.T)
                self._arm.set_goal(self.commanded - data.site_xpos[self._tool], turn)
                self._arm.update()
            self._arm.apply()
            mujoco.mj_step2(model, data)
            self._time_steps += 1
            felt[i] = self._noise_free()
        mujoco.mj_kinematics(model, data)
        self._fast_steps += 1
        self._wipe(float(felt[:, 2].mean()))
        felt += NOISE * self._noise.standard_normal(felt.shape)
        self._wrenches = np.concatenate([self._wrenches[FORCE_STEPS:], felt])
        return Instant(self._time_steps * 10**9 // FORCE_HZ, {"wrench": felt.astype(np.float32)})

    def finish(self) -> Step:
        """What the control step led to.

        Raises:
            WorldError: it is not over.
        """
        if self._fast_steps != FAST_STEPS:
            raise WorldError(f"{self._fast_steps} of the {FAST_STEPS} fast periods of this control step are over")
        self._fast_steps = 0
        self._control_steps += 1
        share = 1 - float(self._dirty.mean())
        success = share >= WIPED and not self.damaged
        done = success or self.damaged or self._control_steps >= self.spec.max_steps
        return Step(self._observe(), share, success, done)

    def render(self) -> np.ndarray:
        """Arm and board from the side, (256, 256, 3) uint8."""
        return self._camera.draw(self._data, "side", VIEW_SIZE)

    def close(self) -> None:
        self._camera.close()

    def _wipe(self, force_n: float) -> None:
        low, high = BAND_N
        self.damaged |= force_n > LIMIT_N
        self.contact_steps += force_n > 0.5
        if low <= force_n <= high:
            self.in_band_steps += 1
            near = np.linalg.norm(self.line - self._data.site_xpos[self._tool][:2], axis=1) < WIPE_M
            for i in np.flatnonzero(near & self._dirty):
                self._dirty[i] = False
                self._model.geom_rgba[self._spots[i], 3] = 0.0
        share = 1 - float(self._dirty.mean())
        while self._calls and share >= self._calls[0][0]:
            _, up, wait = self._calls.pop(0)
            begun = [self._time_steps / FORCE_HZ + wait, *(when + MOVE_S for when, _ in self.moves)]
            self.moves.append((max(begun), up))

    def _place_board(self) -> None:
        now = self._time_steps / FORCE_HZ
        up = sum(by * min(max((now - when) / MOVE_S, 0.0), 1.0) for when, by in self.moves)
        self._data.mocap_pos[self._board] = [*BOARD, self._height + up]

    def _noise_free(self) -> np.ndarray:
        """The sensor (6,) in the base frame, without the weight of the tip. MuJoCo gives what holds it."""
        axes = self._data.site_xmat[self._sensor_site].reshape(3, 3)
        force, torque = axes @ self._data.sensordata[:3], axes @ self._data.sensordata[3:6]
        return -np.concatenate([force + self._weight, torque])

    def _observe(self) -> Observation:
        dirty = np.flatnonzero(self._dirty)
        following = self.line[dirty[0] if len(dirty) else -1]
        tool = self._data.site_xpos[self._tool]
        way = following - tool[:2]
        way = way * min(1.0, SEEN_M / max(float(np.linalg.norm(way)), 1e-9))
        state = [*tool, *way, *(self.line[-1] - tool[:2]), self._dirty.mean()]
        observation: Observation = {
            "state": np.array(state, np.float32),
            "wrench": self._wrenches.astype(np.float32),
        }
        if self._images:
            observation["side"] = self._camera.draw(self._data, "side", IMAGE_SIZE)
        return observation


_DOWN = np.diag([1.0, -1.0, -1.0])
"""The tool's axes when it points down."""

_SCENE = """
<mujoco model="wipe">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><headlight ambient="0.35 0.35 0.35" diffuse="0.4 0.4 0.4"/><map znear="0.005"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.85 0.88 0.92" rgb2="0.6 0.65 0.7" width="64"
      height="64"/>
  </asset>
  <worldbody>
    <light pos="0.5 0 2" dir="0.2 0.1 -1" diffuse="0.5 0.5 0.5"/>
    <geom type="box" size="0.6 0.6 0.02" pos="0.4 0 -0.02" rgba="0.74 0.66 0.56 1" contype="0" conaffinity="0"
      group="1"/>
    <camera name="side" pos="1.15 -0.45 0.6" xyaxes="0.569 0.822 0 -0.42 0.29 0.86" fovy="42"/>
    <body name="board" mocap="true" pos="0.5 0 0.12">
      <geom name="board" type="box" size="0.13 0.17 0.01" pos="0 0 -0.01" rgba="0.93 0.94 0.95 1" group="1"
        friction="0.4 0.005 0.0001" solref="0.004 1"/>
    </body>
  </worldbody>
</mujoco>"""


def _build(mujoco: Any) -> Any:
    from robolearn_sim.scene import arm_spec

    def described() -> Any:
        spec = mujoco.MjSpec.from_string(_SCENE)
        board = spec.body("board")
        for i in range(SPOTS):
            board.add_geom(
                name=f"spot_{i}",
                type=mujoco.mjtGeom.mjGEOM_CYLINDER,
                size=(0.006, 0.0006, 0),
                pos=(0.01, 0, 0),  # what MuJoCo finds in the middle of its body it leaves there
                rgba=(0.35, 0.2, 0.1, 1),
                contype=0,
                conaffinity=0,
                group=1,
            )
        arm = arm_spec(mujoco, "fer")
        names = [joint.name for joint in arm.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
        spec.attach(arm, frame=spec.worldbody.add_frame(), prefix="")
        _add_tool(mujoco, spec.body("hand"))
        for name, site in (("force", mujoco.mjtSensor.mjSENS_FORCE), ("torque", mujoco.mjtSensor.mjSENS_TORQUE)):
            spec.add_sensor(name=name, type=site, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="sensor")
        for name in names[:7]:
            motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            motor.set_to_motor()
            motor.ctrllimited, motor.ctrlrange = 1, (-87.0, 87.0)
        return spec

    simpler = described()
    simplify_looks(mujoco, simpler, described().compile(), 0.024)
    return simpler.compile()


def _add_tool(mujoco: Any, hand: Any) -> None:
    """A handle, and a round tip that gives way along it."""
    hand.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=(0.012, 0.03, 0),
        pos=(0, 0, 0.03),
        mass=0.1,
        rgba=(0.25, 0.27, 0.3, 1),
        contype=0,
        conaffinity=0,
        group=1,
    )
    hand.add_site(name="tool", pos=(0, 0, 0.112), group=4)
    tip = hand.add_body(name="tip", pos=(0, 0, 0.1))
    tip.add_joint(
        name="tip",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=(0, 0, 1),
        range=(-0.03, 0.005),
        stiffness=[TOOL_STIFFNESS, 0.0, 0.0],
        damping=[8.0, 0.0, 0.0],
        armature=0.02,
    )
    tip.add_geom(
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=(0.012, 0, 0),
        mass=0.05,
        rgba=(0.95, 0.75, 0.1, 1),
        friction=(0.4, 0.005, 0.0001),
        group=1,
    )
    tip.add_site(name="sensor", pos=(0, 0, 0), group=4)
