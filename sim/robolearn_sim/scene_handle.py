"""How the twin of a camera finds the scene that the twin of an arm simulates.

Both are children of the process that opened the rig, or it itself. The arm's leaves a file beside the other temporary
ones, named after that process; it says which scene it is, and in which ring of shared memory its positions are.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from robolearn_hardware.ring import RingHandle


@dataclass(frozen=True)
class SceneHandle:
    """Enough to draw a scene: the arguments of ``scene.build_scene``, and where its "qpos" are published."""

    model: str
    has_gripper: bool
    ring: RingHandle


def announce(scene: SceneHandle) -> Path:
    """Let the other processes of this rig find ``scene``. Returns what ``withdraw`` takes back."""
    for left in Path(tempfile.gettempdir()).glob("robolearn-scene-*.json"):  # by a twin that was killed
        with contextlib.suppress(OSError):
            if not _exists(left.stem.split("-", 3)[3]):
                left.unlink()
    path = Path(tempfile.gettempdir()) / f"{_prefix()}{scene.ring.name.strip('/')}.json"
    half = path.with_suffix(".tmp")
    half.touch(mode=0o600)
    half.write_text(json.dumps(asdict(scene)))
    half.rename(path)
    return path


def withdraw(path: Path) -> None:
    path.unlink(missing_ok=True)


def announced() -> list[SceneHandle]:
    """The scenes that the processes of this rig simulate, oldest first."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix()}*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if path.stat().st_uid != os.geteuid():
                continue  # another user's, who has no business here
            content = json.loads(path.read_text())
            ring = content["ring"]
            fields = {name: (dtype, tuple(shape)) for name, (dtype, shape) in ring["fields"].items()}
            handle = RingHandle(ring["name"], fields, ring["slots"], ring["checked"])
            if not _exists(handle.name):
                continue
            found.append((path.stat().st_mtime_ns, SceneHandle(content["model"], content["has_gripper"], handle)))
    return [scene for _, scene in sorted(found, key=lambda pair: pair[0])]


def _exists(ring: str) -> bool:
    return (Path("/dev/shm") / ring).exists()


def _prefix() -> str:
    opener = multiprocessing.parent_process()
    return f"robolearn-scene-{opener.pid if opener else os.getpid()}-"
