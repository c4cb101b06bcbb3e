"""What every test shares: no window, one thread for each process, and recorded data where it is at hand."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, so that a change is what makes a test fail; `pytest --hypothesis-profile=default`
# looks for new ones. A busy machine fails nothing.
settings.register_profile("reproducible", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reproducible")

# Set before torch and pygame are imported, and inherited by the processes that tests start.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tokens and certificates of the pages that tests open do not belong to whoever runs them.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="robolearn-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)

LIBRARIES = ("zarr_io", "asyncio_", "tqdm_monitor", "ThreadPoolExecutor-")
"""Names of threads that libraries keep for the life of a process (the last are torch.compile's)."""

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def human_pusht() -> Path:
    """206 human PushT demonstrations as published with diffusion_policy (zarr v2); the test is skipped without them."""
    path = ROOT.parent / "shared" / "datasets" / "pusht_cchi_v7_replay.zarr"
    if not path.is_dir():
        pytest.skip("the human PushT demonstrations are not at ../shared/datasets")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a disk of so many MiB and returns its folder; called again it changes the size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount the small disk that this test fills")

    def resize(mib: int) -> Path:
        how = "remount," if disk.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={mib}m", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine does not let root mount a small disk")
        return disk

    yield resize
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """A library that gives its caller real-time priority must not starve the tests that follow in this process."""
    yield
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail("this test left its process with real-time priority")


@pytest.fixture(scope="module", autouse=True)
def no_thread_left() -> Iterator[None]:
    """A camera or a twin that a file of tests leaves running takes the time of all that follow in this process."""
    before = threading.enumerate()
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.name.startswith(LIBRARIES)]
    for thread in left:
        thread.join(10)
    assert not [thread.name for thread in left if thread.is_alive()], "threads that this file's tests left running"
