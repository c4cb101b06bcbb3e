"""The libraries behind cameras, imported when a camera is opened."""

from __future__ import annotations

import os
from typing import Any

from robolearn_hardware.devices import DeviceError


def import_realsense() -> Any:
    """pyrealsense2. Raises DeviceError without it."""
    try:
        import pyrealsense2
    except ImportError as error:
        raise DeviceError(
            f"a RealSense needs pyrealsense2 ({error}); install it by: pip install 'robolearn[realsense]'"
        ) from None
    return pyrealsense2


def import_opencv() -> Any:
    """cv2. Raises DeviceError without it."""
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")  # seconds without a frame; its default is 10
    try:
        import cv2
    except ImportError as error:
        raise DeviceError(f"this needs OpenCV ({error}); install it by: pip install 'robolearn[cameras]'") from None
    return cv2
