"""A whole session from the browser: a person moves a simulated rig's arm, records episodes, and looks at them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dashboard_bench import CollectRun, chromium, collecting_run, until

from robolearn_data.dataset import Dataset
from robolearn_deploy.stall import State
from robolearn_deploy.takeover import STALE_NS
from robolearn_hardware.kinematics import Kinematics

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")
sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectRun]:
    with collecting_run(tmp_path_factory.mktemp("session")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(browser: Browser, run: CollectRun) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(40_000)
    page.goto(run.url)
    page.locator("[data-control=ask]").click()
    sync_api.expect(page.locator("#holder")).to_contain_text("You are in control", timeout=40_000)
    until(lambda: page.evaluate("pictures.get('front')?.at !== null"), "pictures come")
    return page


def begin_episode(page: Page, run: CollectRun) -> None:
    sync_api.expect(page.locator("#stage")).to_have_text("Ready", timeout=40_000)
    page.locator("[data-do=START]").click()
    until(lambda: run.stage == "EPISODE" and run.tick()["state"] == State.TELEOP, "it records")


def tool(run: CollectRun) -> np.ndarray:
    """(3,) m, of what was sent last."""
    return Kinematics("so101").forward(run.tick()["sent"][:5].astype(np.float64)).position


def take_hold(page: Page) -> tuple[float, float]:
    """Press the button over the picture's middle; where that is."""
    page.locator("#cameras canvas").scroll_into_view_if_needed()
    box = page.locator("#cameras canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    return x, y


def drag_up(page: Page, run: CollectRun, height: float) -> bool:
    """Drag until the tool is so high, m. Not when the hold was lost: what a busy machine says late does not count."""
    page.mouse.up()
    x, y = take_hold(page)
    until(lambda: run.tick()["person"], "a person holds the deadman")
    for up in range(0, 150, 3):
        page.mouse.move(x, y - up)
        page.wait_for_timeout(20)
        if tool(run)[2] > height:
            return True
    return False


def press_until_it_counts(page: Page, run: CollectRun, key: str) -> None:
    def counts() -> bool:
        page.keyboard.up(key)
        page.keyboard.down(key)
        page.wait_for_timeout(1000)
        return bool(run.tick()["person"])

    until(counts, "it moves")


def test_a_person_records_episodes_by_dragging_in_the_picture(run: CollectRun, browser: Browser) -> None:
    page = opened(browser, run)
    for number, verdict in enumerate(("SUCCESS", "FAILURE")):
        begin_episode(page, run)
        before = tool(run)
        assert any(drag_up(page, run, before[2] + 0.02) for _ in range(5)), "the tool goes up with the pointer"
        assert abs(tool(run) - before)[:2].max() < 0.01
        page.mouse.up()
        until(lambda: not run.tick()["person"], "let go of")
        page.locator(f"[data-do={verdict}]").click()
        sync_api.expect(page.locator("#list li")).to_have_count(number + 1, timeout=40_000)
    page.close()
    dataset = Dataset.open(run.out)
    assert dataset.episodes == 2
    infos = [dataset.episode_info(i) for i in range(2)]
    assert [info["success"] for info in infos] == [True, False]
    assert {info["task"] for info in infos} == {"push the block"}
    sent = dataset.read("action", dataset.rows(0))
    assert np.ptp(sent, axis=0).max() > 0.02, "the motion is recorded"


@pytest.mark.parametrize("how", ["tab", "page process"])
def test_a_tab_or_a_page_process_that_is_gone_holds_the_arm(run: CollectRun, browser: Browser, how: str) -> None:
    page = opened(browser, run)
    begin_episode(page, run)
    page.evaluate("document.activeElement?.blur()")
    press_until_it_counts(page, run, "r")  # up, for as long as it is held
    if how == "tab":
        page.close()
    else:
        os.kill(run.pids["page"], signal.SIGKILL)
    until(lambda: not run.tick()["person"], "nobody holds it")
    last = run.intents.newest()
    assert last is not None
    ticks, _ = run.ticks.drain(0)
    held = ticks[ticks["person"] == 1]
    assert int(held["woke_ns"][-1]) - int(last[1]["capture_ns"]) <= STALE_NS + 20_000_000
    until(lambda: run.tick()["at_rest"], "it rests")
    before = run.tick()["sent"].copy()
    count = run.ticks.count
    until(lambda: run.ticks.count > count + 50, "the servo loop goes on")
    np.testing.assert_array_equal(run.tick()["sent"], before)
    if how == "tab":
        back = opened(browser, run)
        back.locator("[data-do=DISCARD]").click()
        until(lambda: run.stage == "READY", "the session goes on")
        back.close()
