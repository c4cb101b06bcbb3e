"""Cameras. ``process.CameraProcess`` runs one in a process of its own, which is how everything else uses them.

- ``realsense`` (and replay), ``uvc``, ``mjpeg``, ``rtsp``, ``files``: one kind each, and its settings in a rig file.
- ``reader`` the thread around libraries that may block; ``device_clock`` their times on CLOCK_MONOTONIC.
- ``health`` how a camera is, in shared memory; ``find`` which are connected.
- ``calibration``, ``calibration_file`` lens and place by a ChArUco board; ``latency`` by correlation.

One more kind: a frozen dataclass with ``open`` and ``with_twin`` that gives a ``devices.Camera``; where the library
blocks, a ``reader.Source`` for ``reader.ThreadedCamera``; an entry in ``registry.CAMERAS``. Its twin takes pictures
from a ``twins.pictures.Feed``, so that every fault and the time in the picture are there.
"""
