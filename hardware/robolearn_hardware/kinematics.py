"""From joints to the tool and back, on the robot's MuJoCo model.

Frames: the base is the controller's base frame (SO-101: where the pan axis meets the table). The tool is the flange,
or what stands ``tool`` from it. J = number of joints, without the gripper.

Inverse kinematics is differential: one step at a time, a quadratic program (mink on daqp) whose constraints are the
joints' positions and velocities and the workspace. Standing still satisfies them all, so that a step always exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_hardware.devices import DeviceError, JointLimits, LimitError
from robolearn_hardware.limits import brakes_early, limits_of, narrowed, tool_limits_of, velocity_range
from robolearn_hardware.models import arm_xml

_OUTSIDE = 0.05  # rad, by which joints may stand outside their limits and still be led back
_EPSILON = 1e-9


@dataclass(frozen=True, eq=False)
class Pose:
    """Of the tool in the base frame."""

    position: np.ndarray
    """(3,) m"""
    quaternion: np.ndarray
    """(4,) w, x, y, z; of length 1 where this module returns it"""

    @property
    def matrix(self) -> np.ndarray:
        """T_base_tool (4, 4)."""
        w, x, y, z = self.quaternion
        made = np.eye(4)
        made[:3, :3] = (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        )
        made[:3, 3] = self.position
        return made


@dataclass(frozen=True, eq=False)
class Twist:
    """Velocity of the tool, in the axes of the base frame."""

    linear: np.ndarray
    """(3,) m/s, of the tool's centre"""
    angular: np.ndarray
    """(3,) rad/s"""


@dataclass(frozen=True)
class Workspace:
    """Where an arm may be, base frame, m."""

    low: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    """Corner of the tool centre's box."""
    high: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    floor: float = -np.inf
    """Height that neither the tool centre nor any joint from the third on goes below. (A point, not the link around
    it: add the link's radius.)"""


class Kinematics:
    """Forward kinematics and Jacobian of one arm. Not for several threads at once."""

    def __init__(self, model: str, *, tool: Pose | None = None) -> None:
        """``model``: one of ``robolearn_hardware.models.MODELS``. ``tool``: its place in the flange's frame.

        Raises:
            DeviceError: no model of that arm; MuJoCo is not installed.
            LimitError: ``tool`` is not a pose.
        """
        mujoco = self._mujoco = _import("mujoco")
        spec = mujoco.MjSpec.from_string(arm_xml(model))
        self.name = model
        self.joints = limits_of(model).joints
        flange = spec.site("flange")
        position, quaternion = np.array(flange.pos), np.array(flange.quat)
        if tool is not None:
            tool = checked_pose(tool)
            offset = np.zeros(3)
            mujoco.mju_rotVecQuat(offset, tool.position, quaternion)
            position, turned = position + offset, np.zeros(4)
            mujoco.mju_mulQuat(turned, quaternion, tool.quaternion)
            quaternion = turned
        flange.parent.add_site(name="tool", pos=position, quat=quaternion)
        for name in [joint.name for joint in spec.joints][self.joints :]:  # a gripper
            spec.delete(spec.joint(name))
        self.mj_model = spec.compile()
        """Its mujoco.MjModel: J degrees of freedom, the site "tool", the world as base frame."""
        self.mj_data = mujoco.MjData(self.mj_model)
        self._site = self.mj_model.site("tool").id
        self._jacobian = np.zeros((6, self.joints))
        self.bodies = list(self.mj_model.jnt_bodyid[2:])
        """Of the third joint and on: the first two stand where the arm is mounted."""

    def forward(self, positions: np.ndarray) -> Pose:
        """The tool's pose at joint ``positions`` (J,) rad."""
        self._place(positions)
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(quaternion, self.mj_data.site_xmat[self._site])
        return Pose(self.mj_data.site_xpos[self._site].copy(), quaternion)

    def jacobian(self, positions: np.ndarray) -> np.ndarray:
        """(6, J): the tool centre's velocity, then its angular velocity, in the base's axes, per joint velocity."""
        self._place(positions)
        self._mujoco.mj_comPos(self.mj_model, self.mj_data)
        self._mujoco.mj_jacSite(self.mj_model, self.mj_data, self._jacobian[:3], self._jacobian[3:], self._site)
        return self._jacobian.copy()

    def outside(self, positions: np.ndarray, workspace: Workspace) -> np.ndarray:
        """How far the tool centre is beyond each side, and each joint from the third on below the floor, at joint
        ``positions`` (J,) rad: (6 + J - 2,) m, 0 = inside."""
        self._place(positions)
        heights = self.mj_data.xpos[self.bodies, 2] - workspace.floor
        room = _tool_room(self.mj_data.site_xpos[self._site], workspace)
        return np.maximum(-np.concatenate([*room, heights]), 0.0)

    def _place(self, positions: np.ndarray) -> None:
        positions = np.asarray(positions, np.float64)
        if positions.shape != (self.joints,) or not np.isfinite(positions).all():
            raise LimitError(f"{self.name}: joint positions must be {self.joints} finite numbers, got {positions}")
        self.mj_data.qpos[:] = positions
        self._mujoco.mj_kinematics(self.mj_model, self.mj_data)


class DifferentialIK:
    """Steps of joint positions that follow a tool target within all limits. Keeps nothing from step to step."""

    def __init__(
        self,
        kinematics: Kinematics,
        *,
        limits: JointLimits | None = None,
        workspace: Workspace | None = None,
        firmware: str = "",
        rest: Sequence[float] | np.ndarray | None = None,
        orientation_weight: float | None = None,
        tool_speed: float = 1.0,
        tool_turn: float = 2.5,
    ) -> None:
        """
        Args:
            limits: narrower than the published ones of the model, where given.
            firmware: as of ``limits_of``.
            rest: (J,) rad, the posture that decides where the task leaves a choice; the middle of the ranges if None.
            orientation_weight: what 1 rad counts against 1 m. By default 0.3; 0.01 where an arm has fewer than six
                joints and cannot have every orientation, so that it gets the position right.
            tool_speed: m/s that the tool is moved at towards a pose at most; the published limit also holds.
            tool_turn: the same for its rotation, rad/s.

        Raises:
            DeviceError: limits, a workspace or a rest posture that make no sense; mink is not installed.
        """
        self.kinematics = kinematics
        published = limits_of(kinematics.name, firmware)
        self.limits = published if limits is None else narrowed(published, limits)
        self.workspace = workspace or Workspace()
        if not np.less(self.workspace.low, self.workspace.high).all():
            raise DeviceError(f"a workspace from {self.workspace.low} to {self.workspace.high} m is empty")
        tool = tool_limits_of(kinematics.name, firmware)
        self._speed, self._turn = min(tool_speed, tool.speed), min(tool_turn, tool.angular_speed)
        self._firmware = firmware
        middle = (self.limits.low + self.limits.high) / 2
        rest = self.limits.check(f"{kinematics.name}, rest posture", middle if rest is None else np.array(rest))
        if orientation_weight is None:
            orientation_weight = 0.3 if kinematics.joints >= 6 else 0.01
        self._weight = orientation_weight
        model = kinematics.mj_model
        offsets = [*model.body_pos[model.jnt_bodyid[2:]], model.site("tool").pos]
        self._length = float(np.linalg.norm(offsets, axis=1).sum())
        self._mujoco, self._mink = _import("mujoco"), _import("mink")
        self._qpsolvers = _import("qpsolvers")
        self._frame = self._mink.FrameTask("tool", "site", position_cost=1.0, orientation_cost=orientation_weight)
        posture = self._mink.PostureTask(model, cost=1e-4)
        posture.set_target(rest)
        self._tasks = [self._frame, posture]
        self._configuration = self._mink.Configuration(model)
        self._brakes_early = brakes_early(kinematics.name, firmware)
        workspace = self.workspace
        self._bounded = bool(np.isfinite([*workspace.low, *workspace.high, workspace.floor]).any())
        self._site = model.site("tool").id
        self._bodies = kinematics.bodies if np.isfinite(workspace.floor) else []

    def step(self, positions: np.ndarray, target: Pose | Twist, dt_s: float) -> np.ndarray:
        """Joint positions (J,) for ``dt_s`` after the arm was at ``positions`` (J,), on the way to ``target``.

        They keep the position limits, differ from ``positions`` by no more than the velocity limits allow (once those
        are within the position limits), and leave the workspace no further than it is left already. A pose that is out
        of reach is approached as far as that goes.

        Raises:
            LimitError: NaN, infinity or a wrong shape; no pose; ``positions`` more than 0.05 rad outside the limits.
        """
        limits, name = self.limits, self.kinematics.name
        if not (np.isfinite(dt_s) and dt_s > 0):
            raise LimitError(f"{name}: a step must take a time above 0 s, got {dt_s}")
        start = np.clip(limits.check(name, positions, slack=_OUTSIDE), limits.low, limits.high)
        now = self.kinematics.forward(start)
        aim = self._next_pose(now, target, dt_s)
        self._frame.set_target(
            self._mink.SE3.from_rotation_and_translation(self._mink.SO3(aim.quaternion), aim.position)
        )
        self._configuration.update(start)
        lowest, highest = self._joint_steps(start, dt_s)
        rows = self._constraints(self._configuration.data, lowest, highest)
        # The solve is blind to the curvature of the task, up to the arm's length times what is left to go. Where the
        # arm is stretched towards what it cannot reach, nothing else would keep it from swinging about.
        distance, angle = pose_error(now, aim)
        damping = 1e-6 + 0.5 * self._length * distance + self._weight**2 * angle
        problem = self._mink.build_ik(self._configuration, self._tasks, dt_s, damping=damping, limits=[rows])
        solution = self._qpsolvers.solve_problem(problem, solver="daqp").x
        if solution is None or not np.isfinite(solution).all():
            raise LimitError(f"{name}: no step towards {target} was found; the arm keeps its last target")
        step = np.clip(solution, lowest, highest)
        if not self._bounded:
            return np.clip(start + step, limits.low, limits.high)
        workspace = self.workspace
        # The workspace is linear in the solve only: a step that curves out of it is shortened.
        before = self.kinematics.outside(start, workspace)
        for share in (1.0, 0.5, 0.25, 0.1):
            new = np.clip(start + share * step, limits.low, limits.high)
            if (self.kinematics.outside(new, workspace) <= before + _EPSILON).all():
                return new
        return start

    def reach(
        self, positions: np.ndarray, target: Pose, *, tolerance_m: float = 1e-4, tolerance_rad: float = 1e-3
    ) -> np.ndarray:
        """Joint positions (J,) that put the tool at ``target``, found step by step from ``positions``; nothing moves.

        Raises:
            LimitError: as ``step``; or it is not reached from there.
        """
        target, error = checked_pose(target), (np.inf, np.inf)
        for _ in range(300):
            reached = self.kinematics.forward(positions)
            error = pose_error(reached, target)
            if error[0] <= tolerance_m and error[1] <= tolerance_rad:
                return positions
            positions = self.step(positions, target, 0.1)
        raise LimitError(
            f"{self.kinematics.name}: the pose at {np.round(target.position, 3)} m is not reached from there in the "
            f"limits: {1000 * error[0]:.1f} mm and {error[1]:.3f} rad are left; start nearer, or choose another pose"
        )

    def _next_pose(self, now: Pose, target: Pose | Twist, dt_s: float) -> Pose:
        """Where the tool should be after this step: on the straight way there."""
        mujoco = self._mujoco
        if isinstance(target, Twist):
            twist = np.concatenate([target.linear, target.angular]).astype(np.float64)
            if twist.shape != (6,) or not np.isfinite(twist).all():
                raise LimitError(f"{self.kinematics.name}: a twist must be 6 finite numbers, got {twist}")
            way, turn = twist[:3] * dt_s, twist[3:] * dt_s
        else:
            target = checked_pose(target)
            way = target.position - now.position
            turn, local = np.zeros(3), np.zeros(3)
            mujoco.mju_subQuat(local, target.quaternion, now.quaternion)
            mujoco.mju_rotVecQuat(turn, local, now.quaternion)
        # Each as far as its own speed allows: an orientation that cannot be had must not hold the position back.
        way = way * min(1.0, self._speed * dt_s / max(float(np.linalg.norm(way)), _EPSILON))
        share = min(1.0, self._turn * dt_s / max(float(np.linalg.norm(turn)), _EPSILON))
        position = np.clip(now.position + way, self.workspace.low, self.workspace.high)
        position[2] = max(position[2], self.workspace.floor)
        back, local, quaternion = np.zeros(4), np.zeros(3), now.quaternion.copy()
        mujoco.mju_negQuat(back, now.quaternion)
        mujoco.mju_rotVecQuat(local, turn, back)
        mujoco.mju_quatIntegrate(quaternion, local, share)
        return Pose(position, quaternion)

    def _joint_steps(self, start: np.ndarray, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest step of each joint, (J,) rad, <= 0 and >= 0.

        Half of what is left to a position limit is the most that one step takes, so that a joint brakes."""
        limits = self.limits
        lowest, highest = -limits.velocity, limits.velocity
        if self._brakes_early:
            slowest, fastest = velocity_range(self.kinematics.name, start, self._firmware)
            lowest, highest = np.maximum(lowest, slowest), np.minimum(highest, fastest)
        lowest = np.maximum(lowest * dt_s, 0.5 * (limits.low - start))
        return lowest, np.minimum(highest * dt_s, 0.5 * (limits.high - start))

    def _constraints(self, data: Any, lowest: np.ndarray, highest: np.ndarray) -> _Rows:
        model, workspace, joints = self.kinematics.mj_model, self.workspace, self.kinematics.joints
        rows, room = [np.eye(joints), -np.eye(joints)], [highest, -lowest]
        point = np.zeros((3, joints))
        if self._bounded:
            self._mujoco.mj_jacSite(model, data, point, None, self._site)
            rows += [point.copy(), -point]
            room += [0.5 * side for side in _tool_room(data.site_xpos[self._site], workspace)]
        for body in self._bodies:
            self._mujoco.mj_jac(model, data, point, None, data.xpos[body], body)
            rows.append(-point[2:].copy())
            room.append(0.5 * (data.xpos[body, 2:] - workspace.floor))
        left = np.concatenate(room)
        finite = np.isfinite(left)
        return _Rows(np.vstack(rows)[finite], np.maximum(left[finite], 0.0))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Constraints G dq <= h, as mink asks a limit for them."""

    G: np.ndarray
    h: np.ndarray
    inactive = False

    def compute_qp_inequalities(self, configuration: Any, dt: float) -> _Rows:
        return self


def _tool_room(tool: np.ndarray, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """How far the tool centre is from the upper and from the lower sides, (3,) each, m; < 0 = outside."""
    return workspace.high - tool, tool - np.array([*workspace.low[:2], max(workspace.low[2], workspace.floor)])


def checked_pose(pose: Pose) -> Pose:
    """``pose`` with float64 arrays and a quaternion of length 1.

    Raises:
        LimitError: not finite, a wrong shape, a quaternion far from length 1.
    """
    position, quaternion = np.asarray(pose.position, np.float64), np.asarray(pose.quaternion, np.float64)
    finite = np.isfinite(position).all() and np.isfinite(quaternion).all()
    if position.shape != (3,) or quaternion.shape != (4,) or not finite:
        raise LimitError(f"a pose must be 3 and 4 finite numbers, got {position} and {quaternion}")
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1) > 0.01:
        raise LimitError(f"a quaternion (w, x, y, z) must have length 1, {quaternion} has {length:.3f}")
    return Pose(position, quaternion / length)


def pose_error(one: Pose, other: Pose) -> tuple[float, float]:
    """Distance (m) and angle (rad) between two poses whose quaternions have length 1."""
    cosine = min(1.0, abs(float(one.quaternion @ other.quaternion)))
    sine = float(np.linalg.norm(_vector_part(one.quaternion, other.quaternion)))
    return float(np.linalg.norm(one.position - other.position)), 2 * float(np.arctan2(sine, cosine))


def _vector_part(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of conj(a) b: exact for small angles, where the cosine is not."""
    return a[0] * b[1:] - b[0] * a[1:] - np.cross(a[1:], b[1:])


def _import(name: str) -> Any:
    """A module of the extra [kinematics], whose names are unknown to type checkers."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeviceError(f"kinematics needs {name} ({error}): pip install 'robolearn[kinematics]'") from None
