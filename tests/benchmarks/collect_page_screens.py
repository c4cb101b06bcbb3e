"""The README's pictures of a collecting session: the page on a desk, on a phone, and its list of episodes.

python tests/benchmarks/collect_page.py --screens
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}


def screens(folder: Path, rig: str = "") -> None:
    """collect.png (recording, the pointer moves the arm), collect_phone.png, collect_episodes.png in ``folder``.

    ``rig``: text of another rig file than that of the simulated table, which a busy machine cannot keep up with.
    """
    from dashboard_bench import chromium, collecting_run, until
    from playwright.sync_api import sync_playwright

    rig = rig or (ROOT / "hardware/rigs/so101_scene_twin.yaml").read_text().replace("rate_hz: 30", "rate_hz: 10")
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = ("put the cube into the box", "push the cube to the left")
        run = stack.enter_context(collecting_run(temporary, rig, fifo=True, episodes=50, tasks=tasks, countdown_s=3))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)  # pyright: ignore[reportArgumentType]
        small = context.new_page()
        small.set_default_timeout(120_000)
        small.goto(run.url)
        small.locator("[data-control=ask]").click()
        until(lambda: small.evaluate("[...pictures.values()].every((p) => p.at !== null)"), "pictures", 90)
        small.screenshot(path=folder / "collect_phone.png")
        print(folder / "collect_phone.png")
        context.close()
        page = browser.new_page(viewport=DESK)  # pyright: ignore[reportArgumentType]
        page.set_default_timeout(120_000)
        page.goto(run.url)
        page.locator("[data-control=ask]").click()
        until(lambda: page.evaluate("[...pictures.values()].every((p) => p.at !== null)"), "pictures", 90)
        for number, verdict in enumerate(("SUCCESS", "SUCCESS", "FAILURE", "SUCCESS")):
            episode(page, run, until, number)
            if number == 3:
                page.screenshot(path=folder / "collect.png")
                print(folder / "collect.png")
            page.mouse.up()
            page.locator(f"[data-do={verdict}]").click()
            until(lambda number=number: page.locator("#list li").count() == number + 1, "it is saved", 60)
        page.locator("#list li").nth(2).get_by_text("Delete").click()
        page.locator("#list li").first.get_by_text("Replay").click()
        until(lambda: page.locator("#curves canvas").count() > 2, "curves", 60)
        page.wait_for_timeout(2500)
        page.set_viewport_size({"width": DESK["width"], "height": 1500})  # all of it, without scrolling
        page.evaluate("document.querySelector('header').style.position = 'static'")  # it would lie across the picture
        page.wait_for_timeout(1000)
        page.locator("#episodes").screenshot(path=folder / "collect_episodes.png")
        print(folder / "collect_episodes.png")
        page.close()
        browser.close()


def episode(page: Any, run: Any, until: Any, number: int) -> None:
    """Record for a few seconds; the button is still held."""
    from collect_page import begin

    begin(page, run)
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#cameras canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(60):
        way = -1 if step // 15 % 2 else 1
        page.mouse.move(x + way * (step % 15) * 3 * (1 + number % 2), y - 0.6 * step)
        page.wait_for_timeout(60)
