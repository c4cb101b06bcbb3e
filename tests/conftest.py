"""What every test shares: no window, one thread for each process, and recorded data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch and pygame are imported, and inherited by the processes that tests start.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
