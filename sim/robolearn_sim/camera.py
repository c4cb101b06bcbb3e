"""Off-screen pictures of a MuJoCo scene, tuned for drawing without a GPU.

Multisampling, shadows and reflections cost more than everything else together when a CPU draws, so they are off.
"""

from __future__ import annotations

import atexit
import ctypes.util
import functools
import importlib
import os
from typing import Any

import numpy as np

from robolearn_data.schema import UserError

_INSTALL = "install libegl1 with libgl1-mesa-dri (MUJOCO_GL=egl), or libosmesa6 (MUJOCO_GL=osmesa)"


class RenderError(UserError):
    """Nothing can be drawn on this machine."""


def choose_backend() -> str:
    """Set MUJOCO_GL, unless it is set, to what this machine has; EGL (with or without a GPU) before OSMesa.

    MuJoCo and PyOpenGL read the environment when they are imported, so call this before.

    Raises:
        RenderError: neither library is installed.
    """
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if backend not in ("egl", "osmesa"):
        found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
        backend = found[0] if found else ""
    if not backend:
        raise RenderError(f"no off-screen renderer was found; {_INSTALL}")
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's threads would fight with the other worker processes
    return backend


class Camera:
    """Draws one MuJoCo model. Opens its graphics context on the first picture and closes it before Python ends."""

    def __init__(self, model: Any, *, max_size: int) -> None:
        """``model``: a mujoco.MjModel, whose quality settings are changed. ``max_size``: longest side of a picture."""
        self._model = model
        self._max_size = max_size
        self._context: Any = None

    def draw(self, data: Any, camera: str, size: int) -> np.ndarray:
        """What the named camera sees of ``data`` (mujoco.MjData), (size, size, 3) uint8, first row on top."""
        return self.look(data, camera, size, size)[0]

    def look(
        self, data: Any, camera: str, width: int, height: int, *, depth: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The colours (height, width, 3) uint8, and where asked for the distances along the optical axis (height,
        width) float32, m."""
        mujoco = _mujoco()
        if self._context is None:
            self._open()
        self._gl.make_current()
        self._view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        rect = mujoco.MjrRect(0, 0, width, height)
        pixels = np.empty((height, width, 3), np.uint8)
        buffer = np.empty((height, width), np.float32) if depth else None
        mujoco.mjr_render(rect, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, buffer, rect, self._context)
        distances = None if buffer is None else self._distances(buffer[::-1])
        return np.ascontiguousarray(pixels[::-1]), distances

    def _distances(self, buffer: np.ndarray) -> np.ndarray:
        """The depth buffer (0 near, 1 far) as metres."""
        extent, clip = self._model.stat.extent, self._model.vis.map
        near, far = clip.znear * extent, clip.zfar * extent
        return near / (1 - buffer * (1 - near / far))

    def close(self) -> None:
        if self._context is not None:
            atexit.unregister(self._free)
            self._free()
            self._context = None

    def _open(self) -> None:
        mujoco, backend = _mujoco(), choose_backend()
        try:
            if backend == "egl":
                from mujoco.egl import GLContext
            else:
                from mujoco.osmesa import GLContext
            self._gl = GLContext(self._max_size, self._max_size)
            self._gl.make_current()
        except Exception as error:  # PyOpenGL raises whatever the driver makes of it
            reason = " ".join(str(error).split())
            raise RenderError(
                f"MUJOCO_GL={backend} does not work here ({reason}); set the other one or {_INSTALL}"
            ) from error
        self._model.vis.global_.offwidth = self._model.vis.global_.offheight = self._max_size
        self._model.vis.quality.offsamples = 0
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # robosuite keeps collision shapes there
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        # MuJoCo closes the graphics library at exit; a context freed after that prints tracebacks. Handlers run in
        # reverse order, so this one comes first.
        self._free = functools.partial(_free, self._gl, self._context)
        atexit.register(self._free)


def _mujoco() -> Any:
    """The module, whose names are compiled and unknown to type checkers."""
    return importlib.import_module("mujoco")


def _free(gl: Any, context: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
