"""The dashboard in a real browser, beside a real run on a simulated rig."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dashboard_bench import ARM_ALONE, Running, chromium, page_by_hand, simulated_run, until

from robolearn_data.schema import read_text
from robolearn_deploy.stall import State
from robolearn_deploy.wire.security import self_signed

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")
sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulated_run(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


class Opened:
    """A page of the browser, and what went wrong in it."""

    def __init__(self, browser: Browser, size: str, **how: Any) -> None:
        width, height = SIZES[size]
        self._context = browser.new_context(viewport={"width": width, "height": height}, **how)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(40_000)
        self.errors: list[str] = []
        self.asked: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("request", lambda request: self.asked.add(request.url.split("/")[2]))

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self._context.close()
        if kind is None:
            assert self.errors == []


def shows(page: Page, selector: str, text: str) -> None:
    sync_api.expect(page.locator(selector)).to_contain_text(text, timeout=40_000)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_shows_a_running_rig(run: Running, browser: Browser, size: str) -> None:
    run.set_going()
    opened = Opened(browser, size)
    with opened as page:
        page.goto(run.url)
        shows(page, "#state", "RUNNING")
        shows(page, "#instruction", "wave")
        shows(page, "#late", "p50")
        shows(page, "#slow", "p50")
        shows(page, "#facts", "in an episode")
        shows(page, "#log", "RUNNING")
        shows(page, "#cameras figcaption", "ms old")
        assert page.locator("#charts div").count() == 6
        drawn = (
            "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return new Set(d).size }"
        )
        for canvas in ("#cameras canvas", "#charts canvas", "#lateness", "#delay"):
            box = page.locator(canvas).first
            box.scroll_into_view_if_needed()
            until(lambda box=box: box.evaluate(drawn) > 5, f"{canvas} is drawn")
        for where in ("0", "document.body.scrollHeight"):  # it is in sight wherever one has scrolled to
            page.evaluate(f"scrollTo(0, {where})")
            box, (width, height) = page.locator("#estop").bounding_box(), SIZES[size]
            assert box is not None
            assert min(box["width"] - 200, box["height"] - 50) >= 0
            assert min(box["x"], width - box["x"] - box["width"]) >= 0
            assert min(box["y"], height - box["y"] - box["height"]) >= 0
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        cut = "[...document.querySelectorAll('button')].filter(b => b.scrollWidth > b.clientWidth + 1).length"
        assert page.evaluate(cut) == 0
    assert opened.asked == {run.url.split("/")[2]}, "nothing is loaded from elsewhere"


def test_the_curves_of_the_page_are_the_values_of_the_ticks(run: Running, browser: Browser) -> None:
    run.set_going()
    with Opened(browser, "desktop") as page:
        page.goto(run.url)
        ready = "samples.length > 100 && plan.times.at(-1) > serverNow()"
        until(lambda: page.evaluate(ready), "curves, and a chunk ahead of now")
        names, newest, at = page.evaluate("[hello.names, samples.at(-1), samples.map(s => s[0])]")
        assert names[-1] == "gripper"
        ticks, _ = run.ticks.drain(0)
        away = [
            abs(ticks[name] - newest[1 + i]).max(axis=1) for i, name in enumerate(("requested", "sent", "measured"))
        ]
        assert np.max(away, axis=0).min() < 1e-4, "the newest point is a tick of the ring"
        assert (np.diff(at) > 0).all()


@pytest.mark.parametrize("how", ["button", "Escape", "Space"])
def test_an_e_stop_stops_the_robot_and_release_and_resume_bring_it_back(
    run: Running, browser: Browser, how: str
) -> None:
    run.set_going()
    with Opened(browser, "phone" if how == "button" else "desktop") as page:
        page.goto(run.url)
        shows(page, "#state", "RUNNING")
        release, resume = page.locator("[data-do=RELEASE]"), page.locator("[data-do=RESUME]")
        sync_api.expect(release).to_be_disabled()
        if how == "button":
            page.locator("#estop").click()
        else:
            page.locator("[data-do=PAUSE]").focus()  # the space bar would press it
            page.keyboard.press(how)
        run.until_state(State.E_STOPPED)
        shows(page, "#state", "E-STOPPED")
        shows(page, "#cause", "e-stop pressed")
        shows(page, "#answer", "E-STOP: done")
        sync_api.expect(resume).to_be_disabled()
        release.click()
        run.until_state(State.STOPPED)
        shows(page, "#cause", "e-stop released; resume when ready")
        resume.click()
        run.until_state(State.RUNNING)
        shows(page, "#state", "RUNNING")
    assert any("E_STOP" in m and "viewer" in m and "127.0.0.1" in m for m in run.messages), "the log names the viewer"


def test_pause_shows_when_the_robot_has_stopped_and_offers_to_resume(run: Running, browser: Browser) -> None:
    run.set_going()
    with Opened(browser, "desktop") as page:
        page.goto(run.url)
        page.locator("[data-do=PAUSE]").click()
        run.until_state(State.STOPPED)
        shows(page, "#answer", "Pause: done")
        sync_api.expect(page.locator("[data-do=PAUSE]")).to_be_disabled()
        sync_api.expect(page.locator("[data-do=TAKE_OVER]")).to_be_disabled()  # the rig has no teleoperator
        page.locator("[data-do=RESUME]").click()
        shows(page, "#answer", "Resume: done")
        run.until_state(State.RUNNING)


def test_an_instruction_arrives_and_is_confirmed(run: Running, browser: Browser) -> None:
    run.set_going()
    text = "put the <b>red</b> cube, naïvely, into the box"
    with Opened(browser, "desktop") as page:
        page.goto(run.url)
        shows(page, "#state", "RUNNING")
        page.locator("#text").fill("")
        page.locator("#text").press_sequentially(text)  # with its spaces
        page.keyboard.press("Enter")
        shows(page, "#instruction", text)
        shows(page, "#answer", "Instruction: done")
        found = run.instruction.newest()
        assert found is not None
        assert read_text(found[1]["value"]) == text
        assert run.state() is not State.E_STOPPED
        page.locator("#text").fill("x" * 300)
        page.keyboard.press("Enter")
        shows(page, "#answer", "256 bytes")
    assert any(text in m and "viewer" in m for m in run.messages)


def test_an_episode_marked_as_success_is_taken_note_of(run: Running, browser: Browser) -> None:
    run.set_going()
    with Opened(browser, "desktop") as page:
        page.goto(run.url)
        page.locator("[data-do=SUCCESS]").click()
        shows(page, "#answer", "Success: done")
        page.locator("[data-do=END]").click()
        shows(page, "#answer", "again")  # nothing has ended
        assert run.state() is State.RUNNING


def test_a_lost_connection_is_said_at_once_and_found_again(browser: Browser) -> None:
    opened = Opened(browser, "phone")
    with opened as page, page_by_hand() as (filled, url, worker):
        filled.tick(state=int(State.RUNNING))
        page.goto(url)
        shows(page, "#state", "RUNNING")
        shows(page, "#banner", "silent")  # no tick follows
        os.kill(worker.pid, signal.SIGSTOP)
        shows(page, "#banner", "Not connected")
        page.locator("#estop").click()
        shows(page, "#answer", "E-STOP WAS NOT SENT")
        os.kill(worker.pid, signal.SIGCONT)
        shows(page, "#link", "viewer")
        assert filled.told() == [], "what could not be sent is not sent later"
        os.kill(worker.pid, signal.SIGKILL)
        shows(page, "#banner", "Not connected")
        opened.errors.clear()  # that it cannot connect


def test_the_end_of_a_run_is_said(browser: Browser) -> None:
    opened = Opened(browser, "desktop")
    with opened as page:
        with page_by_hand() as (filled, url, _):
            filled.tick()
            page.goto(url)
            shows(page, "#state", "STOPPED")
        shows(page, "#banner", "The run is over")
        opened.errors.clear()


def test_a_token_is_asked_for_once_and_leaves_the_address(browser: Browser) -> None:
    with page_by_hand(token="s3cret+/ß") as (filled, url, _):
        filled.tick(state=int(State.HOLDING))
        opened = Opened(browser, "desktop")
        with opened as page:
            page.goto(url)
            page.get_by_label("token").fill("wrong")
            page.get_by_role("button").click()
            page.get_by_text("That was not the token").wait_for()
            page.get_by_role("textbox").fill("s3cret+/ß")
            page.get_by_role("button").click()
            shows(page, "#state", "HOLDING")
            assert page.url == url
            page.goto(url)
            shows(page, "#state", "HOLDING")
            assert page.evaluate("document.cookie") == ""
            opened.errors.clear()  # that it was refused twice


def test_the_page_works_over_tls(browser: Browser, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    with page_by_hand(tls=self_signed(tmp_path, "localhost"), token="secret") as (filled, url, _):
        filled.tick(state=int(State.HOLDING))
        assert url.startswith("https://")
        with Opened(browser, "desktop", ignore_https_errors=True) as page:
            page.goto(f"{url}?token=secret")
            shows(page, "#state", "HOLDING")
            (cookie,) = page.context.cookies()
            assert (cookie.get("secure"), cookie.get("httpOnly"), cookie.get("sameSite")) == (True, True, "Strict")


@pytest.mark.slow
def test_a_page_process_that_dies_stops_nothing(tmp_path: Path) -> None:
    with simulated_run(tmp_path, ARM_ALONE) as run:
        run.until_state(State.RUNNING)
        os.kill(run.pids["page"], signal.SIGKILL)
        until(lambda: any("goes on without the page" in m for m in run.messages), "it is said")
        count = run.ticks.count
        until(lambda: run.ticks.count > count + 100, "the servo loop goes on")
        run.until_state(State.RUNNING)
    assert run.report is not None
    assert run.report.failure == ""
