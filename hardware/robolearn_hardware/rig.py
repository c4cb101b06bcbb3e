"""A rig file: which devices stand on the table, how they are reached, mounted and delayed.

arms:
  follower:
    kind: so101
    port: /dev/ttyACM0          # or twin
    calibration: so101.yaml     # files are looked for beside the rig file
cameras:
  front: {kind: uvc, device: 0, width: 640, height: 480, rate_hz: 30}
placement:
  follower: {position: [0, 0, 0], rotation_wxyz: [1, 0, 0, 0], latency_ms: 12}
limits:                         # narrower than the published ones, see bounded.py
  follower: {joints: {shoulder_lift: [-1.2, 1.0]}, speed: 0.5, floor: 0.03}
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from robolearn_hardware.bounded import ArmBounds, BoundedArm
from robolearn_hardware.devices import Arm, DeviceError
from robolearn_hardware.registry import (
    SECTIONS,
    ArmConfig,
    CameraConfig,
    DeviceConfig,
    ForceSensorConfig,
    TeleoperatorConfig,
    kind_of,
)
from robolearn_hardware.twins.host import Twins


@dataclass(frozen=True)
class Placement:
    """Where a device is and how late it is."""

    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of its base (a camera's optical centre), m, in ``parent``."""
    rotation_wxyz: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    parent: str = "world"
    """The string "world", or the name of an arm, whose tool carries it."""
    latency_ms: float = 0.0
    """Of a sensor, from the event to its capture time as the driver states it; of an arm, from a command to the motion.
    Measured by `robolearn calibrate latency`."""


@dataclass(frozen=True)
class Rig:
    name: str
    arms: Mapping[str, ArmConfig] = field(default_factory=dict)
    cameras: Mapping[str, CameraConfig] = field(default_factory=dict)
    force_sensors: Mapping[str, ForceSensorConfig] = field(default_factory=dict)
    teleoperators: Mapping[str, TeleoperatorConfig] = field(default_factory=dict)
    placement: Mapping[str, Placement] = field(default_factory=dict)
    limits: Mapping[str, ArmBounds] = field(default_factory=dict)
    """Of the arms that are not given their published ones."""
    fingerprint: str = ""
    """SHA-256 of what the rig file and the files it names say, 16 hexadecimal digits: stored with every dataset."""

    def devices(self) -> dict[str, DeviceConfig]:
        """Every device by its name."""
        return {**self.arms, **self.cameras, **self.force_sensors, **self.teleoperators}

    def open_arm(self, name: str) -> Arm:
        """The arm ``name``, unconnected, within its limits."""
        arm = self.arms[name].open(name)
        return BoundedArm(arm, self.limits[name]) if name in self.limits else arm

    def where(self, name: str) -> Placement:
        return self.placement.get(name, Placement())


def load_rig(path: Path) -> Rig:
    """Read a rig file.

    Raises:
        DeviceError: it is missing or not YAML, or has an unknown key, kind or value; the message says where.
    """
    try:
        text = path.read_bytes()
        content = yaml.safe_load(text) or {}
    except OSError as error:
        raise DeviceError(
            f"no rig {path}: {error.strerror}; rigs are YAML files such as hardware/rigs/*.yaml"
        ) from None
    except yaml.YAMLError as error:
        raise DeviceError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DeviceError(f"{path} must be a mapping with {', '.join(SECTIONS)}")
    valid = [*SECTIONS, "placement", "limits", "name"]
    unknown = set(content) - set(valid)
    if unknown:
        raise DeviceError(f"{path} has unknown keys {sorted(unknown)}; valid: {', '.join(valid)}")
    digest = hashlib.sha256(text)
    sections = {}
    for section in SECTIONS:
        sections[section] = {
            str(name): _device(path, section, str(name), value, digest)
            for name, value in _mapping(path, section, content.get(section)).items()
        }
    placement = {
        str(name): _read(Placement, value, f"{path}: placement of {name}")
        for name, value in _mapping(path, "placement", content.get("placement")).items()
    }
    limits = {
        str(name): _read(ArmBounds, value, f"{path}: limits of {name}")
        for name, value in _mapping(path, "limits", content.get("limits")).items()
    }
    names = [name for devices in sections.values() for name in devices]
    for name in names:
        if names.count(name) > 1:
            raise DeviceError(f"{path} has two devices named {name!r}")
    for name, place in placement.items():
        if name not in names or place.parent not in ("world", *sections["arms"]):
            raise DeviceError(f"{path}: placement of {name!r} names no device, or a parent that is no arm")
    if strangers := set(limits) - set(sections["arms"]):
        raise DeviceError(f"{path}: limits of {sorted(strangers)[0]!r}, which is no arm of this rig")
    return Rig(
        str(content.get("name", path.stem)),
        placement=placement,
        limits=limits,
        fingerprint=digest.hexdigest()[:16],
        **sections,
    )


@contextmanager
def with_twins(rig: Rig) -> Iterator[tuple[Rig, Twins]]:
    """The rig with every address "twin" replaced by that of a running twin.

    Twins are processes of their own: a script calls this under ``if __name__ == "__main__":``.
    """
    with Twins() as twins:
        sections = {
            section: {name: config.with_twin(name, twins) for name, config in getattr(rig, section).items()}
            for section in SECTIONS
        }
        yield dataclasses.replace(rig, **cast(Any, sections)), twins


def _mapping(path: Path, name: str, value: Any) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DeviceError(f"{path}: {name} must map a name to its settings")
    return value


def _device(path: Path, section: str, name: str, value: Any, digest: Any) -> Any:
    where = f"{path}: {section}, {name}"
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise DeviceError(f"{where}: needs a kind; valid: {', '.join(SECTIONS[section])}")
    settings = {key: item for key, item in value.items() if key != "kind"}
    try:
        kind = kind_of(section, value["kind"])
    except DeviceError as error:
        raise DeviceError(f"{where}: {error}") from None
    config = _read(kind, settings, where)
    files = [name for name, hint in get_type_hints(kind).items() if hint is Path or hint == Path | None]
    found = {name: path.parent / getattr(config, name) for name in files if getattr(config, name) is not None}
    for file in found.values():
        digest.update(file.read_bytes() if file.is_file() else b"")
    return dataclasses.replace(cast(Any, config), **found)


def _read(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DeviceError(f"{where}: must be a mapping")
    unknown = set(value) - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        valid = ", ".join(f.name for f in dataclasses.fields(kind))
        raise DeviceError(f"{where}: unknown {', '.join(map(repr, sorted(unknown)))}; valid: {valid}")
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DeviceError(f"{where}: {place + ': ' if place else ''}{first['msg']}") from None
