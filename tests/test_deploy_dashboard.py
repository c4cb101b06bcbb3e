"""The dashboard in a real browser, beside a real run on a simulated rig."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dashboard_bench import ARM_ALONE, Running, chromium, page_by_hand, simulated_run, until
from rig_fakes import spec_of

from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn_data.schema import read_text
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State

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
        shows(page, "#answer", "again")
        count = run.ticks.count
        until(lambda: run.ticks.count > count + 100, "nothing has ended")


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


class Relay:
    """Passes connections on to the page. Those that exist when it is told to ``forget`` hear nothing any more, as when
    a phone has changed networks; later ones are passed on."""

    def __init__(self, url: str) -> None:
        host, port = url.split("/")[2].split(":")
        self._target, self._listening = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._open: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        self._forgotten |= {*self._open}

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self._forgotten:
                    return
                sink.sendall(data)
            if source not in self._forgotten:
                sink.shutdown(socket.SHUT_WR)


def test_a_connection_that_died_without_a_word_is_made_anew(browser: Browser) -> None:
    with page_by_hand() as (filled, url, _), contextlib.closing(Relay(url)) as relay:
        filled.tick(state=int(State.RUNNING))
        opened = Opened(browser, "phone")
        with opened as page:
            page.goto(relay.url)
            shows(page, "#link", "viewer 1")
            relay.forget()
            shows(page, "#banner", "Not connected")
            shows(page, "#link", "viewer 2")
            page.locator("#estop").click()
            until(lambda: filled.told() == [Command.E_STOP], "the e-stop arrives")


def public_key_hash(certificate: Path) -> str:
    """As Chromium is told to trust it: base64 of the SHA-256 of the public key."""
    key = subprocess.run(["openssl", "x509", "-noout", "-pubkey", "-in", certificate], capture_output=True, check=True)
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=key.stdout, capture_output=True)
    return base64.b64encode(hashlib.sha256(der.stdout).digest()).decode()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy that keeps the simulated arm near its middle."""
    spec = spec_of(("joint1", "joint2", "joint3", "joint4", "joint5", "gripper"))
    statistics = {}
    for name, stream in {"state": spec.observation["state"], "action": spec.action}.items():
        ones = np.ones(stream.shape)
        statistics[name] = StreamStatistics(2, *(share * ones for share in (-0.02, 0.02, 0, 0.01, -0.02, 0.02)))
    save_policy(Policy(spec, statistics, POLICIES["flow"]()), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@contextlib.contextmanager
def deployed(*words: str, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`robolearn deploy` in a process of its own, and the address of its page as it says it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CONFIG_HOME": str(home / ".config")}
    environment.pop("ROBOLEARN_TOKEN", None)
    command = [sys.executable, "-m", "robolearn.cli.main", "deploy", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    said: list[str] = []
    assert process.stdout is not None
    listening = threading.Thread(target=lambda out: said.extend(out), args=(process.stdout,), daemon=True)
    listening.start()

    def address() -> str:
        assert process.poll() is None, "".join(said)
        return next((line.split("page: ")[1].strip() for line in said if "page: " in line), "")

    try:
        yield process, until(address, "the address of the page", 120)
    finally:
        process.kill()
        process.wait()
        listening.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_phone_on_the_network_opens_the_page_over_tls_with_the_token_and_stops_the_robot(
    browser: Browser, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "rig.yaml").write_text(ARM_ALONE)
    summary = tmp_path / "run.json"
    words = [str(checkpoint), "--rig", str(tmp_path / "rig.yaml"), "--no-fifo", "--steps", "2", "--seconds", "600"]
    words += ["--json", str(summary), "--page-host", "0.0.0.0", "--page-port", "0", "--page-self-signed"]
    with deployed(*words, home=tmp_path) as (process, address):
        url, token = address.split("?token=")
        assert url.startswith("https://")
        kept = tmp_path / ".config/robolearn"
        assert (kept / "page-token").read_text().strip() == token

        with Opened(browser, "phone") as page, pytest.raises(sync_api.Error, match="ERR_CERT_AUTHORITY_INVALID"):
            page.goto(address)

        trust = f"--ignore-certificate-errors-spki-list={public_key_hash(kept / 'tls/0.0.0.0/certificate.pem')}"
        trusting = browser.browser_type.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", trust]
        )
        opened = Opened(trusting, "phone")
        with opened as page:
            page.goto(url)
            page.get_by_label("token").wait_for()
            assert page.evaluate("fetch('/page.js').then(answer => answer.status)") == 401
            wss = "new Promise(r => { const s = new WebSocket(location.href.replace('http', 'ws') + 'socket');"
            assert page.evaluate(wss + " s.onopen = () => r('open'); s.onclose = () => r('closed'); })") == "closed"
            opened.errors.clear()  # that it was refused
            page.goto(address)
            shows(page, "#link", "viewer 1")
            shows(page, "#facts", "in an episode")  # whether it runs is not asked: that takes a machine with time
            assert page.url == url
            assert page.evaluate("isSecureContext")
            (cookie,) = page.context.cookies()
            assert (cookie.get("secure"), cookie.get("httpOnly"), cookie.get("sameSite")) == (True, True, "Strict")
            page.locator("#estop").click()
            shows(page, "#state", "E-STOPPED")
            shows(page, "#answer", "E-STOP: done")
        trusting.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert json.loads(summary.read_text())["seconds_in"]["E_STOPPED"] > 0


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
