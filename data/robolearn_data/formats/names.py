"""What the field's usual array names mean: kind, component names and units, which most foreign formats do not store.

Sources: UMI (Chi et al., 2024), scripts_slam_pipeline/07_generate_replay_buffer.py; diffusion_policy's real_world
environment; robosuite's observables.
"""

from __future__ import annotations

import re
from typing import Any

from robolearn_data.schema import Kind, Stream

_XYZ = ("x", "y", "z")
_TURN = ("rx", "ry", "rz")
_KNOWN: tuple[tuple[str, int | None, dict[str, Any]], ...] = (
    (r"(robot\d*_)?eef_pos", 3, {"names": _XYZ, "unit": "m"}),
    (r"(robot\d*_)?eef_rot_axis_angle", 3, {"names": _TURN, "unit": "rad"}),
    (r"(robot\d*_)?eef_quat", 4, {"names": ("qx", "qy", "qz", "qw")}),
    (r"(robot\d*_)?eef_pose", 6, {"names": _XYZ + _TURN, "unit": "m,m,m,rad,rad,rad"}),
    (r"(robot\d*_)?eef_pose_vel", 6, {"names": _XYZ + _TURN, "unit": "m/s,m/s,m/s,rad/s,rad/s,rad/s"}),
    (r"robot\d+_demo_(start|end)_pose", 6, {"kind": "info", "names": _XYZ + _TURN, "unit": "m,m,m,rad,rad,rad"}),
    (r"(robot\d*_)?gripper_width", 1, {"names": ("width",), "unit": "m"}),
    (r"robot\d*_gripper_qpos", None, {"unit": "m"}),
    (r"robot\d*_joint(_pos)?", None, {"unit": "rad"}),
    (r"robot\d*_joint_vel", None, {"unit": "rad/s"}),
    (r"timestamp", None, {"kind": "info", "unit": "s"}),
    (r"stage|rewards?|dones?", None, {"kind": "info"}),
)
"""Pattern of the whole name, number of components (None: any), fields of the stream."""


def known_stream(name: str, shape: tuple[int, ...], dtype: str, *, kind: Kind | None = None) -> Stream:
    """The stream of a foreign array; ``shape`` is that of one step.

    Without ``kind``: ``action`` is the action, (H, W, 1 | 3 | 4) an image, ``point_cloud`` (P, 3 or more), as 3D
    Diffusion Policy stores it, a point cloud, everything else not known here a state.

    Raises:
        SchemaError: not numeric, or an impossible shape.
    """
    if kind is None:
        is_image = len(shape) == 3 and shape[-1] in (1, 3, 4)
        is_points = name.endswith("point_cloud") and len(shape) == 2 and shape[1] >= 3 and dtype.startswith("float")
        kind = "action" if name == "action" else "image" if is_image else "points" if is_points else "state"
    size = shape[-1] if len(shape) == 1 else None
    for pattern, components, fields in _KNOWN:
        if re.fullmatch(pattern, name) and components in (None, size):
            return Stream(shape, dtype, **{"kind": kind, **fields})
    return Stream(shape, dtype, kind)
