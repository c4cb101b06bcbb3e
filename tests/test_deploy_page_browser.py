"""A person's hands in a real browser: what they do becomes intents in the ring, and what they do not do never does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dashboard_bench import FilledByHand, chromium, page_by_hand, until

from robolearn_deploy.dashboard.rings import Plane
from robolearn_deploy.dashboard.teleop import PICTURE_M, SPEED_M_S
from robolearn_deploy.stall import State
from robolearn_deploy.takeover import STALE_NS
from robolearn_hardware.clock import now_ns

sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

PLANE = Plane("front", (0.0, 0.0), (512.0, 512.0))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def driven() -> Iterator[tuple[FilledByHand, str]]:
    with page_by_hand(driven=True) as (filled, url, _):
        filled.tick(state=int(State.TELEOP), measured=np.array([0.1, 0.2, 0.5], np.float32))
        filled.frame(90)
        yield filled, url


@pytest.fixture
def page(browser: Browser, driven: tuple[FilledByHand, str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = open_page(context.new_page(), driven[1])
    take_control(found)
    yield found
    context.close()


def open_page(page: Page, url: str) -> Page:
    page.set_default_timeout(40_000)
    page.goto(url)
    until(lambda: page.evaluate("state?.state && pictures.get('front')?.at !== null"), "the page shows a picture")
    return page


def take_control(page: Page) -> None:
    page.locator("[data-control=ask]").click()
    sync_api.expect(page.locator("#holder")).to_contain_text("You are in control", timeout=40_000)


def middle(page: Page) -> tuple[float, float, float]:
    """x and y of the picture's middle, and its width, in pixels of the screen."""
    page.locator("#cameras canvas").scroll_into_view_if_needed()
    box = page.locator("#cameras canvas").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]


def test_a_drag_in_a_picture_is_a_displacement_and_ends_with_the_button(
    page: Page, driven: tuple[FilledByHand, str]
) -> None:
    filled, _ = driven
    x, y, width = middle(page)
    page.mouse.move(x, y)
    assert not filled.enabled()
    page.mouse.down()
    until(filled.enabled, "the button is a deadman")
    for share in (0.05, 0.1, 0.15, 0.2):
        page.mouse.move(x + share * width, y - share / 2 * width)
    expected = [0, -0.2 * PICTURE_M, 0.1 * PICTURE_M, 0, 0, 0]
    reached = lambda: np.abs(filled.intent()["displacement"] - expected).max() < 2e-3  # noqa: E731
    until(reached, "right is -y of the base, up is z")
    page.mouse.wheel(0, -200)
    until(lambda: filled.intent()["displacement"][0] == pytest.approx(0.1 * PICTURE_M), "the wheel leads away")
    page.keyboard.down("Shift")
    page.mouse.move(x + 0.3 * width, y - 0.1 * width, steps=4)
    page.keyboard.up("Shift")
    until(lambda: filled.intent()["displacement"][5] == pytest.approx(0.3, abs=0.01), "shift turns about what is up")
    assert 0 <= now_ns() - int(filled.intent()["capture_ns"]) < STALE_NS
    page.mouse.up()
    until(lambda: not filled.enabled(), "no button, no deadman")


def test_keys_move_while_they_are_held_and_open_the_gripper(page: Page, driven: tuple[FilledByHand, str]) -> None:
    filled, _ = driven
    page.keyboard.down("w")
    page.keyboard.down("a")
    wanted = [SPEED_M_S, SPEED_M_S, 0, 0, 0, 0]
    until(lambda: filled.enabled() and np.allclose(filled.intent()["twist"], wanted), "away and left")
    page.keyboard.up("a")
    until(lambda: np.allclose(filled.intent()["twist"][:2], [SPEED_M_S, 0]), "away alone")
    page.keyboard.up("w")
    until(lambda: not filled.enabled(), "no key, no deadman")
    page.keyboard.down("o")
    until(lambda: filled.intent()["gripper"] > 0.7, "from 0.5 as measured it opens")
    page.keyboard.up("o")
    until(lambda: not filled.enabled(), "no key, no deadman")
    page.locator("#text").focus()
    count = filled.intents.count
    page.keyboard.type("wasd")
    page.wait_for_timeout(200)
    assert filled.intents.count == count, "who types an instruction does not move the arm"


def test_a_gamepad_moves_while_its_shoulder_button_is_held(page: Page, driven: tuple[FilledByHand, str]) -> None:
    filled, _ = driven
    page.evaluate("""() => {
        window.pad = { connected: true, mapping: "standard", axes: [0.5, 0, 0, -1],
                       buttons: [...Array(17)].map(() => ({ pressed: false, value: 0 })) };
        navigator.getGamepads = () => [window.pad];
    }""")
    page.wait_for_timeout(100)
    assert not filled.enabled()
    page.evaluate("pad.buttons[5] = { pressed: true, value: 1 }")
    share = (0.5 - 0.12) / 0.88  # less the dead zone
    wanted = [0, -share * SPEED_M_S, SPEED_M_S, 0, 0, 0]
    until(lambda: filled.enabled() and np.allclose(filled.intent()["twist"], wanted), "right and up")
    page.evaluate("pad.buttons[7] = { pressed: true, value: 1 }")
    until(lambda: filled.intent()["gripper"] < 0.3, "the right trigger closes")
    page.evaluate("pad.connected = false")
    until(lambda: not filled.enabled(), "an unplugged gamepad lets go")


@pytest.mark.parametrize("how", ["blur", "hidden", "closed", "offline"])
def test_a_page_that_goes_away_lets_go(browser: Browser, driven: tuple[FilledByHand, str], how: str) -> None:
    filled, url = driven
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = open_page(context.new_page(), url)
    take_control(page)
    x, y, _ = middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    until(filled.enabled, "it moves")
    match how:
        case "blur":
            page.evaluate("dispatchEvent(new Event('blur'))")
        case "hidden":
            page.evaluate("""() => { Object.defineProperty(document, 'hidden', { get: () => true });
                                     document.dispatchEvent(new Event('visibilitychange')); }""")
        case "closed":
            page.close()
        case "offline":
            page.evaluate("socket.close()")
    until(lambda: not filled.enabled(), "the server is told, or sees it")
    context.close()


def test_two_viewers_hand_the_control_over(browser: Browser, driven: tuple[FilledByHand, str]) -> None:
    filled, url = driven
    one, other = (browser.new_context(viewport={"width": 1280, "height": 900}) for _ in range(2))
    first, second = open_page(one.new_page(), url), open_page(other.new_page(), url)
    take_control(first)
    sync_api.expect(second.locator("#holder")).to_contain_text("is in control")
    told = len(filled.told())
    sync_api.expect(second.locator("[data-do=HAND_BACK]")).to_be_disabled()
    sync_api.expect(first.locator("[data-do=HAND_BACK]")).to_be_enabled()
    second.evaluate("send({ do: 'HAND_BACK' })")
    sync_api.expect(second.locator("#answer")).to_contain_text("ask for it first")
    second.locator("#estop").click()
    until(lambda: len(filled.told()) == told + 1, "an e-stop is everybody's")
    x, y, _ = middle(second)
    second.mouse.move(x, y)
    second.mouse.down()
    second.mouse.move(x + 30, y)
    second.mouse.up()
    assert not filled.enabled()
    for answer, holder in (("refuse", first), ("grant", second)):
        second.locator("[data-control=ask]").click()
        sync_api.expect(first.locator("#holder")).to_contain_text("asks for the control")
        first.locator(f"[data-control={answer}]").click()
        sync_api.expect(holder.locator("#holder")).to_contain_text("You are in control")
    one.close()
    second.locator("[data-control=give]").click()
    sync_api.expect(second.locator("#holder")).to_contain_text("Nobody is in control")
    other.close()


def test_a_pointer_in_the_picture_of_a_plane_is_a_place_there(browser: Browser) -> None:
    with page_by_hand(plane=PLANE) as (filled, url, _):
        filled.tick(state=int(State.TELEOP))
        filled.frame()
        for touch in (False, True):
            context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=touch)
            page = open_page(context.new_page(), url)
            take_control(page)
            x, y, width = middle(page)
            session = context.new_cdp_session(page)

            def touched(kind: str, *at: tuple[float, float], session: CDPSession = session) -> None:
                points = [{"x": a, "y": b} for a, b in at]
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

            if touch:
                touched("touchStart", (x, y))
                touched("touchMove", (x - width / 4, y))
            else:
                page.mouse.move(x, y)
                page.mouse.down()
                page.mouse.move(x - width / 4, y)
            until(lambda: filled.enabled() and filled.intent()["positions"][0] == pytest.approx(128, abs=2), "left")
            assert filled.intent()["positions"][1] == pytest.approx(256, abs=2)
            touched("touchEnd") if touch else page.mouse.up()
            until(lambda: not filled.enabled(), "no finger, no deadman")
            context.close()


def test_only_the_hand_moves_the_tool_in_a_plane_not_the_page_beneath_it(browser: Browser) -> None:
    with page_by_hand(plane=PLANE) as (filled, url, _):
        filled.tick(state=int(State.TELEOP))
        filled.frame()
        page = open_page(browser.new_page(viewport={"width": 390, "height": 844}), url)
        take_control(page)
        filled.tick(state=int(State.TELEOP))
        sync_api.expect(page.locator("#banner")).to_be_hidden(timeout=40_000)
        x, y, width = middle(page)
        page.mouse.move(x, y)
        page.mouse.down()
        until(filled.enabled, "the button is a deadman")
        sync_api.expect(page.locator("#banner")).to_contain_text("silent", timeout=40_000)  # no tick follows
        assert middle(page) == (x, y, width), "a warning does not push the picture down"
        filled.tick(state=int(State.TELEOP), cause=b"a reason of many words " * 5)
        until(lambda: middle(page)[1] > y + 20, "the header has grown by some lines")
        page.mouse.move(x - width / 4, y)
        until(lambda: filled.intent()["positions"][0] == pytest.approx(128, abs=2), "left")
        assert filled.intent()["positions"][1] == pytest.approx(256, abs=2)
        page.context.close()


def test_in_a_plane_keys_and_a_gamepad_move_while_they_are_held(browser: Browser) -> None:
    with page_by_hand(plane=PLANE) as (filled, url, _):
        filled.tick(state=int(State.TELEOP))
        filled.frame()
        page = open_page(browser.new_page(viewport={"width": 1280, "height": 900}), url)
        take_control(page)
        for key, wanted in (("ArrowUp", [SPEED_M_S, 0]), ("d", [0, -SPEED_M_S])):
            page.keyboard.down(key)
            until(lambda wanted=wanted: filled.enabled() and _flat(filled) == pytest.approx(wanted), f"{key} moves")
            page.keyboard.up(key)
            until(lambda: not filled.enabled(), "no key, no deadman")
        assert page.evaluate("scrollY") == 0, "the arrows have not scrolled the page"
        page.evaluate(
            """() => {
                window.pad = {connected: true, mapping: "standard", axes: [-1, 0, 0, 0],
                    buttons: Array.from({length: 17}, () => ({pressed: false, value: 0}))};
                navigator.getGamepads = () => [window.pad];
            }"""
        )
        page.wait_for_timeout(200)
        assert not filled.enabled(), "a stick alone moves nothing"
        page.evaluate("pad.buttons[5].pressed = true")
        until(lambda: filled.enabled() and _flat(filled) == pytest.approx([0, SPEED_M_S]), "left")
        page.evaluate("pad.buttons[5].pressed = false")
        until(lambda: not filled.enabled(), "no shoulder button, no deadman")
        page.close()


def _flat(filled: FilledByHand) -> list[float]:
    """Forward and left, m/s."""
    return filled.intent()["twist"][:2].tolist()


def test_without_a_headset_the_page_says_why_there_is_no_vr(page: Page) -> None:
    sync_api.expect(page.locator("#vr")).to_contain_text("this browser knows of no headset", timeout=40_000)
    assert page.locator("#headset").is_hidden()
    page.evaluate("delete Navigator.prototype.xr")
    page.evaluate("import('/vr.js?again').then(() => null)")
    sync_api.expect(page.locator("#vr")).to_contain_text("this browser has no WebXR", timeout=40_000)


class Phone:
    """A phone with several fingers and an attitude, by the browser's own protocol."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        self.page = open_page(self.context.new_page(), url)
        self._session = self.context.new_cdp_session(self.page)
        self._fingers: dict[int, tuple[float, float]] = {}

    def touch(self, finger: int, at: tuple[float, float] | None) -> None:
        """Lay it there, move it there, or (None) lift it."""
        kind = "touchEnd" if at is None else "touchMove" if finger in self._fingers else "touchStart"
        if at is not None:
            self._fingers[finger] = at
        # What ends is named alone; of what begins or moves, all fingers are.
        named = {finger: self._fingers.pop(finger)} if at is None else self._fingers
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in named.items()]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def turn(self, alpha: float, beta: float, gamma: float) -> None:
        angles = {"alpha": alpha, "beta": beta, "gamma": gamma}
        self._session.send("DeviceOrientation.setDeviceOrientationOverride", angles)

    def middle(self, selector: str) -> tuple[float, float]:
        box = self.page.locator(selector).bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_phones_pad_and_its_turning_move_the_tool_while_the_deadman_is_pressed(
    browser: Browser, driven: tuple[FilledByHand, str]
) -> None:
    filled, url = driven
    phone = Phone(browser, url)
    page = phone.page
    take_control(page)
    page.locator("#deadman").scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    (x, y), dead = phone.middle("#pad"), phone.middle("#deadman")
    width = page.locator("#pad").evaluate("e => e.clientWidth")
    count = filled.intents.count
    phone.touch(1, (x, y))
    phone.touch(1, (x + 50, y))
    page.wait_for_timeout(200)
    assert filled.intents.count == count, "no deadman, no motion"
    phone.touch(2, dead)
    until(filled.enabled, "the deadman")
    phone.touch(1, (x + 50 + 0.2 * width, y - 0.1 * width))
    expected = [0.1 * PICTURE_M, -0.2 * PICTURE_M, 0, 0, 0, 0]
    until(lambda: np.abs(filled.intent()["displacement"] - expected).max() < 2e-3, "right and away")
    phone.touch(2, None)
    until(lambda: not filled.enabled(), "no finger on the deadman")
    phone.touch(1, None)
    page.locator("#turns").check()
    phone.turn(40, 30, 0)
    until(lambda: page.locator("#turning").inner_text() == "", "the phone says how it is turned")
    page.locator("#deadman").scroll_into_view_if_needed()
    phone.touch(2, phone.middle("#deadman"))  # the page may have scrolled
    until(filled.enabled, "the deadman")
    for alpha in (45, 50, 55, 60):
        phone.turn(alpha, 30, 0)
        page.wait_for_timeout(50)
    turned = [0, 0, 0, 0, 0, np.radians(20)]
    until(lambda: np.abs(filled.intent()["displacement"] - turned).max() < 2e-3, "to the left, about what is up")
    phone.touch(2, None)
    until(lambda: not filled.enabled(), "no finger on the deadman")
    phone.context.close()
