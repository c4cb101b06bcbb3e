"""Door: a Panda arm presses a door's handle down and pulls the door open. robosuite's "Door", with its latch.

The door stands right of the robot; its place and direction are jittered. The handle turns about an axis across the
door, and the latch behind it holds the door until it is turned far enough.
"""

from __future__ import annotations

import numpy as np

from robolearn_data.schema import Stream
from robolearn_sim.panda import ARM_NAMES, ARM_UNITS, Scene

OPEN_RAD = 0.3

STATE = Stream(
    (21,),
    names=(
        *ARM_NAMES,
        *("handle_x_from_eef", "handle_y_from_eef", "handle_z_from_eef"),
        *("lever_x", "lever_y", "lever_z"),
        *("out_x", "out_y", "out_z"),
        *("hinge", "latch"),
    ),
    unit=f"{ARM_UNITS},m,m,m,1,1,1,1,1,1,rad,rad",
    frame="world",
)
"""handle: the free end of its lever. lever: unit vector along it, to the free end. out: out of the door, towards who
opens it. hinge and latch: angles of the door and of the handle, 0 at the start."""


class Door:
    """The score is how far the door is open, 1 at 0.3 rad, where robosuite counts success."""

    name, environment, state, max_steps, view = "door", "Door", STATE, 250, "frontview"
    wide_m = 0.0
    unused: tuple[str, ...] = ()
    placed: tuple[str, ...] = ("Door_main",)

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        model = scene.model
        self._frame, self._latch = scene.body("Door_frame"), scene.body("Door_latch")
        self._handle = model.site("Door_handle").id
        self._hinge_qpos = int(model.joint("Door_hinge").qposadr[0])
        self._latch_qpos = int(model.joint("Door_latch_joint").qposadr[0])

    def observe(self) -> list[float]:
        data = self._scene.data
        latch = data.xmat[self._latch].reshape(3, 3)
        handle = data.site_xpos[self._handle]
        return [
            *self._scene.arm(),
            *(handle - self._scene.tool_position),
            *latch[:, 0],
            *-latch[:, 1],
            data.qpos[self._hinge_qpos],
            data.qpos[self._latch_qpos],
        ]

    def progress(self) -> tuple[float, bool]:
        hinge = float(self._scene.data.qpos[self._hinge_qpos])
        return hinge / OPEN_RAD, hinge > OPEN_RAD

    def objects(self) -> dict[str, np.ndarray]:
        return {"handle": self._scene.pose(self._latch), "frame": self._scene.pose(self._frame)}
