"""`robolearn eval`: what it prints and writes, and the mistakes it names."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from robolearn.cli.main import main
from robolearn.evaluation.report import page, paragraph, table
from robolearn.evaluation.video import write_video
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics
from robolearn_sim import pusht


def _statistics(stream: Stream, low: float, high: float) -> StreamStatistics:
    a, b = np.full(stream.shape, low), np.full(stream.shape, high)
    return StreamStatistics(count=100, min=a, max=b, mean=(a + b) / 2, std=(b - a) / 4, q01=a, q99=b)


def _checkpoint(folder: Path, *, kind: str = "flow", images: bool = False, rate_hz: float = 10) -> Path:
    """A policy for PushT that was never trained: small, fast and bad."""
    torch.manual_seed(0)
    streams = {"state": pusht.STATE, **({"img": pusht.IMAGE} if images else {})}
    spec = PolicySpec(streams, pusht.ACTION, rate_hz=rate_hz, obs_horizon=2, horizon=16, action_horizon=8)
    statistics = {"state": _statistics(pusht.STATE, 0, 512), "action": _statistics(pusht.ACTION, 0, 512)}
    config = PolicyConfig(objective=POLICIES[kind]().objective, trunk=UNet1dConfig(widths=(16, 32)))
    save_policy(Policy(spec, statistics, config), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0000010")


def _eval(folder: Path, out: Path, *more: str, episodes: int = 3, workers: int = 0) -> int:
    words = ["eval", str(folder), "--world", "pusht", "--episodes", str(episodes), "--workers", str(workers)]
    return main([*words, "--out", str(out), *more])


def _video(path: Path) -> tuple[str, int, tuple[int, int]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        height, width, _ = frames[0].shape
        return stream.codec_context.name, len(frames), (height, width)


def test_eval_of_a_run_prints_figures_and_writes_results_plot_and_videos(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, extra = checkpoint.parents[1], tmp_path / "out", tmp_path / "deep" / "result.json"
    assert _eval(run, out, "--steps", "2", "--seed", "100000", "--json", str(extra)) == 0
    said = capsys.readouterr().out
    for word in ("score", "success", "95 % interval", "latency", "p50", "p99", "steps/s"):
        assert word in said

    results = json.loads((out / "results.json").read_text())
    assert json.loads(extra.read_text()) == results
    assert results["world"] == "pusht"
    assert (results["episodes"], results["seed"], results["sampler_steps"]) == (3, 100000, 2)
    assert [r["seed"] for r in results["results"]] == [100000, 100001, 100002]
    assert results["score"] == pytest.approx(np.mean([r["score"] for r in results["results"]]))
    assert results["score_interval"][0] <= results["score"] <= results["score_interval"][1]
    assert results["success_interval"][0] <= results["success_rate"] <= results["success_interval"][1]
    assert 0 < results["latency_ms_p50"] <= results["latency_ms_p99"]
    assert results["steps_per_s"] > 0

    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    by_seed = {r["seed"]: r for r in results["results"]}
    for name in ("best", "median", "worst"):
        film = results["videos"][name]
        codec, frames, (height, width) = _video(out / f"{name}.mp4")
        assert codec == "h264"
        assert frames == film["length"] + 1 + 10  # The start, every step, and the end held for a second.
        assert height % 2 == width % 2 == 0
        assert (out / f"{name}.mp4").stat().st_size < 1_000_000
    assert by_seed[results["videos"]["best"]["seed"]]["score"] == max(r["score"] for r in results["results"])
    assert by_seed[results["videos"]["worst"]["seed"]]["score"] == min(r["score"] for r in results["results"])


def test_eval_gives_the_same_episodes_in_two_processes(checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert _eval(checkpoint, out, "--no-videos", "--steps", "2", "--envs", "2", workers=workers) == 0
        found.append(json.loads((out / "results.json").read_text())["results"])
        assert not list(out.glob("*.mp4"))
    for one, other in zip(*found, strict=True):
        assert one["seed"] == other["seed"]
        assert one["score"] == pytest.approx(other["score"], abs=0.05)  # Rounding differs with the batch.


def test_a_policy_that_observes_images_gets_them(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "policy", images=True)
    assert _eval(folder, tmp_path / "out", "--steps", "1", "--no-videos", episodes=1) == 0


def test_one_diffusion_checkpoint_runs_with_either_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _checkpoint(tmp_path / "policy", kind="diffusion")
    scores = []
    for sampler in ("ddim", "ddpm"):
        words = ["--sampler", sampler, "--steps", "3", "--no-videos"]
        assert _eval(folder, tmp_path / sampler, *words, episodes=1) == 0
        scores.append(json.loads((tmp_path / sampler / "results.json").read_text()))
    assert [s["sampler"] for s in scores] == ["ddim", "ddpm"]
    assert scores[0]["latency_calls"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", "0"], "--episodes 0 is too small"),
        (["--seed", "-1"], "--seed -1 is too small"),
        (["--steps", "0"], "--steps 0 is too small"),
        (["--world", "pushd"], "valid: pusht, lift"),
        (["--world", "lift"], "the policy needs (5,)"),
        (["--sampler", "ddpm"], "diffusion"),
        (["--episode", "3"], "--episodes"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    checkpoint: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(checkpoint, tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_in_the_way_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert _eval(checkpoint, tmp_path / "file") == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_videos_of_any_size_keep_their_content(tmp_path: Path) -> None:
    frames = [np.full((35, 51, 3), value, np.uint8) for value in (20, 120, 220)]
    write_video(tmp_path / "x.mp4", frames, rate_hz=7.5)
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].average_rate == 7.5
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert means == pytest.approx([20, 120, 220], abs=4)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", [], rate_hz=10)


def test_reports_escape_what_they_show_and_load_nothing() -> None:
    text = page("a <b> & c", "lead", paragraph("<script>x</script>"), table([["1 < 2"]], ["<th>"]))
    assert "<script>" not in text
    assert "a &lt;b&gt; &amp; c" in text
    assert "1 &lt; 2" in text
    assert "http" not in text
