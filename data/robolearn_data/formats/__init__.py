"""Datasets of other programs, read and written without importing those programs.

To add a format: one module with ``import_x(source, target, *, progress=None, ...) -> (episodes, steps)`` and, where it
is written too, ``export_x`` of the same form; one function here that imports it when it is called; one entry below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def _import_diffusion_policy(
    source: Path, target: Path, *, progress: Progress | None = None, rate_hz: float | None = None
) -> tuple[int, int]:
    from robolearn_data.formats.diffusion_policy import import_diffusion_policy

    return import_diffusion_policy(source, target, rate_hz=rate_hz, progress=progress)


def _export_diffusion_policy(
    source: Path, target: Path, *, progress: Progress | None = None, images: str = "blosc"
) -> tuple[int, int]:
    from robolearn_data.formats.diffusion_policy import export_diffusion_policy

    return export_diffusion_policy(source, target, images=images, progress=progress)


def _import_robomimic(
    source: Path, target: Path, *, progress: Progress | None = None, rate_hz: float | None = None
) -> tuple[int, int]:
    from robolearn_data.formats.robomimic import import_robomimic

    return import_robomimic(source, target, rate_hz=rate_hz, progress=progress)


def _export_robomimic(source: Path, target: Path, *, progress: Progress | None = None) -> tuple[int, int]:
    from robolearn_data.formats.robomimic import export_robomimic

    return export_robomimic(source, target, progress=progress)


def _import_aloha(
    source: Path, target: Path, *, progress: Progress | None = None, rate_hz: float = 50.0, bgr: bool = False
) -> tuple[int, int]:
    from robolearn_data.formats.aloha import import_aloha

    return import_aloha(source, target, rate_hz=rate_hz, bgr=bgr, progress=progress)


def _import_lerobot(
    source: Path,
    target: Path,
    *,
    progress: Progress | None = None,
    keep_good: Callable[[str], None] | None = None,
    version: str | None = None,
) -> tuple[int, int]:
    from robolearn_data.formats.lerobot_read import import_lerobot

    return import_lerobot(source, target, version=version, on_broken=keep_good, progress=progress)


def _export_lerobot(
    source: Path, target: Path, *, progress: Progress | None = None, images: str = "h264", version: str
) -> tuple[int, int]:
    from robolearn_data.formats.lerobot_write import export_lerobot

    return export_lerobot(source, target, version=version, images=images, progress=progress)


IMPORTERS: dict[str, Callable[..., tuple[int, int]]] = {
    "diffusion_policy": _import_diffusion_policy,
    "lerobot": _import_lerobot,
    "lerobot_v21": partial(_import_lerobot, version="v2.1"),
    "lerobot_v30": partial(_import_lerobot, version="v3.0"),
    "robomimic": _import_robomimic,
    "aloha": _import_aloha,
}
"""Format -> function (source, target, *, progress=None, options of that format) that returns episodes and steps."""

EXPORTERS: dict[str, Callable[..., tuple[int, int]]] = {
    "diffusion_policy": _export_diffusion_policy,
    "lerobot_v21": partial(_export_lerobot, version="v2.1"),
    "lerobot_v30": partial(_export_lerobot, version="v3.0"),
    "robomimic": _export_robomimic,
}
"""Format -> function (source, target, *, progress=None, options of that format) that returns episodes and steps."""
