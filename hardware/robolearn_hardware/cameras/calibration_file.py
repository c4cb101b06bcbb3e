"""What is known of one camera, in a YAML file beside the rig that names it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from robolearn_hardware.cameras.calibration import CameraCalibration, HandEye
from robolearn_hardware.devices import CameraInfo, DeviceError

VERSION = 1

_Row = tuple[float, float, float]


@dataclass(frozen=True)
class _Lens:
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    width: int
    height: int
    matrix: tuple[_Row, _Row, _Row]
    distortion: tuple[float, float, float, float, float]
    error_px: float
    view_errors_px: tuple[float, ...]


@dataclass(frozen=True)
class _HandEye:
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    mounted: Literal["tool", "base"]
    position: _Row
    rotation_wxyz: tuple[float, float, float, float]
    error_mm: float
    error_deg: float
    view_errors_mm: tuple[float, ...]


@dataclass(frozen=True)
class _File:
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    version: int
    kind: Literal["camera"]
    serial: str
    lens: _Lens
    hand_eye: _HandEye | None = None


@dataclass(frozen=True, eq=False)
class CalibrationFile:
    """A camera's lens and, where it was measured, its place."""

    serial: str
    """Of the camera; empty where it has none."""
    lens: CameraCalibration
    hand_eye: HandEye | None = None


def write_calibration(path: Path, calibration: CalibrationFile) -> None:
    """Replace the file whole."""
    content = {
        "version": VERSION,
        "kind": "camera",
        "serial": calibration.serial,
        "lens": _plain(calibration.lens),
        **({"hand_eye": _plain(calibration.hand_eye)} if calibration.hand_eye else {}),
    }
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
    temporary.replace(path)


def read_calibration(path: Path) -> CalibrationFile:
    """
    Raises:
        DeviceError: it is missing, of a later version, or not such a file; the message says what is wrong where.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DeviceError(f"no calibration {path}: {error.strerror}; `robolearn calibrate` makes it") from None
    except yaml.YAMLError as error:
        raise DeviceError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or content.get("kind") != "camera":
        raise DeviceError(f"{path} is no calibration of a camera; `robolearn calibrate` makes one")
    if content.get("version") != VERSION:
        raise DeviceError(f"{path} has version {content.get('version')}, this program reads {VERSION}")
    try:
        file = TypeAdapter(_File).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if not all(map(math.isfinite, _numbers(asdict(file)))):
        raise DeviceError(f"{path} holds NaN or infinity; calibrate again")
    lens = CameraCalibration(**_arrays(file.lens, "matrix", "distortion"))
    eye = HandEye(**_arrays(file.hand_eye, "position", "rotation_wxyz")) if file.hand_eye else None
    return CalibrationFile(file.serial, lens, eye)


def with_lens(info: CameraInfo, path: Path | None) -> CameraInfo:
    """``info`` with the lens that the file at ``path`` knows; as it is where there is none.

    Raises:
        DeviceError: as ``read_calibration``; or the file is of pictures of another size.
    """
    if path is None:
        return info
    lens = read_calibration(path).lens
    if (lens.width, lens.height) != (info.width, info.height):
        raise DeviceError(
            f"camera {info.name!r}: {path} is of pictures of {lens.width}x{lens.height}, not "
            f"{info.width}x{info.height}; calibrate at the size that is used"
        )
    return replace(info, matrix=lens.matrix, distortion=lens.distortion)


def _plain(value: Any) -> dict[str, Any]:
    """Its fields, arrays as lists."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        name: item.tolist() if isinstance(item, np.ndarray) else list(item) if isinstance(item, tuple) else item
        for name, item in found.items()
    }


def _arrays(value: Any, *names: str) -> dict[str, Any]:
    """Its fields, those of ``names`` as arrays."""
    return {
        **{f.name: getattr(value, f.name) for f in fields(value)},
        **{n: np.array(getattr(value, n)) for n in names},
    }


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in _numbers(item)]
    return [value] if isinstance(value, float) else []
