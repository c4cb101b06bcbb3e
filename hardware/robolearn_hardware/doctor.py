"""Does every device of a rig answer?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from robolearn_hardware.devices import Arm, Camera, Condition, DeviceError, ForceSensor, Teleoperator
from robolearn_hardware.machine import Check
from robolearn_hardware.rig import Rig

_READINGS = 20
_FRAMES = 5


def check_rig(rig: Rig) -> Iterator[Check]:
    """Connect to each device, read it and let go of it. Nothing moves: an arm's target is where it stands.

    A device that does not answer is a failure with the driver's own explanation, and the next is looked at.
    """
    for name, config in rig.devices().items():
        try:
            if name in rig.arms:
                yield _arm(name, rig.open_arm(name))
            elif name in rig.cameras:
                yield _camera(name, rig.cameras[name].open(name))
            elif name in rig.force_sensors:
                yield _force_sensor(name, rig.force_sensors[name].open(name))
            else:
                yield _teleoperator(name, rig.teleoperators[name].open(name))
        except DeviceError as error:
            yield Check(name, "failure", str(error), f"kind {type(config).__name__}; its settings are in the rig file")


def _arm(name: str, arm: Arm) -> Check:
    try:
        arm.connect()
        times, state = [], arm.state()
        for _ in range(_READINGS):
            begun = time.perf_counter()
            state = arm.state()
            times.append(time.perf_counter() - begun)
        info = arm.info
        said = [info.model, info.serial and f"serial {info.serial}", info.firmware and f"firmware {info.firmware}"]
        said.append(f"joints {np.array2string(state.positions, precision=2, separator=' ')} rad")
        said.append(f"read in {np.median(times) * 1e3:.1f} ms")
        if state.temperatures is not None and np.isfinite(state.temperatures).any():
            said.append(f"at most {np.nanmax(state.temperatures):.0f} deg C")
        found = ", ".join(filter(None, said))
        if state.condition is Condition.READY:
            return Check(name, "ok", found)
        return Check(name, "failure", f"{state.condition.name.lower().replace('_', ' ')}: {found}", "clear its cause")
    finally:
        arm.close()


def _camera(name: str, camera: Camera) -> Check:
    try:
        camera.connect()
        frames = [camera.read() for _ in range(_FRAMES)]
        rate = (_FRAMES - 1) * 1e9 / max(frames[-1].capture_ns - frames[0].capture_ns, 1)
        info = camera.info
        said = f"{info.width}x{info.height} at {rate:.0f} Hz (asked for {info.rate_hz:g})"
        said += f", serial {info.serial}" if info.serial else ""
        said += ", with depth" if info.has_depth else ""
        brightness = float(frames[-1].colour.mean())
        if brightness < 3:
            return Check(name, "warning", f"{said}; the picture is black", "is the lens covered, the exposure set?")
        return Check(name, "ok", said)
    finally:
        camera.close()


def _force_sensor(name: str, sensor: ForceSensor) -> Check:
    try:
        sensor.connect()
        time.sleep(0.2)
        forces = sensor.read()
        if not len(forces.capture_ns):
            return Check(name, "failure", "no sample in 0.2 s", "is it connected, and its rate right?")
        return Check(name, "ok", f"{len(forces.capture_ns)} samples in 0.2 s, force {forces.wrench[-1, :3].round(1)} N")
    finally:
        sensor.close()


def _teleoperator(name: str, teleoperator: Teleoperator) -> Check:
    try:
        teleoperator.connect()
        intent = teleoperator.read()
        wants = "joints" if intent.positions is not None else "motion"
        return Check(name, "ok", f"answers with {wants}; {'enabled' if intent.enabled else 'its deadman is not held'}")
    finally:
        teleoperator.close()
