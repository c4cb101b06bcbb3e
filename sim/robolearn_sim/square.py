"""Square: a Panda arm puts a square nut with a handle over a square peg. robosuite's "NutAssemblySquare".

The nut lies left of the table's middle, at any yaw; the peg stands always at the same place.
"""

from __future__ import annotations

import math

import numpy as np

from robolearn_data.schema import Stream
from robolearn_sim.panda import ARM_NAMES, ARM_UNITS, Scene

PEG = np.array([0.23, 0.1, 0.82])
"""Where the middle of a nut is that lies on the table around the peg."""
ON_PEG_M, SEATED_Z = 0.03, 0.87
"""robosuite counts the nut: no further from the peg along x and y, and lower."""
RELEASED_M = math.atanh(0.4) / 10
HANDLE = np.array([0.054, 0.0, 0.0])  # middle of the handle in the nut's frame, m

STATE = Stream(
    (22,),
    names=(
        *ARM_NAMES,
        *("nut_x_from_eef", "nut_y_from_eef", "nut_z_from_eef"),
        *("nut_x_from_peg", "nut_y_from_peg", "nut_z_from_peg"),
        *("handle_x", "handle_y", "handle_z"),
        *("up_x", "up_y", "up_z"),
    ),
    unit=f"{ARM_UNITS},m,m,m,m,m,m,1,1,1,1,1,1",
    frame="world",
)
"""nut: its hole's centre. handle: unit vector from there to the handle. up: the nut's upward axis. peg: where the
hole's centre is when the nut lies around it."""


class Square:
    """The score is how near the nut is to lying around the peg, 1 where robosuite counts success."""

    name, environment, state, max_steps, view = "square", "NutAssemblySquare", STATE, 300, "sideview"
    wide_m = 0.0
    unused: tuple[str, ...] = ("RoundNut_main",)
    placed: tuple[str, ...] = ()

    def __init__(self, scene: Scene) -> None:
        self._scene, self._nut = scene, scene.body("SquareNut_main")

    def observe(self) -> list[float]:
        position = self._scene.data.xpos[self._nut]
        axes = self._scene.data.xmat[self._nut].reshape(3, 3)
        return [
            *self._scene.arm(),
            *(position - self._scene.tool_position),
            *(position - PEG),
            *axes[:, 0],
            *axes[:, 2],
        ]

    def progress(self) -> tuple[float, bool]:
        position = self._scene.data.xpos[self._nut]
        on_peg = (np.abs(position[:2] - PEG[:2]) < ON_PEG_M).all() and position[2] < SEATED_Z
        if on_peg and np.linalg.norm(self._scene.tool_position - position) > RELEASED_M:
            return 1.0, True
        return min(0.9, 1 - float(np.linalg.norm(position - PEG)) / 0.6), False

    def objects(self) -> dict[str, np.ndarray]:
        return {"nut": self._scene.pose(self._nut), "peg": np.array([*PEG, 1, 0, 0, 0])}
