"""Lift: a Panda arm picks a cube up from a table. robosuite's task "Lift".

The table's surface is the plane z = 0.8. The arm's start is jittered and the cube lies within 3 cm of the table's
centre at any yaw; its size is always the same. In ``lift/wide`` it lies within 12 cm, along x and along y.
"""

from __future__ import annotations

import math

import numpy as np

from robolearn_data.schema import Stream
from robolearn_sim.panda import Scene

TABLE_Z = 0.8
LIFTED_M = 0.04  # centre of the cube above the table

STATE = Stream(
    (13,),
    names=(
        *("eef_x", "eef_y", "eef_z"),
        *("tilt_x", "tilt_y", "yaw"),
        "opening",
        *("cube_x_from_eef", "cube_y_from_eef", "cube_z_from_eef"),
        *("cube_cos_4_yaw", "cube_sin_4_yaw"),
        "cube_height",
    ),
    unit="m,m,m,1,1,rad,m,m,m,m,1,1,m",
    frame="world",
)
"""Gripper and cube. tilt: horizontal part of the gripper's unit approach vector, 0 when it points down. yaw: of the
gripper's closing direction about the vertical. opening: between the fingertips. cube_cos_4_yaw and cube_sin_4_yaw: four
times the yaw from gripper to cube, because a cube looks the same after a quarter turn. cube_height: centre above table.
"""


class Lift:
    """The score is how far the cube is raised, 1 at 4 cm above the table, where robosuite counts success."""

    name, environment, state, max_steps, view = "lift", "Lift", STATE, 150, "sideview"
    wide_m = 0.12
    unused: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()

    def __init__(self, scene: Scene) -> None:
        self._scene, self._cube = scene, scene.body("cube_main")
        self._rest_m = float(scene.model.geom_size[scene.geoms_of(self._cube)[0]][2])
        """Height of the centre of a cube that lies on the table."""

    def observe(self) -> list[float]:
        scene, axes = self._scene, self._scene.tool_axes
        return [
            *scene.tool_position,
            *axes[:2, 2],
            math.atan2(axes[1, 0], axes[0, 0]),
            scene.opening,
            *(scene.data.xpos[self._cube] - scene.tool_position),
            *quarter_turns(scene, self._cube),
            self._height(),
        ]

    def progress(self) -> tuple[float, bool]:
        rise = (self._height() - self._rest_m) / (LIFTED_M - self._rest_m)
        return rise, rise > 1

    def objects(self) -> dict[str, np.ndarray]:
        return {"cube": self._scene.pose(self._cube)}

    def _height(self) -> float:
        return float(self._scene.data.xpos[self._cube][2]) - TABLE_Z


def quarter_turns(scene: Scene, cube: int) -> tuple[float, float]:
    """Cosine and sine of four times the angle about the vertical from the gripper's closing direction to the sides of
    the body ``cube``."""
    closing, side = scene.tool_axes[:, 0], scene.data.xmat[cube].reshape(3, 3)[:, 0]
    angle = 4 * (math.atan2(side[1], side[0]) - math.atan2(closing[1], closing[0]))
    return math.cos(angle), math.sin(angle)
