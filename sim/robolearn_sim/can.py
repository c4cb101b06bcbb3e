"""Can: a Panda arm takes a can out of one bin and puts it into its compartment of another. robosuite's task
"PickPlaceCan".

The can stands anywhere in the one bin, at any yaw. robosuite gives milk, bread and cereals the other compartments; they
are not in this world.
"""

from __future__ import annotations

import math

import numpy as np

from robolearn_data.schema import Stream
from robolearn_sim.panda import ARM_NAMES, ARM_UNITS, Scene

GOAL = np.array([0.1975, 0.4025, 0.8])
"""Middle of the compartment's floor, m: robosuite's bin 2 is centred at (0.1, 0.28)."""
GOAL_SIZE = np.array([0.195, 0.245, 0.1])
"""Where the can's centre counts as inside: this far, in all, from side to side; and up from the floor."""
RELEASED_M = math.atanh(0.4) / 10  # from the fingertips to the middle of the can, when robosuite counts it

STATE = Stream(
    (19,),
    names=(
        *ARM_NAMES,
        *("can_x_from_eef", "can_y_from_eef", "can_z_from_eef"),
        *("can_x_from_goal", "can_y_from_goal", "can_z_from_goal"),
        *("can_axis_x", "can_axis_y", "can_axis_z"),
    ),
    unit=f"{ARM_UNITS},m,m,m,m,m,m,1,1,1",
    frame="world",
)
"""can_axis: unit vector from the can's bottom to its top. goal: the middle of the compartment's floor."""


class Can:
    """The score is how near the can is to the middle of its compartment, 1 where robosuite counts success: it is in
    the compartment and let go."""

    name, environment, state, max_steps, view = "can", "PickPlaceCan", STATE, 300, "frontview"
    wide_m = 0.0
    unused: tuple[str, ...] = (
        *(f"{prefix}{thing}_main" for thing in ("Milk", "Bread", "Cereal") for prefix in ("", "Visual")),
        "VisualCan_main",
    )
    placed: tuple[str, ...] = ()

    def __init__(self, scene: Scene) -> None:
        self._scene, self._can = scene, scene.body("Can_main")

    def observe(self) -> list[float]:
        position = self._scene.data.xpos[self._can]
        axis = self._scene.data.xmat[self._can].reshape(3, 3)[:, 2]
        return [*self._scene.arm(), *(position - self._scene.tool_position), *(position - GOAL), *axis]

    def progress(self) -> tuple[float, bool]:
        position = self._scene.data.xpos[self._can]
        away = position - GOAL
        inside = (np.abs(away[:2]) < GOAL_SIZE[:2] / 2).all() and 0 < away[2] < GOAL_SIZE[2]
        if inside and np.linalg.norm(self._scene.tool_position - position) > RELEASED_M:
            return 1.0, True
        return min(0.9, 1 - float(np.linalg.norm(away)) / 0.8), False

    def objects(self) -> dict[str, np.ndarray]:
        return {"can": self._scene.pose(self._can), "goal": np.array([*GOAL, 1, 0, 0, 0])}
