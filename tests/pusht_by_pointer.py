"""Performs human demonstrations of PushT by pointer, in the page of a collecting session, in a real browser."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from dashboard_bench import until
from world_hands import Held

from robolearn_deploy.collect_session import Stage
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_sim.pusht import PushT

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIDE_PX = 512  # of the table
PERIOD_NS, AHEAD = SECOND_NS // 10, 0.2
"""A step's place is pointed at so long (in periods) after the tick before."""


def human_actions(path: Path, episode: int) -> np.ndarray:
    """(T, 2) of the human demonstration that begins where the world with the seed ``episode`` does."""
    ends = np.asarray(zarr.open_array(path / "meta/episode_ends", mode="r")[:])
    first = int(ends[episode - 1]) if episode else 0
    return np.asarray(zarr.open_array(path / "data/action", mode="r")[first : int(ends[episode])])


def score_of(seed: int, actions: np.ndarray) -> float:
    """What the actions (T, 2) reach from the start that ``seed`` names."""
    world = PushT(max_steps=len(actions))
    world.reset(seed)
    return max(world.step(action).score for action in actions)


def open_page(page: Page, held: Held) -> None:
    """The page of the session, with the control taken."""
    url = next(m for m in held.messages if m.startswith("page: ")).removeprefix("page: ")
    page.set_default_timeout(60_000)
    page.goto(url)
    until(lambda: page.evaluate("state?.state && pictures.get('view')?.at !== null"), "the page shows the world")
    page.locator("[data-control=ask]").click()
    page.get_by_text("You are in control").wait_for()


def press(page: Page, command: str) -> None:
    """A button of the page."""
    page.locator(f"[data-do={command}]:not([disabled])").first.click()


def perform(page: Page, held: Held, actions: np.ndarray, picture: Path | None = None) -> None:
    """Move the pointer to where the human pointed at each step, in the world's time, until the episode is over.

    Args:
        picture: save one of the page here on the way.
    """
    canvas = page.locator("figure[data-camera=view] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None

    def point(action: np.ndarray) -> None:
        x, y = action / SIDE_PX
        page.mouse.move(box["x"] + float(x) * box["width"], box["y"] + float(y) * box["height"])

    held.until_stage(Stage.EPISODE)
    point(actions[0])
    page.mouse.down()
    step = 1
    while (step := _soon(held, step)) < len(actions):
        point(actions[step])
        if picture is not None and step >= len(actions) // 2:
            page.screenshot(path=picture)
            picture = None
        step += 1
    page.mouse.up()


def _soon(held: Held, step: int) -> int:
    """Wait for the time to point at where ``step`` leads: after the tick before it. Returns the step whose turn it is
    then: those that were missed are left out. A great number if the episode is over."""
    end = time.monotonic() + 60
    while held.stage is Stage.EPISODE:
        done, due_ns = held.step_at
        if done > step:
            return done
        # The tick that carries it out is the one after those until then, a period apart.
        if done and now_ns() >= due_ns + (step - done + AHEAD) * PERIOD_NS:
            return step
        if held.failed or time.monotonic() > end:
            raise AssertionError(f"no time for step {step}; {held.measured.state!r}") from held.failed
        time.sleep(0.002)
    return 1 << 30


@dataclass(frozen=True)
class Agreement:
    """Of what was recorded with what the human did."""

    steps: int
    """That both have."""
    median_px: float
    p99_px: float
    """Between the action recorded at a step and the human's at that step."""
    late: int
    """Steps at which the action recorded is nearer to the human's of the step before: the pointer came too late."""

    @classmethod
    def of(cls, recorded: np.ndarray, human: np.ndarray) -> Agreement:
        n = min(len(recorded), len(human))
        error = np.linalg.norm(recorded[:n] - human[:n], axis=1)
        before = np.linalg.norm(recorded[1:n] - human[: n - 1], axis=1)
        late = int((before < error[1:] - 0.5).sum())
        return cls(n, float(np.median(error)), float(np.percentile(error, 99)), late)
