"""`robolearn calibrate board | camera | hand-eye`: the lens of a camera, and where it is."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

from robolearn.cli.parse import UsageError, stderr_line

if TYPE_CHECKING:
    from robolearn_hardware.cameras.calibration import Board, CameraCalibration
    from robolearn_hardware.devices import Camera
    from robolearn_hardware.rig import Rig

_BETWEEN_S = 0.4


@dataclass(frozen=True)
class BoardSize:
    """The ChArUco board. Measure a square of the printed one: printers scale."""

    columns: int = 9
    """Squares in a row."""
    rows: int = 6
    square_mm: float = 30.0
    marker_mm: float = 22.0

    def board(self) -> Board:
        from robolearn_hardware.cameras.calibration import Board

        return Board(self.columns, self.rows, self.square_mm / 1000, self.marker_mm / 1000)


@dataclass(frozen=True)
class MakeBoard:
    """Write a ChArUco board as a PNG to print at 100 % and to glue on something flat."""

    out: Positional[Path] = Path("board.png")
    board: BoardSize = field(default_factory=BoardSize)


@dataclass(frozen=True)
class CameraLens:
    """Find a camera's intrinsics from pictures of the board, and write them to a file.

    Hold the board before the camera: near and far, in all corners, tilted to all sides. A picture is taken by itself
    whenever the board is seen where it was not seen before.
    """

    rig: Positional[Path]
    """A rig file, see hardware/rigs."""
    camera: Positional[str]
    """The camera's name in it."""
    pictures: int = 25
    """To take."""
    seconds: float = 180.0
    """Give up after so long."""
    out: Path | None = None
    """The file to write; by default CAMERA.yaml beside the rig. Name it in the rig as the camera's calibration."""
    board: BoardSize = field(default_factory=BoardSize)


@dataclass(frozen=True)
class CameraPlace:
    """Find where a camera is: on the arm's tool, or beside its base (then the tool holds the board).

    The arm lets go where it can. Bring it to a pose from which the board is seen, press Enter, and so on; turn the
    tool about different axes. The camera's lens must have been calibrated.
    """

    rig: Positional[Path]
    """A rig file, see hardware/rigs."""
    camera: Positional[str]
    """The camera's name in it."""
    lens: Path
    """What `robolearn calibrate camera` wrote."""
    arm: str | None = None
    """Not needed where there is one."""
    on_tool: bool = True
    """Whether the tool carries the camera; --no-on-tool where it stands beside the arm and the tool holds the board."""
    poses: int = 12
    board: BoardSize = field(default_factory=BoardSize)


def make_board(options: MakeBoard) -> int:
    """a ChArUco board to print"""
    from robolearn_hardware.cameras.calibration import write_board

    board = options.board.board()
    write_board(board, options.out)
    size = options.board
    width, height = (size.columns + 1) * size.square_mm, (size.rows + 1) * size.square_mm
    print(f"{options.out}: {width:g} x {height:g} mm with its margin; print it at 100 % and measure a square")
    return 0


def lens(options: CameraLens) -> int:
    """intrinsics of a camera from pictures of the board"""
    from robolearn_hardware.cameras.calibration import Detection, calibrate_intrinsics, detect_board, distinct_views
    from robolearn_hardware.cameras.calibration_file import CalibrationFile, write_calibration
    from robolearn_hardware.rig import load_rig, with_twins

    rig = load_rig(options.rig)
    board = options.board.board()
    pictures: list[np.ndarray] = []
    views: list[Detection] = []
    with with_twins(rig) as (reachable, _), _connected(reachable, options.camera) as camera:
        end, last = time.monotonic() + options.seconds, 0.0
        while len(pictures) < options.pictures and time.monotonic() < end:
            frame = camera.read()
            if time.monotonic() - last < _BETWEEN_S or (seen := detect_board(frame.colour, board)) is None:
                continue
            if len(distinct_views([*views, seen], frame.colour.shape[1])) == len(views):
                continue  # the board has not moved
            last = time.monotonic()
            views.append(seen)
            pictures.append(frame.colour)
            stderr_line(f"picture {len(pictures)} of {options.pictures}: move and tilt the board")
        serial = camera.info.serial
    if not pictures:
        raise UsageError(
            f"the board was not seen in {options.seconds:g} s; is it {board.columns} x {board.rows} squares?"
        )
    found = calibrate_intrinsics(pictures, board)
    out = options.out or options.rig.with_name(f"{options.camera}.yaml")
    write_calibration(out, CalibrationFile(serial, found))
    print(f"{out}: {_said(found)}")
    return 0


def place(options: CameraPlace) -> int:
    """where a camera is: on the tool or beside the arm"""
    from robolearn_hardware.cameras.calibration import calibrate_hand_eye, detect_board
    from robolearn_hardware.cameras.calibration_file import read_calibration, write_calibration
    from robolearn_hardware.devices import NotReadyError
    from robolearn_hardware.kinematics import Kinematics
    from robolearn_hardware.rig import load_rig, with_twins

    rig = load_rig(options.rig)
    name = options.arm or (next(iter(rig.arms)) if len(rig.arms) == 1 else "")
    if name not in rig.arms:
        raise UsageError(f"say which arm: --arm, one of {', '.join(rig.arms) or 'none'}")
    calibration = read_calibration(options.lens)
    board = options.board.board()
    pictures, tools = [], []
    with with_twins(rig) as (reachable, _), contextlib.ExitStack() as stack:
        camera = stack.enter_context(_connected(reachable, options.camera))
        arm = reachable.open_arm(name)
        stack.callback(arm.close)
        arm.connect()
        kinematics = Kinematics(arm.info.model)
        with contextlib.suppress(NotReadyError):  # then it is moved by its own pendant
            arm.release()
        while len(pictures) < options.poses:
            input(
                f"pose {len(pictures) + 1} of {options.poses}: bring the arm to where the board is seen, press Enter "
            )
            picture = camera.read().colour
            if detect_board(picture, board) is None:
                stderr_line("the board is not seen; another pose")
                continue
            pictures.append(picture)
            tools.append(kinematics.forward(arm.state().positions).matrix)
    mounted = "tool" if options.on_tool else "base"
    found = calibrate_hand_eye(pictures, tools, board, calibration.lens, mounted=mounted)
    write_calibration(options.lens, dataclasses.replace(calibration, hand_eye=found))
    print(f"the board stands still within {found.error_mm:.1f} mm and {found.error_deg:.2f} deg")
    position = ", ".join(f"{v:.4f}" for v in found.position)
    rotation = ", ".join(f"{v:.5f}" for v in found.rotation_wxyz)
    parent = f", parent: {name}" if options.on_tool else ""
    print(f"in {options.rig}, under placement:")
    print(f"  {options.camera}: {{position: [{position}], rotation_wxyz: [{rotation}]{parent}}}")
    return 0


@contextlib.contextmanager
def _connected(rig: Rig, name: str) -> Any:
    if name not in rig.cameras:
        raise UsageError(f"rig {rig.name} has no camera {name!r}; valid: {', '.join(rig.cameras) or 'none'}")
    camera: Camera = rig.cameras[name].open(name)
    try:
        camera.connect()
        yield camera
    finally:
        camera.close()


def _said(found: CameraCalibration) -> str:
    m = found.matrix
    focal, centre = f"{m[0, 0]:.1f}, {m[1, 1]:.1f} px", f"{m[0, 2]:.1f}, {m[1, 2]:.1f} px"
    met = f"corners are met within {found.error_px:.2f} px in {len(found.view_errors_px)} pictures"
    return f"{found.width}x{found.height}, focal length {focal}, centre {centre}; {met}"


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "board": (MakeBoard, make_board),
    "camera": (CameraLens, lens),
    "hand-eye": (CameraPlace, place),
}
