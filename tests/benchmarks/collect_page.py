"""How late the page is: from a hand in the browser to the arm, and from a camera to the screen.

A collecting session on the twin of a SO-101 with a camera (320x240, 30 Hz, MJPEG over HTTP) runs as `robolearn collect`
runs it: camera, page, servo process (100 Hz) and recorder are processes of their own; Chromium shows the page.

input-to-command: from the browser's own time of an event (pointer, finger on the phone's pad; VR: when the emulated
controller is set) until the servo process has sent the first setpoint that differs. capture-to-painted: from the
capture of a picture (its first byte here; the exposure and the camera's own delay come on top) until the browser's
next frame after it was drawn; on the page's estimate of the clocks, which is early by the quickest way from the server
(under 1 ms on one machine). VR draws in software here, into a small window: a headset's frame rate is its own.
"lost" counts motions that were not followed: the browser had been silent for longer than the arm waits for it.

    python tests/benchmarks/collect_page.py [--trials 60] [--seconds 30] [--screens]

--screens makes the README's pictures instead. VR is left out where npm cannot fetch the emulator.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from results import RESULTS, write_results

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

RIG = (ROOT / "hardware/rigs/so101_twin.yaml").read_text() + (
    "cameras:\n  front: {kind: mjpeg, url: twin, width: 320, height: 240, rate_hz: 30}\n"
)
SCENE = ROOT / "hardware/rigs/so101_scene_twin.yaml"
PIXELS = 12
STILL_S = 0.3
FAST = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"]
NOTE = """() => { window.hand = 0;
    addEventListener("pointermove", (e) => { window.hand = e.timeStamp; }, { capture: true }); }"""
HAND = """(before) => new Promise((done) => {
    (function look() { if (window.hand !== before) done(window.hand); else setTimeout(look, 1); })();
})"""  # the browser hands events out with its frames
PAINTED = """(seconds) => new Promise((done) => {
    const ages = [], shown = pictures.get("front"), end = performance.now() + 1000 * seconds;
    let last = shown.at, drawn = null;
    (function frame() {
        if (drawn !== null) ages.push(serverNow() - drawn); // the frame before has put it on the screen
        drawn = shown.at !== last ? (last = shown.at) : null;
        if (performance.now() < end) requestAnimationFrame(frame); else done(ages);
    })();
})"""


class Table:
    """A session whose arm is moved from the page, and a page of it."""

    def __init__(self, run: Any, page: Any) -> None:
        from dashboard_bench import until

        self.run, self.page = run, page
        page.locator("[data-control=ask]").dispatch_event("click")  # wherever it is: VR has a small window
        until(lambda: page.evaluate("inControlNow()"), "in control")
        page.evaluate(NOTE)
        self.offset_ns = self._offset_ns()

    def _offset_ns(self) -> float:
        """Of our clock over the page's, from the quickest of many questions."""
        from robolearn_hardware.clock import now_ns

        found = []
        for _ in range(100):
            before = now_ns()
            there = self.page.evaluate("performance.now()")
            found.append((now_ns() - before, (before + now_ns()) / 2 - there * 1e6))
        return min(found)[1]

    def trials(self, count: int, move: Callable[[bool], float], *, first: bool) -> list[float | None]:
        """``count`` motions, forth (``first``: so is the first) and back."""
        found = [self._trial(move, first is (i % 2 == 0)) for i in range(count)]
        if found.count(None) > count // 2:
            raise SystemExit("the arm has rarely followed; is the machine overloaded?")
        return found

    def _trial(self, move: Callable[[bool], float], forth: bool) -> float | None:
        """ms from the instant that ``move`` returns (ms of the page) to the first setpoint that differs; None: there
        is none."""
        ticks = self.run.ticks
        self._wait_still()
        before, index = self.run.tick()["sent"], ticks.count
        pushed_ns = move(forth) * 1e6 + self.offset_ns
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for _, tick in ticks.since(index):
                if tick["done_ns"] > pushed_ns and (tick["sent"] != before).any():
                    return (int(tick["done_ns"]) - pushed_ns) / 1e6
            time.sleep(0.005)
        return None

    def _wait_still(self) -> None:
        since, last = time.monotonic(), self.run.tick()["sent"]
        while time.monotonic() - since < STILL_S + random.uniform(0, 0.05):
            time.sleep(0.01)
            now = self.run.tick()
            if (now["sent"] != last).any() or not now["person"]:
                since, last = time.monotonic(), now["sent"]


def begin(page: Any, run: Any) -> None:
    """An episode, or the one that goes on."""
    from dashboard_bench import until

    from robolearn_deploy.stall import State

    def goes() -> bool:
        if run.stage == "EPISODE" and run.tick()["state"] == State.TELEOP:
            return True
        # A busy machine may have parted the arm from its driver: a person mends that by resuming.
        said = [*["RESUME"] * mend(run), *["DISCARD"] * (run.stage == "JUDGING"), "START"]
        page.evaluate("(said) => said.forEach((name) => send({ do: name }))", said)
        page.wait_for_timeout(1500)
        return False

    until(goes, "it records", 120)


def mend(run: Any) -> bool:
    from robolearn_hardware.devices import Condition

    return int(run.tick()["condition"]) not in (Condition.READY, Condition.DEGRADED)


def opened(context: Any, run: Any, *, pictures: bool = True) -> Table:
    """``pictures``: the camera is on the screen."""
    from dashboard_bench import until

    context.add_init_script("window.inControlNow = () => Boolean(state) && state.control.holder === hello.viewer;")
    page = context.new_page()
    page.goto(run.url)
    shows = "state && pictures.get('front')?.at !== null" if pictures else "Boolean(state)"
    until(lambda: page.evaluate(shows), "the page shows what it shall", 60)
    table = Table(run, page)
    begin(page, run)
    return table


def pointer(browser: Any, run: Any, trials: int) -> list[float | None]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    table = opened(context, run)
    page = table.page
    page.locator("#cameras canvas").scroll_into_view_if_needed()
    box = page.locator("#cameras canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()

    def move(forth: bool) -> float:
        before = page.evaluate("hand")
        page.mouse.move(x, y - PIXELS * forth)
        return page.evaluate(HAND, before)

    found = table.trials(trials, move, first=True)
    page.mouse.up()
    context.close()
    return found


def phone(browser: Any, run: Any, trials: int) -> list[float | None]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    table = opened(context, run)
    page, protocol = table.page, context.new_cdp_session(table.page)
    page.locator("#deadman").scroll_into_view_if_needed()
    middles = []
    for name in ("#deadman", "#lift"):
        box = page.locator(name).bounding_box()
        middles.append((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2))

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    (dead, (x, y)) = middles
    touch("touchStart", dead)
    touch("touchStart", dead, (x, y))

    def move(forth: bool) -> float:
        before = page.evaluate("hand")
        touch("touchMove", dead, (x, y - PIXELS * forth))
        return page.evaluate(HAND, before)

    touch("touchMove", dead, (x, y - PIXELS))  # the browser swallows the first motion: is it a tap?
    found = table.trials(trials, move, first=False)
    touch("touchEnd")
    context.close()
    return found


def headset(browser: Any, run: Any, trials: int, iwer: Path) -> list[float | None]:
    from dashboard_bench import until
    from test_deploy_page_webxr import HEADSET

    context = browser.new_context(viewport={"width": 320, "height": 240})  # what software draws in time
    context.add_init_script(path=iwer)
    context.add_init_script(HEADSET)
    table = opened(context, run, pictures=False)
    page = table.page
    page.locator("#immerse").dispatch_event("click")
    until(lambda: page.evaluate("Boolean(headset.activeSession)"), "VR begins", 60)
    page.evaluate("right.updateButtonValue('squeeze', 1)")
    high = 1.2

    def move(forth: bool) -> float:
        return page.evaluate(
            "(y) => { right.position.set(0.2, y, -0.4); return performance.now(); }", high + 0.01 * forth
        )

    found = table.trials(trials, move, first=True)
    context.close()
    return found


def fetch_iwer(folder: Path) -> Path | None:
    from test_deploy_page_webxr import IWER

    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), IWER]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"VR is left out: {error}")
        return None
    return folder / "node_modules/iwer/build/iwer.js"


def row(who: str, stage: str, values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    (p50, p99), lost = np.percentile(known, [50, 99]), len(values) - len(known)
    print(f"{who:12s} {stage:20s} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   n {len(known)}   lost {lost}", flush=True)
    figures = {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "n": len(known), "lost": lost}
    return {"teleoperator": who, "stage": stage, **figures}


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the rows that others have written of theirs."""
    path = RESULTS / "collect_latency.json"
    mine = {(r["teleoperator"], r["stage"]) for r in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    return [r for r in old if (r["teleoperator"], r["stage"]) not in mine] + rows


def measure(trials: int, seconds: float) -> None:
    from dashboard_bench import chromium, collecting_run
    from playwright.sync_api import sync_playwright

    random.seed(0)
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = stack.enter_context(collecting_run(folder, RIG, fifo=True, episodes=10, episode_s=3000))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        rows.append(row("pointer", "input-to-command", pointer(browser, run, trials)))
        rows.append(row("phone", "input-to-command", phone(browser, run, trials)))
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        table = opened(context, run)
        rows.append(row("page", "capture-to-painted", table.page.evaluate(PAINTED, seconds)))
        browser.close()
        iwer = fetch_iwer(folder)
        if iwer is not None:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FAST)
            rows.append(row("VR", "input-to-command", headset(browser, run, trials, iwer)))
            browser.close()
    print(f"load average {os.getloadavg()[0]:.1f}")
    if trials >= 20:
        print(write_results("collect_latency", merged(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="below 20 nothing is written")
    parser.add_argument("--seconds", type=float, default=30.0, help="of pictures")
    parser.add_argument("--screens", action="store_true", help="make the README's pictures")
    options = parser.parse_args()
    if options.screens:
        from collect_page_screens import screens

        screens(ROOT / "deploy/assets")
    else:
        measure(options.trials, options.seconds)


if __name__ == "__main__":
    main()
