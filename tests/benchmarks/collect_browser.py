"""A whole session in the browser: human demonstrations of PushT, done by pointer, recorded, trained on, evaluated.

    python tests/benchmarks/collect_browser.py [--steps N]

Five episodes of the published human demonstrations (from their starts) are performed in the page of a session, in real
time, by moves of the pointer to where the human pointed at each step. Rows of collect_browser.json: for each episode,
how far the recorded actions are from the human's at the same step, how many came a step late, and the score beside that
of the human's own actions; then the score of a policy trained on the five for ``--steps``, from the starts it has seen
and from others. Needs ../shared/datasets, playwright and a chromium. Takes a few minutes; writes a picture too.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from results import write_results

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from world_hands import Held

SOURCE = ROOT.parent / "shared/datasets/pusht_cchi_v7_replay.zarr"
FIRST, EPISODES = 91, 5
"""Consecutive demonstrations, so that one session has them all: those with the fewest steps."""
OTHERS, FIRST_OTHER = 20, 100_000
PICTURE = ROOT / "deploy/assets/collect_world.png"


def collect(folder: Path) -> list[dict[str, Any]]:
    """One row for each episode."""
    from dashboard_bench import chromium
    from playwright.sync_api import sync_playwright
    from pusht_by_pointer import Agreement, human_actions, open_page, press, score_of
    from world_hands import pusht_session

    from robolearn_data.dataset import Dataset
    from robolearn_deploy.collect_session import Stage
    from robolearn_deploy.dashboard.access import PageOptions

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        how = {"episodes": EPISODES, "episode_s": 60.0, "seed": FIRST, "page": PageOptions(port=0)}
        with pusht_session(folder, reset_s=0.0, **how) as (held, _):
            open_page(page, held)
            press(page, "START")
            for episode in range(FIRST, FIRST + EPISODES):
                _perform(page, held, human_actions(SOURCE, episode), PICTURE if episode == FIRST else None)
            held.until_stage(Stage.OVER)
            held.join()
            print(held.report)
        browser.close()
    rows, dataset = [], Dataset.open(folder / "out.zarr")
    for i, episode in enumerate(range(FIRST, FIRST + EPISODES)):
        human, info = human_actions(SOURCE, episode), dataset.episode_info(i)
        assert info["seed"] == episode
        found = asdict(Agreement.of(dataset.episode(i)["action"], human))
        score = {"score": info["score"], "human_score": score_of(episode, human)}
        rows.append({"stage": "recorded", "demonstration": episode, **found, **score})
        print(rows[-1])
    return rows


def _perform(page: Page, held: Held, actions: np.ndarray, picture: Path | None) -> None:
    from pusht_by_pointer import perform, press

    from robolearn_deploy.collect_session import Stage

    saved = held.saved
    perform(page, held, actions, picture=picture)
    if held.stage is Stage.EPISODE:
        press(page, "FAILURE")
    held.until(lambda: held.saved > saved, "the episode is saved")


def train(folder: Path, steps: int) -> list[dict[str, Any]]:
    """A row for the starts that were demonstrated, and one for others."""
    from robolearn.cli.main import main as robolearn
    from robolearn.evaluation import evaluate
    from robolearn.policies.checkpoint import load_policy, resolve_checkpoint
    from robolearn_sim.worlds import make_world

    run = folder / "run"
    words = ["train", str(folder / "out.zarr"), "--preset", "pusht-state", "--steps", str(steps), "--out", str(run)]
    if robolearn([*words, "--batch-size", "64"]):
        raise SystemExit("training failed")
    load = functools.partial(load_policy, resolve_checkpoint(run), "cpu")
    rows = []
    for starts, seeds in (
        ("demonstrated", range(FIRST, FIRST + EPISODES)),
        ("others", range(FIRST_OTHER, FIRST_OTHER + OTHERS)),
    ):
        found = evaluate(load, functools.partial(make_world, "pusht"), seeds, workers=os.cpu_count() or 1).to_json()
        row = {"stage": "trained", "starts": starts, "train_steps": steps, "episodes": len(seeds)}
        rows.append({**row, "score": found["score"], "success_rate": found["success_rate"]})
        print(rows[-1])
    return rows


def main(words: list[str]) -> None:
    steps = int(words[1]) if words[:1] == ["--steps"] else 1000
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        rows = collect(Path(name))
        rows += train(Path(name), steps)
    print(write_results("collect_browser", rows, load_before=round(load, 1)))


if __name__ == "__main__":
    main(sys.argv[1:])
