"""A VR controller moves an arm: the page's WebXR against Meta's emulator of a headset, which npm fetches for the test.

``iwer`` (MIT) stays in a temporary folder; without npm, or without its registry, these tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dashboard_bench import FilledByHand, chromium, page_by_hand, until

from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State

sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Page

IWER = "iwer@2.5.0"
HEADSET = """
    window.headset = new IWER.XRDevice(IWER.metaQuest3);
    headset.installRuntime({ forceInstall: true });
    window.right = headset.controllers.right;
    right.position.set(0.2, 1.2, -0.4);
    window.lost = false; // the emulator calls every position a guess, which the page does not follow
    Object.defineProperty(XRPose.prototype, "emulatedPosition", { get: () => window.lost });
"""
ARGUMENTS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def iwer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
    if npm is None:
        pytest.skip("npm fetches the emulator of a headset")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), IWER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not answer")
    if done.returncode:
        pytest.skip(f"npm cannot fetch {IWER}: {done.stderr[-200:]}")
    return folder / "node_modules/iwer/build/iwer.js"


@pytest.fixture(scope="module")
def immersed(iwer: Path) -> Iterator[tuple[Page, FilledByHand]]:
    """A page in VR, in control."""
    with page_by_hand(driven=True) as (filled, url, _), sync_api.sync_playwright() as playwright:
        filled.tick(state=int(State.TELEOP))
        filled.frame(90)
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 320, "height": 240})  # what software draws in time
        page.set_default_timeout(60_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(path=iwer)
        page.add_init_script(HEADSET)
        page.goto(url)
        until(lambda: page.evaluate("Boolean(state)"), "the page is there")
        for button in ("[data-control=ask]", "#immerse"):  # at this size they are not all on the screen
            page.locator(button).dispatch_event("click")
        until(lambda: page.evaluate("Boolean(headset.activeSession)"), f"the session begins {errors}")
        yield page, filled
        assert errors == []
        browser.close()


def move(page: Page, x: float, y: float, z: float, steps: int = 5) -> None:
    """Of the right hand, in the room."""
    page.evaluate(
        """async ([x, y, z, steps]) => {
            const from = right.position, to = [x, y, z], was = [from.x, from.y, from.z];
            for (let i = 1; i <= steps; i++) {
                right.position.set(...was.map((v, k) => v + (i / steps) * (to[k] - v)));
                await new Promise((next) => setTimeout(next, 60));
            }
        }""",
        [x, y, z, steps],
    )


def button(page: Page, name: str, value: float) -> None:
    page.evaluate("([name, value]) => right.updateButtonValue(name, value)", [name, value])


def test_a_controller_moves_the_tool_while_its_grip_is_squeezed(immersed: tuple[Page, FilledByHand]) -> None:
    page, filled = immersed
    count = filled.intents.count
    move(page, 0.2, 1.3, -0.4)
    assert filled.intents.count == count, "no squeeze, no motion"
    button(page, "squeeze", 1)
    until(lambda: filled.intents.count > count and filled.enabled(), "the squeeze is the deadman")
    button(page, "squeeze", 0)
    expected = [0.1, -0.05, 0.08, 0, 0, 0]  # away, right, up

    def follows() -> bool:
        until(lambda: not filled.enabled(), "it holds")
        page.evaluate("right.position.set(0.2, 1.3, -0.4)")
        button(page, "squeeze", 1)
        until(filled.enabled, "the squeeze is the deadman")
        move(page, 0.25, 1.38, -0.5)
        page.wait_for_timeout(200)
        if followed := np.abs(filled.intent()["displacement"] - expected).max() < 1e-3:
            return followed
        button(page, "squeeze", 0)  # a busy browser that falls silent on the way is not followed
        return False

    until(follows, "as the hand moves in the room", 120)
    button(page, "trigger", 0.75)
    until(lambda: filled.intent()["gripper"] == pytest.approx(0.25), "the trigger closes")
    button(page, "squeeze", 0)
    until(lambda: not filled.enabled(), "it holds")


def test_a_hand_that_jumps_a_metre_is_not_followed_until_it_is_taken_again(
    immersed: tuple[Page, FilledByHand],
) -> None:
    page, filled = immersed
    button(page, "squeeze", 1)
    until(filled.enabled, "the squeeze is the deadman")
    page.evaluate("right.position.set(right.position.x + 1, right.position.y, right.position.z)")
    until(lambda: not filled.enabled(), "it is let go of")
    until(lambda: "jumped" in page.locator("#moving").inner_text(), "it is said")
    button(page, "squeeze", 0)
    until(lambda: "jumped" not in page.locator("#moving").inner_text(), "it is forgotten")
    button(page, "squeeze", 1)
    until(filled.enabled, "taken again")
    assert np.abs(filled.intent()["displacement"]).max() < 1e-6
    button(page, "squeeze", 0)


def test_a_hand_that_tracking_has_lost_moves_nothing(immersed: tuple[Page, FilledByHand]) -> None:
    page, filled = immersed
    button(page, "squeeze", 1)
    until(filled.enabled, "the squeeze is the deadman")
    page.evaluate("lost = true")
    until(lambda: not filled.enabled(), "a guessed position is none")
    page.evaluate("lost = false")
    button(page, "squeeze", 0)


def test_the_upper_button_is_the_e_stop_and_the_room_shows_the_pictures(immersed: tuple[Page, FilledByHand]) -> None:
    page, filled = immersed
    button(page, "b-button", 1)
    until(lambda: Command.E_STOP in filled.told(), "the e-stop")
    button(page, "b-button", 0)
    seen: Any = page.evaluate(
        """() => new Promise((done) => headset.activeSession.requestAnimationFrame((_, at) => {
            const g = headset.activeSession.renderState.baseLayer.context, size = g.canvas;
            setTimeout(() => done([size.width, size.height, g.getError()]));
        }))"""
    )
    assert seen[2] == 0, "nothing was drawn wrongly"


def test_when_vr_ends_the_arm_is_let_go_of(immersed: tuple[Page, FilledByHand]) -> None:
    page, filled = immersed
    button(page, "squeeze", 1)
    until(filled.enabled, "the squeeze is the deadman")
    page.evaluate("headset.activeSession.end()")
    until(lambda: not filled.enabled(), "nobody holds it")
