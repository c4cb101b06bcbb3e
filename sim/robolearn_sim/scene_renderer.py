"""What a camera sees of a scene that another process simulates."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.ring import Ring
from robolearn_hardware.twins.pictures import PictureSpec
from robolearn_sim.camera import Camera
from robolearn_sim.scene import CAMERAS, build_scene
from robolearn_sim.scene_handle import SceneHandle, announced


class SceneRenderer:
    """Draws the newest state of a scene, with one of its cameras. For one thread."""

    def __init__(
        self, scene: SceneHandle, camera: str, width: int = 640, height: int = 480, *, focal_px: float | None = None
    ) -> None:
        """``camera``: one of ``scene.CAMERAS``; ``focal_px``: its focal length, by default as the scene has it.

        Raises:
            DeviceError: no such camera, no such scene any more, or nothing can be drawn on this machine.
        """
        if camera not in CAMERAS:
            raise DeviceError(f"the scene has no camera {camera!r}; valid: {', '.join(CAMERAS)}")
        mujoco: Any = importlib.import_module("mujoco")
        self._mujoco = mujoco
        try:
            self._ring = Ring.attach(scene.ring)
        except FileNotFoundError:
            raise DeviceError(f"nothing simulates the scene of {scene.model!r} any more; start its twin") from None
        self._model = build_scene(scene.model, has_gripper=scene.has_gripper)
        self._data = mujoco.MjData(self._model)
        self._name, self._width, self._height = camera, width, height
        self._id = self._model.camera(camera).id
        if focal_px is not None:
            self._model.cam_fovy[self._id] = math.degrees(2 * math.atan(height / (2 * focal_px)))
        self._camera = Camera(self._model, max_size=max(width, height))
        self.time_ns = 0
        """Of the state drawn last."""

    def draw(self, *, depth: bool = False, right_m: float = 0.0) -> tuple[np.ndarray, np.ndarray | None]:
        """Colours (H, W, 3) uint8, and distances along the optical axis (H, W) float32 in m where asked for.

        Args:
            right_m: draw from so far to the right of the camera.
        """
        newest = self._ring.newest()
        if newest is not None:
            self.time_ns = int(newest[1]["time_ns"])
            self._data.qpos[:] = newest[1]["qpos"]
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        rotation = self._data.cam_xmat[self._id].reshape(3, 3)
        self._data.cam_xpos[self._id] += right_m * rotation[:, 0]
        return self._camera.look(self._data, self._name, self._width, self._height, depth=depth)

    def close(self) -> None:
        self._camera.close()
        self._ring.close()


class ScenePictures:
    """``Pictures`` of the scene behind the arm's twin, for the twin of a camera."""

    def __init__(self, spec: PictureSpec) -> None:
        scenes = announced()
        if not scenes:
            raise DeviceError(
                f"camera {spec.name!r} finds no simulated arm to look at; give an arm of this rig plant: mujoco"
            )
        self._offset_m = spec.depth_offset_m
        self._renderer = SceneRenderer(scenes[0], spec.name, spec.width, spec.height, focal_px=spec.focal_px)

    def at(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``Pictures``. The scene is drawn as it is now."""
        colour, metres = self._renderer.draw(depth=True)
        if self._offset_m:
            _, metres = self._renderer.draw(depth=True, right_m=-self._offset_m)
        assert metres is not None
        return colour, np.where(metres < 10, metres * 1000, 0).astype(np.uint16)

    def close(self) -> None:
        self._renderer.close()


def mujoco_pictures(spec: PictureSpec) -> ScenePictures:
    """What ``make_pictures("mujoco", spec)`` makes."""
    return ScenePictures(spec)
