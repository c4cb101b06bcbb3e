"""Stack: a Panda arm puts a small red cube on a green one. robosuite's "Stack".

Both lie within 8 cm of the table's middle along x and y, apart from each other, at any yaw. The table is z = 0.8.
"""

from __future__ import annotations

import numpy as np

from robolearn_data.schema import Stream
from robolearn_sim.lift import LIFTED_M, TABLE_Z, quarter_turns
from robolearn_sim.panda import ARM_NAMES, ARM_UNITS, Scene

STACKED_M = 0.045  # from the green cube's centre up to the red one's

STATE = Stream(
    (21,),
    names=(
        *ARM_NAMES,
        *("red_x_from_eef", "red_y_from_eef", "red_z_from_eef"),
        *("red_cos_4_yaw", "red_sin_4_yaw", "red_height"),
        *("red_x_from_green", "red_y_from_green", "red_z_from_green"),
        *("green_cos_4_yaw", "green_sin_4_yaw"),
    ),
    unit=f"{ARM_UNITS},m,m,m,1,1,m,m,m,m,1,1",
    frame="world",
)
"""The cubes' yaw is taken from the gripper's, four times, because a cube looks the same after a quarter turn."""


class Stack:
    """The score is how near the red cube is to lying on the green one, 1 where robosuite counts success: it is off the
    table, touches the green cube and is not held."""

    name, environment, state, max_steps, view = "stack", "Stack", STATE, 250, "sideview"
    wide_m = 0.0
    unused: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()

    def __init__(self, scene: Scene) -> None:
        self._scene, self._red, self._green = scene, scene.body("cubeA_main"), scene.body("cubeB_main")
        self._red_geoms, self._green_geoms = scene.geoms_of(self._red), scene.geoms_of(self._green)

    def observe(self) -> list[float]:
        scene, data = self._scene, self._scene.data
        red, green = data.xpos[self._red], data.xpos[self._green]
        return [
            *scene.arm(),
            *(red - scene.tool_position),
            *quarter_turns(scene, self._red),
            red[2] - TABLE_Z,
            *(red - green),
            *quarter_turns(scene, self._green),
        ]

    def progress(self) -> tuple[float, bool]:
        scene, data = self._scene, self._scene.data
        red, green = data.xpos[self._red], data.xpos[self._green]
        if (
            red[2] > TABLE_Z + LIFTED_M
            and scene.touch(self._red_geoms, self._green_geoms)
            and not scene.grasped(self._red_geoms)
        ):
            return 1.0, True
        return min(0.9, 1 - float(np.linalg.norm(red - green - [0, 0, STACKED_M])) / 0.3), False

    def objects(self) -> dict[str, np.ndarray]:
        return {"red": self._scene.pose(self._red), "green": self._scene.pose(self._green)}
