"""Recorded episodes on the page: the list, strips, films and curves are the dataset's; marks change it afterwards."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dashboard_bench import FilledByHand, chromium, get, page_by_hand, until

from robolearn.cli.page import carry_out_marks
from robolearn_data.dataset import Dataset
from robolearn_data.edit import EditError
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.collect_session import CollectSession, Inputs, SessionOptions
from robolearn_deploy.dashboard import episodes as episodes_module
from robolearn_deploy.dashboard.episodes import FILM, POINTS, EpisodeLibrary, curves, film, strip
from robolearn_deploy.dashboard.marks import Mark, MarkError, apply_marks, change_mark, marks_file, read_marks
from robolearn_deploy.dashboard.view import RigView
from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State
from robolearn_hardware.clock import now_ns

sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RATE_HZ, MS = 10.0, 1_000_000
SCHEMA = Schema(
    RATE_HZ,
    {
        "state": Stream((2,), "float32", names=("pan", "lift"), unit="rad"),
        "action": Stream((2,), "float32", "action", names=("pan", "lift"), unit="rad"),
        "front": Stream((48, 64, 3), "uint8", "image"),
        "wrench": Stream((6,), "float32", rate_hz=100.0, unit="N"),
    },
)


def record(writer: DatasetWriter, steps: int, task: str, *, success: bool | None) -> None:
    """Its pictures have the brightness of their step, its forces are a sine."""
    start = (1 + writer.episodes) * 10**12
    for i in range(steps):
        at = np.array([0.1 * i, -0.1 * i], np.float32)
        picture = np.full((48, 64, 3), min(2 * i, 255), np.uint8)
        writer.add({"state": at, "action": at, "front": picture}, time_ns=start + i * 100 * MS)
    times = start + np.arange(10 * steps) * 10 * MS
    forces = np.zeros((len(times), 6), np.float32)
    forces[:, 2] = np.sin(np.arange(len(times)) / 7)
    writer.add_samples("wrench", forces, times)
    writer.save_episode({"task": task, **({} if success is None else {"success": success})})


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Three episodes."""
    path = tmp_path / "recorded.zarr"
    with DatasetWriter.create(path, SCHEMA, durable=False) as writer:
        for steps, task, success in ((20, "push", True), (30, "push", False), (25, "pull", None)):
            record(writer, steps, task, success=success)
    return path


def answer(library: EpisodeLibrary, path: str) -> Any:
    """In a thread of its own: an open browser has a running loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, library.ask(path)).result()


def asked(library: EpisodeLibrary, path: str) -> Any:
    found = answer(library, path)
    assert found is not None
    return json.loads(found[0])


def uuids(path: Path) -> list[str]:
    dataset = Dataset.open(path)
    return [dataset.episode_info(i)["uuid"] for i in range(dataset.episodes)]


# ---- what is read


def test_the_list_is_the_datasets_and_grows_while_a_recorder_writes(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes_module, "_FRESH_S", 0.0)
    library = EpisodeLibrary(recorded)
    found = asked(library, "/episodes")
    assert found["cameras"] == ["front"]
    listed = [(e["number"], e["seconds"], e["task"], e["success"]) for e in found["episodes"]]
    assert listed == [(0, 2.0, "push", True), (1, 3.0, "push", False), (2, 2.5, "pull", None)]
    with DatasetWriter.append(recorded) as writer:
        record(writer, 12, "pull", success=True)
        assert asked(library, "/episodes")["episodes"][-1]["seconds"] == 1.2
    for wrong in ("/episodes/9/curves", "/episodes/-1/curves", "/episodes/x/film/front"):
        assert "no episode" in asked(library, wrong)["error"]
    for nothing in ("/episodes/0/film/state", "/episodes/0/strip/../front", "/episodes/0", "/episodes/0/film"):
        assert answer(library, nothing) is None
    library.close()


def test_a_film_is_every_picture_with_its_time_and_a_strip_goes_from_the_first_to_the_last(recorded: Path) -> None:
    from PIL import Image

    dataset = Dataset.open(recorded)
    body, at, pictures = film(dataset, 1, "front"), 0, []
    while at < len(body):
        time_s, size = struct.unpack_from("<fI", body, at)
        picture = np.asarray(Image.open(BytesIO(body[at + 8 : at + 8 + size])))
        pictures.append((time_s, float(picture.mean())))
        at += 8 + size
    np.testing.assert_allclose([t for t, _ in pictures], np.arange(30) / RATE_HZ, atol=1e-4)
    np.testing.assert_allclose([value for _, value in pictures], 2 * np.arange(30), atol=2)
    wide = np.asarray(Image.open(BytesIO(strip(dataset, 1, "front"))))
    assert wide.shape == (48, 8 * 64, 3)
    assert wide[:, :32].mean() == pytest.approx(0, abs=3)
    assert wide[:, -32:].mean() == pytest.approx(58, abs=3)


def test_curves_keep_every_spike_of_a_long_stream(recorded: Path) -> None:
    path = recorded
    with DatasetWriter.append(path) as writer:
        record(writer, 400, "long", success=True)
    dataset = Dataset.open(path)
    found = {one["name"]: one for one in curves(dataset, 3)["streams"]}
    assert set(found) == {"state", "action", "wrench"}
    assert found["state"]["labels"] == ["pan", "lift"]
    points = found["wrench"]["curves"][2]
    assert len(points) <= POINTS
    values = dataset.take("wrench", np.arange(dataset.samples("wrench", 3).rows.start, 4750))[:, 2]
    assert max(v for _, v in points) == pytest.approx(values.max(), abs=1e-3)
    assert [t for t, _ in points] == sorted(t for t, _ in points)
    for time_s, value in points:
        assert value == pytest.approx(np.sin(round(time_s * 100) / 7), abs=1e-3)
    assert len(film(dataset, 3, "front")) > 0
    assert FILM == 200


# ---- marks


def test_marks_are_shown_taken_back_and_carried_out_at_the_end(recorded: Path) -> None:
    first, second, third = uuids(recorded)
    before = Dataset.open(recorded).read("state")
    change_mark(recorded, first, {"success": False})
    change_mark(recorded, first, {"task": "shove"})
    change_mark(recorded, second, {"delete": True})
    change_mark(recorded, third, {"delete": True})
    assert read_marks(recorded) == {first: Mark("shove", False), second: Mark(delete=True), third: Mark(delete=True)}
    library = EpisodeLibrary(recorded)
    shown = asked(library, "/episodes")["episodes"]
    assert [(e["task"], e["success"], e["changed"], e["delete"]) for e in shown] == [
        ("shove", False, True, False),
        ("push", False, False, True),
        ("pull", None, False, True),
    ]
    library.close()
    np.testing.assert_array_equal(Dataset.open(recorded).read("state"), before)
    change_mark(recorded, third, {"delete": False})  # undone
    assert apply_marks(recorded) == (1, 1)
    dataset = Dataset.open(recorded)
    assert uuids(recorded) == [first, third]
    assert (dataset.episode_info(0)["task"], dataset.episode_info(0)["success"]) == ("shove", False)
    assert not marks_file(recorded).exists()
    assert apply_marks(recorded) == (0, 0)
    assert Dataset.open(next(recorded.parent.glob("recorded.zarr.before-delete*"))).episodes == 3


def test_marks_are_not_carried_out_where_nothing_would_remain_or_somebody_writes(recorded: Path) -> None:
    for uuid in uuids(recorded):
        change_mark(recorded, uuid, {"delete": True})
    with pytest.raises(EditError, match="no episode"):
        apply_marks(recorded)
    assert len(read_marks(recorded)) == 3, "they are kept"
    change_mark(recorded, uuids(recorded)[0], {})
    with DatasetWriter.append(recorded), pytest.raises(Exception, match="writ"):
        apply_marks(recorded)
    assert apply_marks(recorded) == (0, 2)


def test_the_end_of_a_session_carries_marks_out_or_says_why_not(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out_marks(recorded)
    change_mark(recorded, uuids(recorded)[1], {"delete": True})
    with DatasetWriter.append(recorded):
        carry_out_marks(recorded)
    assert len(read_marks(recorded)) == 1
    carry_out_marks(recorded)
    said = capsys.readouterr()
    assert "is not done yet, and kept in" in said.err
    assert said.out.strip() == "as marked on the page: 0 episodes relabelled, 1 deleted (kept beside recorded.zarr)"


@pytest.mark.parametrize("wrong", [{"success": "yes"}, {"task": 5}, {"task": " "}, {"task": "x" * 300}, {"uuid": "x"}])
def test_a_mark_without_sense_is_refused(recorded: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(MarkError, match="marked like that"):
        change_mark(recorded, uuids(recorded)[0], wrong)
    assert not marks_file(recorded).exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"delete": 1}}'])
def test_a_damaged_file_of_marks_is_one_line(recorded: Path, text: str) -> None:
    marks_file(recorded).write_text(text)
    if text == "[]":
        with pytest.raises(MarkError, match="remove it"):
            read_marks(recorded)
        return
    with pytest.raises(MarkError, match="remove it"):
        apply_marks(recorded)


# ---- sessions and forces


def test_the_view_tells_where_a_session_is_and_the_greatest_force_of_each_20_ms() -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        rings = FilledByHand(stack, collecting=True)
        view = RigView(rings.rings)
        stack.callback(view.close)
        rings.tick(state=int(State.STOPPED))
        session = CollectSession(SessionOptions(("push", "pull"), episodes=5))
        start = now_ns()
        session.tick(Inputs(start))
        rings.session_is(session)
        view.poll()
        found = view.collecting()
        assert found is not None
        assert (found["stage"], found["task"], found["goal"], found["left_s"]) == ("READY", "push", 5, None)
        assert {"START", "NEXT_TASK"} <= set(view.state()["can"])
        session.tick(Inputs(start, [Command.START]))
        for ms in (1, 2):
            session.tick(Inputs(start + ms * MS))
        assert session.tick(Inputs(start + 3 * MS)) is not None
        rings.session_is(session)
        found = view.collecting()
        assert found is not None
        assert found["stage"] == "RETURNING" or found["stage"] == "READY" or found["stage"] == "COUNTDOWN"

        begin = (now_ns() // (20 * MS)) * 20 * MS
        for k in range(40):
            force = np.zeros(6, np.float32)
            force[2] = 9.0 if k == 13 else 1.0
            at = begin + k * MS
            rings.wrench.publish({"capture_ns": at, "received_ns": at, "value": force})
        rings.touch.publish({"capture_ns": begin, "received_ns": begin, "value": np.eye(4, dtype=np.float32)})
        view.poll()
        felt = view.forces(0)
        assert [values[2] for number, _, values in felt if number == 0] == [9.0, 1.0]
        (touched,) = [values for number, _, values in felt if number == 1]
        np.testing.assert_array_equal(touched, np.eye(4).ravel())


@pytest.fixture(scope="module")
def collecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FilledByHand, str, Path]]:
    path = tmp_path_factory.mktemp("collected") / "out.zarr"
    with DatasetWriter.create(path, SCHEMA, durable=False) as writer:
        for steps, task, success in ((20, "push", True), (30, "push", False), (25, "pull", None)):
            record(writer, steps, task, success=success)
    with page_by_hand(driven=True, collecting=True, dataset=path) as (filled, url, _):
        filled.tick(state=int(State.TELEOP))
        filled.frame(90)
        yield filled, url, path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(
    browser: Browser, collecting: tuple[FilledByHand, str, Path], request: pytest.FixtureRequest
) -> Iterator[Page]:
    width, height = request.param
    found = browser.new_page(viewport={"width": width, "height": height})
    found.set_default_timeout(40_000)
    errors: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.goto(collecting[1])
    yield found
    assert errors == []
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    found.close()


def test_episodes_are_listed_replayed_relabelled_and_deleted_with_undo(
    page: Page, collecting: tuple[FilledByHand, str, Path]
) -> None:
    _, _, path = collecting
    first, _, third = uuids(path)
    rows = page.locator("#list li")
    sync_api.expect(rows).to_have_count(3)
    assert [row.split()[0] for row in rows.locator(".number").all_inner_texts()] == ["3", "2", "1"]
    strip_loaded = "document.querySelector('#list img').naturalWidth"
    rows.first.scroll_into_view_if_needed()
    until(lambda: page.evaluate(strip_loaded) > 100, "the strip is there")

    rows.last.get_by_text("Replay").click()
    drawn = "new Set(document.querySelector('#films canvas').getContext('2d').getImageData(0, 0, 64, 48).data).size"
    until(lambda: page.evaluate(drawn) > 1, "a picture of the film")
    sync_api.expect(page.locator("#curves canvas")).to_have_count(3)
    until(lambda: page.locator("#play").inner_text() == "Play", "it plays to the end")
    assert float(page.locator("#seek").input_value()) == pytest.approx(2.0, abs=0.05)

    rows.first.get_by_text("Delete").click()
    sync_api.expect(page.locator("#count")).to_contain_text("1 of them deleted")
    assert read_marks(path) == {third: Mark(delete=True)}
    rows.first.get_by_text("Keep").click()
    sync_api.expect(page.locator("#count")).not_to_contain_text("deleted")
    rows.last.get_by_title("Failure").click()
    sync_api.expect(rows.last.get_by_title("Failure")).to_have_attribute("aria-pressed", "true")
    rows.last.get_by_label("Task of episode").fill("shove")
    page.keyboard.press("Tab")
    until(lambda: read_marks(path) == {first: Mark("shove", False)}, "the task and the verdict")
    rows.last.get_by_text("Undo").click()
    until(lambda: read_marks(path) == {}, "as it was recorded")
    page.locator("#hint").click()
    sync_api.expect(page.locator("#hinted")).to_contain_text("stand", timeout=40_000)


def test_a_session_is_led_from_the_page_with_cues(page: Page, collecting: tuple[FilledByHand, str, Path]) -> None:
    filled, _, _ = collecting
    session = CollectSession(SessionOptions(("push the block",), episodes=50, episode_s=20))
    told = len(filled.told())
    session.tick(Inputs(now_ns()))
    filled.session_is(session)
    sync_api.expect(page.locator("#stage")).to_have_text("Ready")
    sync_api.expect(page.locator("#task")).to_have_text("push the block")
    page.locator("[data-do=START]").click()
    until(lambda: filled.told()[told:] == [Command.START], "start")
    page.evaluate(
        "() => { window.tones = []; const old = AudioContext.prototype.createOscillator;"
        "AudioContext.prototype.createOscillator = function () { const o = old.call(this); tones.push(o); return o; } }"
    )
    stages: set[str] = set()

    def led() -> bool:
        found = page.evaluate("state.collect.stage")
        stages.add(found)
        session.tick(Inputs(now_ns(), [Command.START] if session.stage.name == "READY" else []))
        filled.session_is(session)
        return found == "EPISODE"

    until(led, "it counts down and records")
    assert "COUNTDOWN" in stages
    until(lambda: page.evaluate("tones.length") >= 3, "a beep for each second")
    until(lambda: page.evaluate("tones.some((o) => o.frequency.value === 1320)"), "and one to begin")
    session.waiting = True  # as in a world that nobody has moved yet
    filled.session_is(session)
    sync_api.expect(page.locator("#stage")).to_have_text("Move to begin")
    sync_api.expect(page.locator("#clock")).to_have_text("")
    session.waiting = False
    filled.session_is(session)
    sync_api.expect(page.locator("#stage")).to_have_text("Recording")
    sync_api.expect(page.locator("[data-do=START]")).to_be_disabled()
    page.locator("[data-do=SUCCESS]").click()
    until(lambda: filled.told()[-1] is Command.SUCCESS, "the verdict")
    page.locator("[data-control=ask]").click()
    sync_api.expect(page.locator("#holder")).to_contain_text("You are in control")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("4")
    until(lambda: filled.told()[-1] is Command.REDO, "by key")


def test_forces_are_drawn(page: Page, collecting: tuple[FilledByHand, str, Path]) -> None:
    filled, _, _ = collecting
    shown = "[...document.querySelectorAll('#forces figcaption')].map((e) => e.innerText)"

    def felt() -> bool:
        now = now_ns()
        filled.wrench.publish(
            {"capture_ns": now, "received_ns": now, "value": np.array([3, 0, 4, 0, 0, 0.5], np.float32)}
        )
        filled.touch.publish({"capture_ns": now, "received_ns": now, "value": np.eye(4, dtype=np.float32)})
        return any("5.0 N, 0.50 N m" in text for text in page.evaluate(shown))

    until(felt, "what is felt")
    for canvas in page.locator("#forces canvas").all():
        canvas.scroll_into_view_if_needed()
        drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        until(lambda canvas=canvas, drawn=drawn: felt() and canvas.evaluate(drawn) > 5, "it is drawn")


def test_without_a_dataset_there_are_no_episodes_and_with_one_a_token_guards_them(tmp_path: Path) -> None:
    with page_by_hand() as (_, url, _):
        assert get(url, "/episodes").status == 404
    with DatasetWriter.create(tmp_path / "out.zarr", SCHEMA, durable=False) as writer:
        record(writer, 5, "push", success=True)
    with page_by_hand(dataset=tmp_path / "out.zarr", token="secret") as (_, url, _):
        assert get(url, "/episodes").status == 401
        assert get(url, "/episodes/0/strip/front").status == 401
