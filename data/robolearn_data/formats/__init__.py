"""Datasets of other programs, read and written without importing those programs.

To add a format: one module with ``import_x(source, target, *, on_broken=None, progress=None, ...)``, which returns
episodes and steps, or ``export_x`` of the same form with ``on_loss``, or both; one function here for each, which
imports it when it is called; one entry below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

OnBroken = Callable[[str], None]
"""Called with one line for each episode that is broken and therefore left out."""

OnLoss = Callable[[str], None]
"""Called with one line that says what of the dataset the format cannot hold."""


def _import_diffusion_policy(
    source: Path,
    target: str | Path,
    *,
    progress: Progress | None = None,
    on_broken: OnBroken | None = None,
    rate_hz: float | None = None,
) -> tuple[int, int]:
    from robolearn_data.formats.diffusion_policy import import_diffusion_policy

    return import_diffusion_policy(source, target, on_broken=on_broken, progress=progress, rate_hz=rate_hz)


def _export_diffusion_policy(
    source: str | Path,
    target: Path,
    *,
    progress: Progress | None = None,
    on_loss: OnLoss | None = None,
    images: str = "blosc",
) -> tuple[int, int]:
    from robolearn_data.formats.diffusion_policy import export_diffusion_policy

    return export_diffusion_policy(source, target, on_loss=on_loss, progress=progress, images=images)


def _import_robomimic(
    source: Path,
    target: str | Path,
    *,
    progress: Progress | None = None,
    on_broken: OnBroken | None = None,
    rate_hz: float | None = None,
) -> tuple[int, int]:
    from robolearn_data.formats.robomimic import import_robomimic

    return import_robomimic(source, target, on_broken=on_broken, progress=progress, rate_hz=rate_hz)


def _export_robomimic(
    source: str | Path, target: Path, *, progress: Progress | None = None, on_loss: OnLoss | None = None
) -> tuple[int, int]:
    from robolearn_data.formats.robomimic import export_robomimic

    return export_robomimic(source, target, on_loss=on_loss, progress=progress)


def _import_aloha(
    source: Path,
    target: str | Path,
    *,
    progress: Progress | None = None,
    on_broken: OnBroken | None = None,
    rate_hz: float = 50.0,
    bgr: bool = False,
) -> tuple[int, int]:
    from robolearn_data.formats.aloha import import_aloha

    return import_aloha(source, target, on_broken=on_broken, progress=progress, rate_hz=rate_hz, bgr=bgr)


def _import_lerobot(
    source: Path,
    target: str | Path,
    *,
    progress: Progress | None = None,
    on_broken: OnBroken | None = None,
    version: str | None = None,
) -> tuple[int, int]:
    from robolearn_data.formats.lerobot_read import import_lerobot

    return import_lerobot(source, target, on_broken=on_broken, progress=progress, version=version)


def _export_lerobot(
    source: str | Path,
    target: Path,
    *,
    progress: Progress | None = None,
    on_loss: OnLoss | None = None,
    images: str = "h264",
    version: str = "v3.0",
) -> tuple[int, int]:
    from robolearn_data.formats.lerobot_write import export_lerobot

    return export_lerobot(source, target, on_loss=on_loss, progress=progress, images=images, version=version)


def _export_mcap(
    source: str | Path,
    target: Path,
    *,
    progress: Progress | None = None,
    on_loss: OnLoss | None = None,
    episodes: str = "all",
) -> tuple[int, int]:
    from robolearn_data.formats.mcap_write import export_mcap

    return export_mcap(source, target, on_loss=on_loss, progress=progress, episodes=episodes)


def _export_rerun(
    source: str | Path,
    target: Path,
    *,
    progress: Progress | None = None,
    on_loss: OnLoss | None = None,
    episodes: str = "all",
) -> tuple[int, int]:
    from robolearn_data.formats.rerun_write import export_rerun

    return export_rerun(source, target, on_loss=on_loss, progress=progress, episodes=episodes)


IMPORTERS: dict[str, Callable[..., tuple[int, int]]] = {
    "diffusion_policy": _import_diffusion_policy,
    "lerobot": _import_lerobot,
    "lerobot_v21": partial(_import_lerobot, version="v2.1"),
    "lerobot_v30": partial(_import_lerobot, version="v3.0"),
    "robomimic": _import_robomimic,
    "aloha": _import_aloha,
}
"""Format -> function (source, target, *, progress, on_broken, options of the format), returns episodes and steps."""

EXPORTERS: dict[str, Callable[..., tuple[int, int]]] = {
    "diffusion_policy": _export_diffusion_policy,
    "lerobot_v21": partial(_export_lerobot, version="v2.1"),
    "lerobot_v30": partial(_export_lerobot, version="v3.0"),
    "robomimic": _export_robomimic,
    "mcap": _export_mcap,
    "rerun": _export_rerun,
}
"""Format -> function (source, target, *, progress, on_loss, options of that format) that returns episodes and steps."""
