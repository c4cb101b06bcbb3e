"""LeRobot's own SmolVLA, and ours with the weights that it saved: the same inputs, compared from pictures to actions.

LeRobot runs in an environment of its own (`make test-lerobot`), which ROBOLEARN_LEROBOT_PYTHON names.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_makers import statistics
from safetensors.torch import load_file
from torch import Tensor

from robolearn.policies.contracts import Batch
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla import smolvla
from robolearn.policies.vla.config import PretrainedConfig, VlaConfig
from robolearn.policies.vla.prefix import Prefix
from robolearn_data.schema import Stream

PYTHON = os.environ.get("ROBOLEARN_LEROBOT_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="make test-lerobot: needs an environment with LeRobot")
TEXT = Stream((64,), "uint8", "text")
LAYERS = 4
CLOSE = 5e-5
"""Largest difference of two results in float32, as a part of their spread: 1.1e-5 was measured."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What LeRobot saved of a policy, and what that made of what it was shown."""
    made = tmp_path_factory.mktemp("lerobot")
    assert PYTHON is not None
    command = [PYTHON, str(Path(__file__).parent / "lerobot" / "smolvla.py"), str(made)]
    environment = {**os.environ, "HF_HOME": str(made / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "seen.safetensors")


@pytest.fixture(scope="module")
def ours(folder: Path, theirs: dict[str, Tensor]) -> Policy:
    """The preset vla-smolvla with the sizes of the small one."""
    config = smolvla.policy_config()
    assert isinstance(config.trunk, VlaConfig)
    assert isinstance(config.trunk.backbone, PretrainedConfig)
    width = theirs["prefix"].shape[-1]
    backbone = replace(
        config.trunk.backbone, name=str(folder / "backbone"), layers=LAYERS, embedding_scale=math.sqrt(width)
    )
    trunk = replace(config.trunk, backbone=backbone, width=48, mlp=256, start_from=str(folder / "policy"))
    _, horizon, size = theirs["action"].shape
    cameras = json.loads((folder / "seen.json").read_text())["cameras"]
    streams = {name: Stream(tuple(theirs[f"picture_{name}"].shape[1:]), "uint8", "image") for name in cameras}
    streams |= {"state": Stream((size,)), "instruction": TEXT}
    spec = PolicySpec(streams, Stream((size,), kind="action"), 30.0, 1, horizon, horizon)
    known = {
        name: statistics(
            (theirs[f"{name}_mean"] - theirs[f"{name}_std"]).tolist(),
            (theirs[f"{name}_mean"] + theirs[f"{name}_std"]).tolist(),
        )
        for name in ("state", "action")
    }
    return Policy(spec, known, replace(config, trunk=trunk, horizon=horizon)).eval()


@pytest.fixture(scope="module")
def observation(folder: Path, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    about = json.loads((folder / "seen.json").read_text())
    seen = {name: theirs[f"picture_{name}"].unsqueeze(1) for name in about["cameras"]}
    text = torch.tensor(TEXT.check("instruction", [[text] for text in about["texts"]], batch=(len(about["texts"]), 1)))
    return {**seen, "state": theirs["state"].unsqueeze(1), "instruction": text}


@pytest.fixture(scope="module")
def seen_prefix(ours: Policy, observation: dict[str, Tensor]) -> tuple[Tensor, Prefix]:
    """(tokens that go into the language layers (B, N, W), what comes out)."""
    encoder: Any = ours.encoder
    taken: list[Tensor] = []
    inner = encoder.backbone.keys_values

    def keys_values(tokens: Tensor, *rest: Any) -> Any:
        taken.append(tokens)
        return inner(tokens, *rest)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(encoder.backbone, "keys_values", keys_values)
        prefix = encoder.prefix(observation)
    return taken[0], prefix


def assert_close(name: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    difference = float((got - want).abs().max() / want.std())
    print(f"{name}: differs by {difference:.1e} of its spread at most")
    assert difference < CLOSE


def test_tokens_of_pictures_words_and_state_are_lerobots(
    seen_prefix: tuple[Tensor, Prefix], theirs: dict[str, Tensor]
) -> None:
    """Pictures that are enlarged, left as they are and made smaller; words through either tokeniser."""
    tokens, prefix = seen_prefix
    assert torch.equal(prefix.valid, theirs["valid"])
    assert_close("prefix", tokens[prefix.valid], theirs["prefix"][prefix.valid])


def test_keys_and_values_of_every_layer_are_lerobots(
    seen_prefix: tuple[Tensor, Prefix], theirs: dict[str, Tensor]
) -> None:
    prefix = seen_prefix[1]
    assert len(prefix.keys) == len(theirs["keys"]) == LAYERS
    for kind, ours in (("keys", prefix.keys), ("values", prefix.values)):
        for layer, (got, want) in enumerate(zip(ours, theirs[kind], strict=True)):
            real = prefix.valid.unsqueeze(1).expand(got.shape[:3])
            assert_close(f"{kind} of layer {layer}", got[real], want[real])


def test_the_velocity_of_a_denoising_step_is_lerobots_with_the_other_sign(
    ours: Policy, theirs: dict[str, Tensor], observation: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        got = ours.network(ours.encode(observation))(theirs["noise"], 1 - theirs["time"].unsqueeze(1))
    assert_close("velocity", got, -theirs["velocity"])


def test_a_chunk_in_physical_units_is_lerobots(
    ours: Policy, theirs: dict[str, Tensor], observation: dict[str, Tensor]
) -> None:
    """Ten steps from the same noise, padding of the actions included; statistics as LeRobot applies them."""
    with torch.no_grad():
        got = ours.sample(ours.encode(observation), noise=theirs["noise"])
    assert_close("chunk", got / theirs["action_std"], theirs["chunk"] / theirs["action_std"])


def test_the_loss_that_training_goes_on_from_is_lerobots(
    ours: Policy, theirs: dict[str, Tensor], observation: dict[str, Tensor]
) -> None:
    """Over all components, padding among them, as when the published weights were made."""
    batch = Batch(observation, theirs["action"], torch.zeros(theirs["action"].shape[:2], dtype=torch.bool))
    with torch.no_grad():
        terms = ours.loss(batch, draws={"noise": theirs["noise"], "time": 1 - theirs["time"].unsqueeze(1)}).terms
    assert_close("loss", terms["flow"], theirs["losses"].mean((1, 2)))
