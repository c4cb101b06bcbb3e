"""Calibration with a ChArUco board (a chessboard with ArUco markers): the lens, and where a camera is on an arm.

A pose T_a_b is a (4, 4) matrix that takes points from frame b to frame a. The camera's frame is OpenCV's: x right, y
down, z forward.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robolearn_hardware.cameras.sdk import import_opencv
from robolearn_hardware.devices import DeviceError

MIN_VIEWS = 8
_MIN_CORNERS = 8
_SAME_VIEW = 0.02
"""Two pictures whose corners lie on average so close, as a share of the width, are one view."""
_MIN_TILT_DEG = 20.0
_MIN_COVERAGE = 0.5
_MIN_TURN_DEG = 10.0


@dataclass(frozen=True)
class Board:
    """A ChArUco board as it is printed. Measure a square: printers scale."""

    columns: int = 9
    """Squares."""
    rows: int = 6
    square_m: float = 0.03
    marker_m: float = 0.022
    dictionary: str = "DICT_5X5_100"
    """Of ``cv2.aruco``."""

    def opencv(self) -> Any:
        """The ``cv2.aruco.CharucoBoard``. Raises DeviceError where there can be none."""
        cv2 = import_opencv()
        number = getattr(cv2.aruco, self.dictionary, None)
        if not self.dictionary.startswith("DICT_") or number is None:
            raise DeviceError(f"no dictionary {self.dictionary!r}; valid: those of cv2.aruco, such as DICT_5X5_100")
        if min(self.columns, self.rows) < 3 or not 0 < self.marker_m < self.square_m:
            raise DeviceError("a board needs 3 squares each way, and markers that are smaller than the squares")
        markers = cv2.aruco.getPredefinedDictionary(number)
        if self.columns * self.rows // 2 > len(markers.bytesList):
            raise DeviceError(f"{self.dictionary} has {len(markers.bytesList)} markers, too few for this board")
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square_m, self.marker_m, markers)


@dataclass(frozen=True, eq=False)
class Detection:
    """The corners of a board in a picture."""

    ids: np.ndarray
    """(n,)"""
    corners: np.ndarray
    """(n, 2) pixels"""
    points: np.ndarray
    """(n, 3) m in the board's frame"""


@dataclass(frozen=True, eq=False)
class CameraCalibration:
    """A camera's lens."""

    width: int
    height: int
    matrix: np.ndarray
    """(3, 3) pixels"""
    distortion: np.ndarray
    """(5,) OpenCV's k1, k2, p1, p2, k3"""
    error_px: float
    """Root mean square distance between the corners seen and those that the model predicts."""
    view_errors_px: tuple[float, ...]
    """The same of each picture that was used."""


@dataclass(frozen=True, eq=False)
class HandEye:
    """Where a camera is: ``Placement`` of a rig file."""

    mounted: Literal["tool", "base"]
    """What carries it, and the frame in which its pose is."""
    position: np.ndarray
    """(3,) m"""
    rotation_wxyz: np.ndarray
    """(4,)"""
    error_mm: float
    """Root mean square distance between where the pictures say the board is; it has stood still (base: in the tool)."""
    error_deg: float
    view_errors_mm: tuple[float, ...]


def make_board(board: Board, *, dots_per_m: float = 11811.0) -> np.ndarray:
    """The board (H, W) uint8 with a white margin of half a square; ``write_board`` makes it a file for printing."""
    square = round(board.square_m * dots_per_m)
    margin = square // 2
    size = (board.columns * square + 2 * margin, board.rows * square + 2 * margin)
    return board.opencv().generateImage(size, marginSize=margin, borderBits=1)


def write_board(board: Board, path: Path, *, dots_per_m: float = 11811.0) -> None:
    """As a PNG file that states its size: printed at 100 % a square is ``board.square_m``. 11811 dots/m are 300 dpi."""
    cv2 = import_opencv()
    png = bytes(cv2.imencode(".png", make_board(board, dots_per_m=dots_per_m))[1])
    size = b"pHYs" + struct.pack(">IIB", round(dots_per_m), round(dots_per_m), 1)
    chunk = struct.pack(">I", len(size) - 4) + size + struct.pack(">I", zlib.crc32(size))
    path.write_bytes(png[:33] + chunk + png[33:])  # after the signature (8 bytes) and the header (25)


def detect_board(picture: np.ndarray, board: Board) -> Detection | None:
    """The board in a picture (H, W, 3) uint8 RGB or (H, W); None where fewer than 8 of its corners are seen."""
    cv2 = import_opencv()
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
    pattern = board.opencv()
    corners, ids, _, _ = cv2.aruco.CharucoDetector(pattern).detectBoard(grey)
    if ids is None or len(ids) < _MIN_CORNERS:
        return None
    ids = ids.ravel()
    points = pattern.getChessboardCorners()[ids].astype(np.float64)
    corners = corners.reshape(-1, 2)
    # OpenCV up to 4.12 gives them half a pixel to the right and below (opencv#25539): they are refined once more, each
    # in a window that no marker reaches into.
    steps = [np.linalg.norm(np.diff(values, axis=0), axis=1) for values in (corners, points)]
    reach = (board.square_m - board.marker_m) / 2 * float(np.median(steps[0] / steps[1]))
    window = int(np.clip(reach, 2, 8))
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-3)
    refined = cv2.cornerSubPix(grey, corners.reshape(-1, 1, 2).copy(), (window, window), (-1, -1), stop)
    return Detection(ids, refined[:, 0].astype(np.float64), points)


def calibrate_intrinsics(pictures: Sequence[np.ndarray], board: Board) -> CameraCalibration:
    """The lens, from pictures of the board at many places and tilts (Zhang 2000).

    Raises:
        DeviceError: too few views, all alike, or a poor fit; the message says which pictures to take.
    """
    cv2 = import_opencv()
    found = [detection for detection in (detect_board(picture, board) for picture in pictures) if detection]
    if len(found) < MIN_VIEWS:
        raise DeviceError(
            f"the board is seen in {len(found)} of {len(pictures)} pictures, {MIN_VIEWS} are needed; check that it is "
            "sharp, well lit, and of the size and dictionary stated"
        )
    height, width = pictures[0].shape[:2]
    views = distinct_views(found, width)
    if len(views) < MIN_VIEWS:
        raise DeviceError(
            f"the {len(found)} pictures show {len(views)} different views, {MIN_VIEWS} are needed; move and tilt the "
            "board between pictures"
        )
    covered = _coverage(views, width, height)
    if covered < _MIN_COVERAGE:
        raise DeviceError(
            f"the board was in {covered:.0%} of the picture, {_MIN_COVERAGE:.0%} are needed; hold it near the edges"
        )
    points = [view.points.astype(np.float32) for view in views]
    corners = [view.corners.astype(np.float32) for view in views]
    error, matrix, distortion, rotations, _, _, _, errors = cv2.calibrateCameraExtended(
        points, corners, (width, height), None, None
    )
    tilt = _greatest_tilt_deg([cv2.Rodrigues(rotation)[0] for rotation in rotations])
    if tilt < _MIN_TILT_DEG:
        raise DeviceError(
            f"the board was tilted by {tilt:.0f} degrees at most, {_MIN_TILT_DEG:.0f} are needed: without tilt a long "
            "lens cannot be told from a far board; tilt it to all sides"
        )
    if not error < 2:
        raise DeviceError(
            f"the corners are {error:.1f} pixels from where any lens would put them; is the board flat, and as stated?"
        )
    return CameraCalibration(
        width, height, matrix, distortion.ravel()[:5], float(error), tuple(float(e) for e in errors.ravel())
    )


def board_pose(detection: Detection, calibration: CameraCalibration) -> np.ndarray:
    """T_camera_board (4, 4). Raises DeviceError where the corners allow none."""
    cv2 = import_opencv()
    good, rotation, position = cv2.solvePnP(
        detection.points, detection.corners, calibration.matrix, calibration.distortion
    )
    if not good:
        raise DeviceError("the corners seen do not lie as those of a board; is it flat?")
    return _pose(cv2.Rodrigues(rotation)[0], position)


def calibrate_hand_eye(
    pictures: Sequence[np.ndarray],
    T_base_tool: Sequence[np.ndarray],
    board: Board,
    calibration: CameraCalibration,
    *,
    mounted: Literal["tool", "base"],
    limit_mm: float = 10.0,
) -> HandEye:
    """Where the camera is, from a picture at each of many poses of the arm.

    Mounted on the tool, it looks at a board that stands on the table; mounted on the base (or anywhere that does not
    move), at a board that the tool holds. Where exactly the board is need not be known. Of three closed-form solutions
    of AX = XB (Park 1994, Horaud 1995, Daniilidis 1999) the one under which the board stands stillest is taken.

    Raises:
        DeviceError: too few poses with the board in sight, too little rotation, or a board that moves more than
            ``limit_mm``; the message says what to do.
    """
    cv2 = import_opencv()
    seen = [
        (detect_board(picture, board), pose, i)
        for i, (picture, pose) in enumerate(zip(pictures, T_base_tool, strict=True))
    ]
    used = [(board_pose(detection, calibration), np.asarray(pose), i) for detection, pose, i in seen if detection]
    if len(used) < MIN_VIEWS:
        raise DeviceError(
            f"the board is seen at {len(used)} of {len(pictures)} poses, {MIN_VIEWS} are needed; keep it in sight"
        )
    # One problem for both: where the camera hangs, the "hand" moves in the frame in which the board stands still.
    boards = [board_in_camera for board_in_camera, _, _ in used]
    hands = [pose if mounted == "tool" else np.linalg.inv(pose) for _, pose, _ in used]
    turn = _second_axis_deg(hands)
    if turn < _MIN_TURN_DEG:
        raise DeviceError(
            f"the tool turned by {turn:.0f} degrees about a second axis, {_MIN_TURN_DEG:.0f} are needed; tilt it about "
            "two axes, 20 degrees and more"
        )
    best: tuple[float, np.ndarray, np.ndarray, float] | None = None
    for method in (cv2.CALIB_HAND_EYE_PARK, cv2.CALIB_HAND_EYE_HORAUD, cv2.CALIB_HAND_EYE_DANIILIDIS):
        rotation, position = cv2.calibrateHandEye(
            [pose[:3, :3] for pose in hands],
            [pose[:3, 3] for pose in hands],
            [pose[:3, :3] for pose in boards],
            [pose[:3, 3] for pose in boards],
            method=method,
        )
        if not np.isfinite(rotation).all() or not np.isfinite(position).all():
            continue
        camera = _pose(rotation, position)
        errors_mm, error_deg = _spread([hand @ camera @ seen for hand, seen in zip(hands, boards, strict=True)])
        error_mm = float(np.sqrt((errors_mm**2).mean()))
        if best is None or error_mm < best[0]:
            best = (error_mm, camera, errors_mm, error_deg)
    if best is None:
        raise DeviceError("the poses determine no position of the camera; tilt the tool about two axes")
    error_mm, camera, errors_mm, error_deg = best
    if error_mm > limit_mm:
        worst = used[int(errors_mm.argmax())][2]
        raise DeviceError(
            f"by these poses the board, which stands still, moves by {error_mm:.0f} mm (most at pose {worst}: "
            f"{errors_mm.max():.0f}); did it slip, did the arm still move, are pictures and poses in the same order?"
        )
    return HandEye(
        mounted, camera[:3, 3], _quaternion(camera[:3, :3]), error_mm, error_deg, tuple(map(float, errors_mm))
    )


def distinct_views(found: Sequence[Detection], width: int) -> list[Detection]:
    """Without those that show the board where an earlier one does. ``width``: of the pictures, pixels."""
    views: list[Detection] = []
    for one in found:
        if all(_distance(one, other) > _SAME_VIEW * width for other in views):
            views.append(one)
    return views


def _distance(one: Detection, other: Detection) -> float:
    """Mean distance of the corners that both see, pixels."""
    _, i, j = np.intersect1d(one.ids, other.ids, return_indices=True)
    if not len(i):
        return math.inf
    return float(np.linalg.norm(one.corners[i] - other.corners[j], axis=1).mean())


def _coverage(views: Sequence[Detection], width: int, height: int) -> float:
    """Share of a 4 x 4 grid over the picture in which there was a corner."""
    corners = np.concatenate([view.corners for view in views])
    cells = np.floor(corners / [width, height] * 4).clip(0, 3).astype(int)
    return len(np.unique(cells, axis=0)) / 16


def _greatest_tilt_deg(rotations: Sequence[np.ndarray]) -> float:
    """Between the planes of any two views."""
    normals = np.stack([rotation[:, 2] for rotation in rotations])
    return float(np.degrees(np.arccos(np.clip(normals @ normals.T, -1, 1)).max()))


def _second_axis_deg(poses: Sequence[np.ndarray]) -> float:
    """How far the poses turn about the second of their principal axes: from one end to the other."""
    cv2 = import_opencv()
    turns = np.stack([cv2.Rodrigues(poses[0][:3, :3].T @ pose[:3, :3])[0].ravel() for pose in poses])
    _, _, axes = np.linalg.svd(turns - turns.mean(0))
    return float(np.degrees(np.ptp(turns @ axes[1])))


def _spread(poses: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Distances (n,) of poses from their mean, mm, and the root mean square angle from it, degrees."""
    cv2 = import_opencv()
    positions = np.stack([pose[:3, 3] for pose in poses])
    u, _, v = np.linalg.svd(np.mean([pose[:3, :3] for pose in poses], axis=0))
    middle = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    angles = [np.linalg.norm(cv2.Rodrigues(middle.T @ pose[:3, :3])[0]) for pose in poses]
    return np.linalg.norm(positions - positions.mean(0), axis=1) * 1000, float(
        np.degrees(np.sqrt(np.mean(np.square(angles))))
    )


def _pose(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, np.ravel(position)
    return pose


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(4,) w, x, y, z with w >= 0."""
    vector = import_opencv().Rodrigues(rotation)[0].ravel()
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle else vector
    return np.concatenate([[np.cos(angle / 2)], axis * np.sin(angle / 2)])
