"""What is looked at before demonstrations are recorded on a rig: a session in vain is an afternoon lost.

Each check takes what is known and says what was found and what to do; nothing is moved, opened or waited for here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from robolearn_data.schema import Schema
from robolearn_hardware.cameras.health import CameraCondition, CameraHealth
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import ArmInfo, CameraInfo, Condition
from robolearn_hardware.machine import Check
from robolearn_hardware.rig import Rig

BLURRED = 20.0
"""Variance of the Laplacian of the luma (0 to 255) below which a picture has hardly an edge. A plain wall has less
too: it is a hint, not a fault."""
BLACK = 3.0
"""Mean luma of a covered lens."""
FROZEN_S = 1.0
JPEG_QUALITY = 95
"""As datasets store pictures, see ``DatasetWriter.create``."""


def sharpness(picture: np.ndarray) -> float:
    """Variance of the Laplacian (4 neighbours) of the luma of ``picture`` (H, W, 3) uint8: how much fine detail there
    is (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000, section 3)."""
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.var(around - 4 * inner))


def check_camera(
    name: str, info: CameraInfo, health: CameraHealth, rate_hz: float, picture: np.ndarray | None
) -> Check:
    """``rate_hz``: at which pictures came lately; ``picture``: the newest, (H, W, 3) uint8."""
    subject = f"camera {name}"
    if health.condition is not CameraCondition.READY or picture is None:
        why = health.message or health.condition.name.lower()
        return Check(subject, "failure", f"gives no pictures: {why}", "check its plug; `robolearn find cameras`")
    detail = sharpness(picture)
    found = f"{info.width}x{info.height} at {rate_hz:.0f} Hz, sharpness {detail:.0f}"
    if picture.mean() < BLACK:
        return Check(subject, "failure", f"{found}; the picture is black", "is the lens covered, the exposure set?")
    if rate_hz < 0.8 * info.rate_hz:
        asked = f"{found} instead of {info.rate_hz:g}"
        return Check(subject, "warning", asked, "give it a USB port of its own, more light, or a lower rate")
    if health.unchanged_s > FROZEN_S:
        still = f"{found}; the same picture for {health.unchanged_s:.1f} s"
        return Check(subject, "warning", still, "wave at it: a sensor has noise, and this one may be frozen")
    if detail < BLURRED:
        return Check(subject, "warning", f"{found}: hardly an edge", "wipe and focus the lens, and look at the page")
    return Check(subject, "ok", found)


def check_latencies(rig: Rig) -> Check:
    """Of every arm, camera and force sensor."""
    devices = [*rig.arms, *rig.cameras, *rig.force_sensors]
    unknown = [name for name in devices if not rig.where(name).latency_ms]
    if not unknown:
        return Check("latencies", "ok", ", ".join(f"{name} {rig.where(name).latency_ms:g} ms" for name in devices))
    advice = "robolearn calibrate latency: pictures and motions are put in time by these numbers"
    return Check("latencies", "warning", f"not measured: {', '.join(unknown)}", advice)


def bytes_per_s(schema: Schema, pictures: Mapping[str, np.ndarray]) -> float:
    """What recording writes: pictures as large as the newest ones (H, W, 3) become, all else uncompressed."""
    import simplejpeg

    total = 0.0
    for name, stream in schema.streams.items():
        rate_hz = stream.rate_hz or schema.rate_hz
        if name in pictures:
            picture = np.ascontiguousarray(pictures[name])
            total += rate_hz * len(simplejpeg.encode_jpeg(picture, JPEG_QUALITY, "RGB", "420"))
        elif stream.kind != "text":
            total += rate_hz * (stream.size * np.dtype(stream.dtype).itemsize + 16)  # and its two times
    return total


def check_disk(folder: Path, free: float, rate: float, episodes: int, episode_s: float) -> Check:
    """``free``: bytes there; ``rate``: bytes a second; so many episodes are to come."""
    most = rate * episodes * episode_s
    found = f"{_gb(free)} free; {episodes} episodes take up to {_gb(most)} at {rate / 1e6:.1f} MB/s"
    if free < rate * episode_s:
        return Check("disk", "failure", found, f"make room on the disk of {folder}")
    if free < most:
        return Check("disk", "warning", found, f"it may get full on the way: make room on the disk of {folder}")
    return Check("disk", "ok", found)


def check_teleoperator(name: str, intents: Sequence[np.void], now_ns: int) -> Check:
    """``intents``: of ``takeover.intent_fields``, those of the last seconds, oldest first."""
    subject = f"teleoperator {name}"
    if name == "page":
        return Check(subject, "ok", "whoever takes control on the page")
    age_s = (now_ns - int(intents[-1]["capture_ns"])) / SECOND_NS if len(intents) else np.inf
    if age_s > 1:
        return Check(subject, "failure", "says nothing", "is it plugged in and switched on?")
    if np.isfinite(intents[-1]["positions"]).all():
        whole = np.mean([bool(intent["enabled"]) for intent in intents])
        if whole < 0.8:
            found = f"a leader arm; only {100 * whole:.0f} % of its readings are of every motor"
            return Check(subject, "warning" if whole else "failure", found, "check its cable and power")
        return Check(subject, "ok", "a leader arm; its motions count from the episode's beginning on")
    if intents[-1]["enabled"]:
        return Check(subject, "warning", "its deadman is held", "let go of it; hold it when the episode begins")
    return Check(subject, "ok", "answers; its deadman is free")


def check_arm(info: ArmInfo, rig: Rig, tick: np.void) -> Check:
    """``tick``: the newest of ``servo_process.tick_fields``."""
    subject = f"arm {info.name}"
    condition = Condition(int(tick["condition"]))
    bounds = "the rig's limits" if info.name in rig.limits else "published limits"
    if condition not in (Condition.READY, Condition.DEGRADED):
        named = condition.name.lower().replace("_", " ")
        return Check(subject, "failure", f"{named}: {bytes(tick['cause']).decode(errors='replace')}", "clear its cause")
    if not np.isfinite([info.limits.low, info.limits.high, info.limits.velocity]).all():
        advice = "name its model, or narrow it in the rig file under `limits`"
        return Check(subject, "warning", f"{info.model} has no published limits", advice)
    if info.name not in rig.limits or rig.limits[info.name].workspace is None:
        return Check(subject, "ok", f"{info.model} within {bounds}", "the rig file can add a floor and a workspace")
    return Check(subject, "ok", f"{info.model} within {bounds} and its workspace")


def check_clock(lateness_ns: Sequence[int], missed: int, rate_hz: float) -> Check:
    """Of the servo loop's ticks so far."""
    if not lateness_ns:
        return Check("clock", "failure", "the servo loop stands still", "is the machine overloaded?")
    p99_ms = float(np.percentile(lateness_ns, 99)) / 1e6
    found = f"servo loop at {rate_hz:g} Hz: p99 {p99_ms:.2f} ms late, {missed} deadlines missed"
    if p99_ms > 250 / rate_hz or missed:
        return Check("clock", "warning", found, "close what else uses the processor; see `robolearn doctor`")
    return Check("clock", "ok", found)


def check_fingerprint(fingerprint: str, continued: str | None) -> Check:
    """``continued``: of the rig with which the dataset was begun; None: it is new."""
    if continued is None:
        return Check("rig", "ok", f"fingerprint {fingerprint}; a new dataset")
    if continued == fingerprint:
        return Check("rig", "ok", f"fingerprint {fingerprint}, as when the dataset was begun")
    found = f"fingerprint {fingerprint}; the dataset was begun with {continued}"
    return Check("rig", "failure", found, "the rig file or a calibration has changed: take the old one, or a new path")


def failures(checks: Iterable[Check]) -> str:
    """What must be mended first, in one line; empty if nothing."""
    bad = [f"{check.subject}: {check.found} ({check.advice})" for check in checks if check.verdict == "failure"]
    return "; ".join(bad)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
