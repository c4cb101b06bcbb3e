"""Instructions on their way to a policy: a world's own words, a person's in their place, and what is too long."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dashboard_bench import page_by_hand, until
from hearing_policy import SPEC, WORLD, HearingPolicy, at_most_ten
from policy_makers import ACTION, STATE, STATISTICS, TP
from vla_makers import TEXT, encoder, make_vla
from websockets.sync.client import connect
from wire_bench import ask, raw, remote, served
from wire_fakes import CountingPolicy

from robolearn.cli.main import main
from robolearn.policies.checkpoint import load_instruction_limit, save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla.config import SmallConfig, VlaConfig, VlaError
from robolearn.policies.vla.length import WORDS, InstructionLimit, tokens_of
from robolearn_data.dataset import Dataset
from robolearn_data.instructed import Instructible
from robolearn_data.schema import SchemaError, Stream, UserError, read_text
from robolearn_deploy.delayed import Delays, rollout_delayed
from robolearn_deploy.instructions import InstructionCheck
from robolearn_deploy.log import Measurements
from robolearn_deploy.runtime import Running, RunOptions, run
from robolearn_deploy.schedulers import find
from robolearn_deploy.wire.client import PeerError, RemoteCheck, RemotePolicyError
from robolearn_deploy.wire.codec import pack
from robolearn_sim.worlds import make_world, world_spec

pytest.importorskip("mujoco", reason="needs robolearn[sim]")

SWITCHED = f"{WORLD}/switched"


def runs_of(texts: list[str]) -> list[str]:
    """Without repetitions one after the other."""
    return [text for text, _ in itertools.groupby(texts)]


class Speaker:
    """Says ``text`` when the world has spoken twice, and then takes it back."""

    def __init__(self, text: str = "") -> None:
        self.text, self.messages, self.said = text, [], 0

    def started(self, running: Running) -> None:
        self.running = running

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        driven = sum(measured.ticks_in.values())
        if self.text and not self.said and driven > 50:
            self.running.instruct(self.text)
            self.said = driven

    def message(self, text: str) -> None:
        self.messages.append(text)


def run_switched(tmp_path: Path, watcher: Speaker, **options: Any) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """A run of one episode, 80 steps, in which the world says another thing at step 40. What was recorded, without
    repetitions; what the policy was told, likewise; every request."""
    heard, out = tmp_path / "heard", tmp_path / "run.zarr"
    world = functools.partial(make_world, SWITCHED, max_steps=80)
    report = run(
        world,
        world_spec(SWITCHED, max_steps=80),
        functools.partial(HearingPolicy, heard),
        SPEC,
        RunOptions(seconds=60.0, episodes=1, seed=100_000, out=out, **options),
        watcher,
    )
    assert report.failure == ""
    data = Dataset.open(out)
    recorded = [read_text(value) for value in data.read("instruction")]
    assert len(recorded) == 80
    requests = [json.loads(line) for line in heard.read_text().splitlines()]
    by_time = dict(zip(np.asarray(data.times("instruction")).tolist(), recorded, strict=True))
    for request in requests:  # the words that a policy hears are those of the observation that it sees
        assert by_time.get(request["capture_ns"], request["text"]) == request["text"]
    return runs_of(recorded), [text for text in runs_of([r["text"] for r in requests]) if text], requests


def test_a_worlds_own_words_reach_the_policy_and_the_recording_also_where_they_change(tmp_path: Path) -> None:
    watcher = Speaker()
    recorded, heard, _ = run_switched(tmp_path, watcher)
    world = make_world(SWITCHED)
    world.reset(100_000)
    assert recorded[0] == world.said  # type: ignore[attr-defined]
    assert len(recorded) == 2
    assert heard == recorded
    assert [m for m in watcher.messages if m.startswith("the world says")] == [f"the world says: {t}" for t in recorded]


def test_a_person_who_speaks_in_mid_episode_is_heard_in_place_of_the_world(tmp_path: Path) -> None:
    recorded, heard, _ = run_switched(tmp_path, Speaker("lift the blue cube"))
    assert recorded[-1] == "lift the blue cube"
    assert len(recorded) == 3
    assert heard == recorded


def test_an_instruction_at_the_start_wins_over_the_world(tmp_path: Path) -> None:
    recorded, heard, _ = run_switched(tmp_path, Speaker(), instruction="go to the red cube")
    assert recorded == heard == ["go to the red cube"]


def test_an_instruction_too_long_for_the_policy_is_refused_before_the_start_and_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the policy takes 10"):
        run_switched(tmp_path, Speaker(), instruction="go to the red cube", check_instruction=at_most_ten)
    assert not (tmp_path / "run.zarr").exists()

    class Refused(Speaker):
        def started(self, running: Running) -> None:
            with pytest.raises(UserError, match="the policy takes 10"):
                running.instruct("go to the red cube")
            with pytest.raises(SchemaError, match="takes texts of 256 bytes"):
                running.instruct("x" * 300)

    recorded, _, _ = run_switched(tmp_path, Refused(), check_instruction=at_most_ten)
    assert len(recorded) == 2


@pytest.mark.parametrize("delay", [0, 3])
def test_in_virtual_time_a_policy_hears_what_the_world_says_at_the_step_that_it_sees(delay: int) -> None:
    """Its chunk repeats the joints it saw, so that the world stands still and the switch comes when it is due."""
    told: list[str] = []

    class Listening(Policy):
        def encode(self, observation: Any) -> Any:
            told.extend(read_text(row.numpy()) for row in observation["instruction"][:, -1])
            return super().encode(observation)

    torch.manual_seed(0)
    backbone = SmallConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, text="words")
    trunk = VlaConfig(backbone=backbone, width=32, mlp=48, max_text=16)
    statistics = {name: replace(STATISTICS["state"], **_ones(6)) for name in ("state", "action")}
    policy = Listening(SPEC, statistics, replace(POLICIES["vla"](), trunk=trunk, horizon=8, action_horizon=4)).eval()
    make = functools.partial(make_world, SWITCHED, max_steps=60)
    how = {"worlds": 1, "scheduler": find("naive"), "delays": Delays.fixed(delay), "steps": 1}
    (episode,) = rollout_delayed(policy, make, [100_000], **how)  # pyright: ignore[reportArgumentType]
    assert episode.length == 60
    world: Any = make()
    world.reset(100_000)
    assert len(runs_of(told)) == 2
    assert told[0] == world.said
    assert told.count(told[0]) == 10  # observations of steps 0, 4, ..., 36: at step 40 the world has switched


def _ones(size: int) -> dict[str, np.ndarray]:
    one = np.ones(size)
    return {"min": -one, "max": one, "mean": 0 * one, "std": one, "q01": -one, "q99": one}


def test_the_table_with_instructions_does_what_it_is_told() -> None:
    world = make_world(WORLD)
    assert isinstance(world, Instructible)
    world.reset(0)
    assert read_text(world.instruct("lift the blue cube")["instruction"]) == "lift the blue cube"
    with pytest.raises(UserError, match="not understood"):
        world.instruct("sing")


# ---- how long an instruction may be


@pytest.mark.parametrize("text", ["bytes", "words"])
@pytest.mark.parametrize("state", ["token", "text"])
def test_the_limit_of_a_checkpoint_is_exactly_what_its_policy_can_read(tmp_path: Path, text: Any, state: Any) -> None:
    backbone = SmallConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, image_size=32, text=text)
    policy = make_vla(backbone=backbone, max_text=40, state=state, obs_horizon=2)
    save_policy(policy, tmp_path / "c")
    limit = load_instruction_limit(tmp_path / "c")
    assert limit is not None
    refused = 0
    for count in range(60):
        said = "ä " * count
        try:
            encoder(policy).check_instructions({said})
        except VlaError:
            refused += 1
            with pytest.raises(VlaError, match=rf"has \d+ {text}, the policy takes \d+: say it shorter"):
                limit(said)
        else:
            limit(said)
    assert 0 < refused < 60


def test_the_limit_of_a_pretrained_backbone_counts_with_its_own_tokeniser(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs robolearn[vla]")
    words = {word: number for number, word in enumerate(["[UNK]", "lift", "the", "red", "cube"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    limit = InstructionLimit(4, tokeniser=tmp_path / "tokenizer.json")
    limit("lift the red cube")
    with pytest.raises(VlaError, match=r"has 5 tokens, the policy takes 4.*--policy.trunk.max-text 5"):
        limit("lift the red red cube")


def test_a_policy_that_reads_nothing_has_no_limit(tmp_path: Path) -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, 1, TP, 8)
    save_policy(Policy(spec, STATISTICS, POLICIES["vla"]()), tmp_path / "c")
    assert load_instruction_limit(tmp_path / "c") is None


def test_words_are_told_apart_whatever_their_case_and_bytes_by_it() -> None:
    assert tokens_of("words", "Lift the CUBE\n") == tokens_of("words", "lift  the cube")
    assert len(set(tokens_of("words", "lift push put reach"))) == 4
    assert max(tokens_of("words", "lift push put reach")) < WORDS
    assert tokens_of("bytes", "aB") == [97, 66]


# ---- refused where it is given


def test_a_page_refuses_what_the_policy_cannot_be_told_and_passes_on_the_rest() -> None:
    with (
        page_by_hand(check_instruction=at_most_ten) as (filled, url, _),
        connect(
            url.replace("http", "ws") + "socket",
            origin=url.rstrip("/"),  # type: ignore[arg-type]
        ) as viewer,
    ):

        def answer() -> dict[str, Any]:
            while True:
                message = viewer.recv(timeout=20)
                if isinstance(message, str) and (found := json.loads(message))["kind"] in ("refused", "noted"):
                    return found

        viewer.send(json.dumps({"instruct": "one two three four"}))
        assert "has 18 letters, the policy takes 10" in answer()["why"]
        assert filled.notes.count == 0
        viewer.send(json.dumps({"instruct": "one  two"}))
        until(lambda: filled.notes.count == 1, "the instruction")
        ((_, note),) = filled.notes.since(0)
        assert read_text(note["instruction"]) == "one two"


def test_a_server_refuses_what_its_policy_cannot_be_told_and_answers_the_next_request() -> None:
    policy = CountingPolicy()
    with served(lambda: policy, check_instruction=at_most_ten) as server, remote(server) as client:
        client.check_instruction("one two")
        with pytest.raises(RemotePolicyError, match="has 13 letters, the policy takes 10"):
            client.check_instruction("one two three")
        with pytest.raises(RemotePolicyError, match="takes texts of 16 bytes"):
            client.check_instruction("x" * 17)
        with pytest.raises(PeerError, match="has 11 letters, the policy takes 10"):
            ask(client, 123_456)  # "task 123456"
        ask(client, 1)
        assert [request.sequence for request in policy.seen] == [1]
        check = RemoteCheck(client.url)
        check("one two")
        with pytest.raises(UserError, match="the policy takes 10"):
            check("one two three")


def test_a_client_of_openpi_is_told_in_a_line_that_its_prompt_is_too_long() -> None:
    with served(check_instruction=at_most_ten) as server, raw(server) as connection:
        connection.send(pack({"state": np.zeros((2, 3), np.float32), "prompt": "one two three"}))
        assert "the policy takes 10" in str(connection.recv(20))


def test_the_command_line_refuses_what_the_policy_cannot_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(make_vla(max_text=12), tmp_path / "c")
    monkeypatch.setattr("robolearn.cli.deploy_world.run_in_world", lambda *_: pytest.fail("something was started"))
    words = [str(tmp_path / "c"), "--world", WORLD, "--instruction", "lift the red cube"]
    assert main(["deploy", *words]) == 2
    assert "has 17 bytes, the policy takes 11" in " ".join(capsys.readouterr().err.split())


def test_a_check_of_streams_and_policy_names_the_first_that_is_too_small() -> None:
    check = InstructionCheck({"instruction": TEXT, "state": Stream((1,))}, at_most_ten)
    check("one two")
    with pytest.raises(UserError, match="the policy takes 10"):
        check("one two three")
    with contextlib.suppress(UserError):
        check("x" * 65)
        pytest.fail("it fits no stream")


def test_eval_tells_the_world_too_and_refuses_what_neither_world_nor_policy_can_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = SmallConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, text="words")
    trunk = VlaConfig(backbone=backbone, width=32, mlp=48, max_text=6)
    statistics = {name: replace(STATISTICS["state"], **_ones(6)) for name in ("state", "action")}
    config = replace(POLICIES["vla"](), trunk=trunk, horizon=8, action_horizon=4)
    save_policy(Policy(SPEC, statistics, config), tmp_path / "c")
    words = ["eval", str(tmp_path / "c"), "--world", WORLD, "--episodes", "1", "--workers", "0", "--no-videos"]
    words += ["--steps", "1", "--instruction"]
    assert main([*words, "go to the red cube"]) == 0
    assert main([*words, "sing"]) == 2
    assert "'sing' is not understood; say for example" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "go to the red cube and the blue cube"]) == 2
    assert "has 9 words, the policy takes 6" in " ".join(capsys.readouterr().err.split())
