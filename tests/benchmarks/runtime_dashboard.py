"""Makes the README's picture of the dashboard: a twin at its simulated table, driven by a policy of sines.

    python tests/benchmarks/runtime_dashboard.py [FOLDER]

writes deploy/assets/dashboard.png; with FOLDER also other widths, colours and states, to be looked at.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

RIG = "so101_scene_twin"
DESKTOP, TABLET, PHONE = (1400, 910), (820, 1100), (390, 844)
GOES = "state?.state === 'RUNNING' && serverNow() - state.entered > 8500 && [...pictures.values()].every(p => p.at)"


def main() -> None:
    from dashboard_bench import Running, chromium, simulated_run, until
    from playwright.sync_api import Browser, sync_playwright

    def take(
        browser: Browser, run: Running, size: tuple[int, int], path: Path, *, goes: bool = True, **how: Any
    ) -> None:
        scheme = how.pop("scheme", "light")
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.goto(run.url)

        def there() -> bool:
            if goes:
                run.set_going()  # a busy machine may have parted the arm from its driver
            return page.evaluate(GOES if goes else "state?.state === 'E_STOPPED' && samples.length > 300")

        until(there, "the robot runs long enough to fill the curves", 120)
        page.screenshot(path=path, **how)
        context.close()
        print(path)

    rig = (ROOT / f"hardware/rigs/{RIG}.yaml").read_text().replace("rate_hz: 30", "rate_hz: 15")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = stack.enter_context(simulated_run(folder, rig, name=RIG, fifo=True, raised=(0, -0.5, 0, 0.2, 0, 0)))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        take(browser, run, DESKTOP, ROOT / "deploy/assets/dashboard.png")
        if len(sys.argv) > 1:
            others = Path(sys.argv[1])
            others.mkdir(parents=True, exist_ok=True)
            take(browser, run, DESKTOP, others / "dark.png", scheme="dark")
            take(browser, run, PHONE, others / "phone.png")
            take(browser, run, PHONE, others / "phone_whole.png", scheme="dark", full_page=True)
            take(browser, run, TABLET, others / "tablet.png")
            run.e_stop()
            take(browser, run, DESKTOP, others / "stopped.png", goes=False)
            take(browser, run, PHONE, others / "phone_stopped.png", goes=False)
        browser.close()


if __name__ == "__main__":
    main()
