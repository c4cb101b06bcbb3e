"""The page of an episode is one file that shows everything and runs nothing; a replay follows its record."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zlib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.curves import Curve, chart
from robolearn_data.dataset import Dataset
from robolearn_data.plot import episode_page
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

EXACT = {"camera": "lossless"}
HOSTILE = "<script>alert('x')</script>\"&"
SCHEMA = Schema(
    10.0,
    {
        "camera": Stream((20, 30, 3), "uint8", "image"),
        "depth": Stream((20, 30, 1), "float32", "image"),
        "state": Stream((2,), names=("<img src=x>", "y"), unit="<b>m</b>"),
        "force": Stream((3,), rate_hz=100.0, unit="N"),
        "action": Stream((2,), kind="action"),
    },
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    with DatasetWriter.create(tmp_path / "<script>", SCHEMA, compression=EXACT, durable=False) as writer:
        ticks = 10**9 + np.arange(40) * 100_000_000
        fine = np.arange(10**9, ticks[-1], 10_000_000)
        writer.add_samples("force", rng.normal(size=(len(fine), 3)).astype("f4"), fine)
        writer.extend(
            {
                "camera": np.full((40, 20, 30, 3), (255, 0, 0), np.uint8),
                "depth": rng.uniform(0, 3, (40, 20, 30, 1)).astype("f4"),
                "state": rng.normal(size=(40, 2)).astype("f4"),
                "action": np.zeros((40, 2), "f4"),
            },
            time_ns=ticks,
            capture_ns={"camera": ticks - 35_000_000},
            valid={"camera": np.arange(40) % 10 != 9, "state": np.arange(40) < 38},
        )
        writer.save_episode({"task": HOSTILE, HOSTILE: {"a": HOSTILE}})
    return Dataset.open(tmp_path / "<script>")


def test_the_page_holds_every_stream_and_no_text_of_the_dataset_as_markup(dataset: Dataset) -> None:
    page = episode_page(dataset, -1)
    for word in ("camera", "depth", "force", "&lt;img src=x&gt;", "4 of 40 steps are holes", "35", "4.00 s"):
        assert word in page
    for evil in ("<script", "<b>", "<img src=x"):
        assert evil not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched
    assert page.count("<polyline") == 2 + 3 + 2 + 2  # state, force, action, age of pictures and force
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(svg)


def test_thumbnails_are_the_recorded_pictures(dataset: Dataset) -> None:
    picture = re.search(r"data:image/png;base64,([^\"]+)", episode_page(dataset, 0))
    assert picture
    png = b64decode(picture[1])
    at = png.index(b"IDAT")
    pixels = zlib.decompress(png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")])
    assert pixels == (b"\0" + b"\xff\0\0" * 30) * 20


def test_a_spike_of_one_sample_among_many_is_drawn() -> None:
    values = np.zeros(50_000)
    values[31_234] = 7.0
    page = chart([Curve("force", np.arange(50_000) / 1000, values)], 50.0, unit="N")
    heights = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]*)"', page)[0].split()]
    assert len(heights) < 4000
    assert min(heights) < 20 < 100 < max(heights)


def test_native_streams_are_drawn_at_their_samples_and_action_stages_side_by_side(tmp_path: Path) -> None:
    action = Stream((2,), kind="action", names=("dx", "dy"), unit="m")
    streams = {"action": action, "action_sent": replace(action, kind="info")}
    wrench = Stream((1,), rate_hz=100.0, unit="N")
    with DatasetWriter.create(tmp_path / "d", Schema(10.0, {**streams, "wrench": wrench}), durable=False) as writer:
        ticks = 10**9 + np.arange(20) * 100_000_000
        felt = np.delete(10**9 - 5_000_000 + np.arange(190) * 10_000_000, slice(50, 60))
        writer.add_samples("wrench", np.zeros((180, 1), "f4"), felt, felt + 2_000_000)
        writer.extend({name: np.zeros((20, 2), "f4") for name in streams}, time_ns=ticks)
        writer.save_episode()
    page = episode_page(Dataset.open(tmp_path / "d"), 0)
    assert "180 samples at a nominal 100 Hz" in page
    assert "1 gap between samples" in page
    assert page.count('class="gap"') == 1
    for word in ("what went to the device", "<h3>dx</h3>", "<h3>dy</h3>", "from capture to the recorder", "ms</text>"):
        assert word in page
    lines = [line.split() for line in re.findall(r'points="([^"]*)"', page)]
    assert [len(line) for line in lines] == [20, 20, 20, 20, 180, 180, 20]  # two stages twice, wrench, latency, age


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_all_of_the_page(dataset: Dataset, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium here")
    measure = """<script>onload = () => { document.title = JSON.stringify({
        wide: document.body.scrollWidth - document.body.clientWidth,
        broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
        flat: [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height < 20).length,
        small: Math.min(...[...document.querySelectorAll("svg text")]
                .map(t => t.getBoundingClientRect()).map(r => Math.max(r.width, r.height))),
        pictures: document.images.length, charts: document.querySelectorAll("svg").length}) }</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(episode_page(dataset, 0).replace("</body>", measure))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--window-size={width},900", "--dump-dom", page.as_uri()]
    done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"chromium does not start here: {done.stderr[-200:]}")
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stdout[:500]
    seen = json.loads(html.unescape(title[1]))
    assert (seen["wide"], seen["broken"], seen["flat"]) == (0, 0, 0)
    assert (seen["pictures"], seen["charts"]) == (24, 5)
    assert seen["small"] > 8


def test_plot_writes_the_page_and_names_mistakes(dataset: Dataset, tmp_path: Path, capsys) -> None:
    out = tmp_path / "page.html"
    assert main(["data", "plot", str(dataset.path), "--episode", "0", "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    capsys.readouterr()
    for words in (["--episode", "5"], ["--out", str(tmp_path)]):
        assert main(["data", "plot", str(dataset.path), *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_replay_from_its_seed_follows_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robolearn_sim.worlds import make_world

    world = make_world("pusht")
    rows = []
    observation = world.reset(7)
    for i in range(30):
        action = np.array([256 + 100 * np.sin(i / 5), 300], np.float32)
        rows.append({**observation, "action": action})
        observation = world.step(action).observation
    with DatasetWriter.create(tmp_path / "d", world.spec.schema, durable=False) as writer:
        for seed in (7, 8):
            writer.extend({name: np.stack([row[name] for row in rows]) for name in rows[0]})
            writer.save_episode({"seed": seed, "world": "pusht"})
    video = tmp_path / "v.mp4"
    words = ["data", "replay", str(tmp_path / "d"), "--world", "pusht", "--fast"]
    assert main([*words, "--video", str(video)]) == 0
    shown = capsys.readouterr().out
    assert "from its seed 7" in shown
    assert "state: all 5 components follow the record, bit for bit" in shown
    assert "departs" not in shown
    assert video.stat().st_size > 1000
    assert main([*words, "--episode", "1"]) == 0
    assert "departs from step 0 on" in capsys.readouterr().out
    assert main(["data", "replay", str(tmp_path / "d"), "--world", "moon"]) == 2
