"""Cameras: one module per kind, ``process.CameraProcess`` to run any of them, calibration and latency."""
