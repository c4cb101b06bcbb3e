"""The cameras and arms of a run, opened: the first thing that a run does, and the first that may fail."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Schema
from robolearn_deploy.rig_fit import check_fits, force_streams
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.servo import ServoProcess
from robolearn_deploy.starting import POLL_S, START_S, Starting
from robolearn_hardware.cameras.process import CameraProcess
from robolearn_hardware.devices import DeviceTimeoutError
from robolearn_hardware.rig import Rig


class RigDevices(NamedTuple):
    rig: Rig
    """With those force sensors only that the run looks at; their processes are started later."""
    servo: ServoProcess
    cameras: Mapping[str, CameraProcess]
    schema: Schema
    """Of everything that the run measures, does and records."""


def open_devices(
    stack: ExitStack, rig: Rig, policy: PolicySpec | None, options: RigOptions, starting: Starting
) -> RigDevices:
    """Those that ``policy`` observes; all where the run is recorded, or no policy drives. Closed with ``stack``.

    Raises:
        DeviceError: one cannot be opened, as its driver says, or not in time.
        SpecError: policy and rig do not fit.
    """
    observed = {**policy.observation, **(policy.fast.observation if policy.fast else {})} if policy else {}
    record = options.out is not None
    felt = {n: c for n, c in rig.force_sensors.items() if record or f"wrench_{n}" in observed}
    rig = dataclasses.replace(rig, force_sensors=felt)
    cameras = {}
    for name, config in rig.cameras.items():
        if record or policy is None or name in observed:
            cameras[name] = CameraProcess(name, config, latency_ms=rig.where(name).latency_ms)
            stack.callback(cameras[name].close)
    end = time.monotonic() + START_S
    for name, camera in cameras.items():
        starting.begin(f"camera {name}")
        while not _is_open(camera, last=time.monotonic() > end):
            starting()
    starting.begin("the arms")
    servo = stack.enter_context(ServoProcess(rig, options.servo, starting))
    infos = {name: camera.info for name, camera in cameras.items()}
    rate_hz = policy.rate_hz if policy else options.rate_hz
    schema = servo.layout.schema(rate_hz, servo.rate_hz, infos, wrench=servo.measures_force)
    schema = Schema(rate_hz, {**schema.streams, **force_streams(rig)})
    if policy:
        check_fits(policy, schema, rig.name)
    return RigDevices(rig, servo, cameras, schema)


def _is_open(camera: CameraProcess, *, last: bool) -> bool:
    """``last``: there is no more time."""
    try:
        camera.wait_ready(POLL_S)
    except DeviceTimeoutError:
        if last:
            raise
        return False
    return True
