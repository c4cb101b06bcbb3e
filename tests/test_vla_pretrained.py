"""Pretrained backbones: where they come from, what is said when they cannot be had, and the published SmolVLA."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from policy_makers import ACTION, STATISTICS, TP
from safetensors.torch import load_file, save_file
from torch import Tensor
from vla_makers import STREAMS, TEXTS, make_vla, seen

from robolearn.policies.checkpoint import load_policy, save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla import smolvla
from robolearn.policies.vla.config import PretrainedConfig, VlaConfig, VlaError
from robolearn.policies.vla.encoder import PrefixEncoder
from robolearn.policies.vla.loading import load_backbone, tiny_config
from robolearn.policies.vla.text import PretrainedTokeniser

SPEC = PolicySpec(STREAMS, ACTION, 10.0, 1, TP, 8)
PUBLISHED = json.loads((Path(__file__).parent / "smolvla_base_tensors.json").read_text())


def published_shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for row in PUBLISHED["rows"]:
        first, last, step = row.get("layers", (0, 0, 1))
        found |= {row["name"].format(layer): tuple(row["shape"]) for layer in range(first, last + 1, step)}
    return found


def save_tokeniser(folder: Path) -> None:
    """One whose words are those of the tests' instructions."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {"<unk>": 0, "<pad>": 1, "\n": 2} | {word: i for i, word in enumerate(words, start=3)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it lies at huggingface.co: configuration, weights, tokeniser."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("hub") / "model"
    torch.manual_seed(5)
    AutoModelForImageTextToText.from_config(tiny_config("smolvlm")).save_pretrained(folder)
    save_tokeniser(folder)
    return folder


def of_folder(folder: Path, **changes: Any) -> Policy:
    trunk = VlaConfig(backbone=PretrainedConfig(name=str(folder)), width=32, mlp=48, max_text=16)
    return Policy(SPEC, STATISTICS, replace(POLICIES["vla"](), trunk=replace(trunk, **changes)))


def sampled(policy: Policy) -> Tensor:
    with torch.inference_mode():
        noise = policy.noise(len(TEXTS), torch.Generator().manual_seed(4))
        return policy.eval().sample(policy.encode(seen()), noise=noise)


def test_a_pretrained_model_keeps_its_weights_and_its_tokens(model_folder: Path) -> None:
    backbone, tokenise = load_backbone(PretrainedConfig(name=str(model_folder), layers=2), 8, None)
    weights = {k.removeprefix("model."): v for k, v in load_file(model_folder / "model.safetensors").items()}
    own = backbone.model.state_dict()
    assert not any("layers.2." in name and "text_model" in name for name in own)
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    assert isinstance(tokenise, PretrainedTokeniser)
    ids, valid = tokenise(["push", "lift the red cube"])
    assert valid.sum(1).tolist() == [1, 4]
    assert tokenise.tokeniser.convert_ids_to_tokens(ids[1, :4].tolist()) == ["lift", "the", "red", "cube"]
    with pytest.raises(VlaError, match="has 9 tokens, the policy takes 8"):
        tokenise(["put it on the blue one put it on"])


@pytest.mark.parametrize("learn", ["expert", "lora"])
def test_a_checkpoint_stands_alone_when_the_model_it_began_with_is_gone(
    model_folder: Path, tmp_path: Path, learn: str
) -> None:
    policy = of_folder(model_folder, learn=learn)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_policy(policy, tmp_path / "checkpoint")
    moved = tmp_path / "elsewhere"
    (tmp_path / "checkpoint").rename(moved)
    description = (moved / "policy.yaml").read_text()
    loaded = load_policy(moved)
    assert torch.equal(sampled(loaded), sampled(policy))
    save_policy(loaded, tmp_path / "again")
    assert torch.equal(sampled(load_policy(tmp_path / "again")), sampled(policy))
    assert "__reduce__" not in description
    (moved / "backbone" / "config.json").write_text("{}")
    with pytest.raises(VlaError, match="the checkpoint's folder backbone cannot be read"):
        load_policy(moved)


def test_training_starts_from_a_checkpoint_of_another_robot(tmp_path: Path) -> None:
    """Other components of state and action, in the same room; adapters are put on top."""
    from robolearn_data.schema import Stream

    first = make_vla(seed=3)
    save_policy(first, tmp_path / "first")
    trunk = replace(first.config.trunk, start_from=str(tmp_path / "first"), learn="lora")  # pyright: ignore
    action = Stream((5,), kind="action")
    spec = PolicySpec({"img": STREAMS["img"], "state": Stream((7,)), "instruction": STREAMS["instruction"]}, action,
                      10.0, 1, TP, 8)  # fmt: skip
    sizes = {"state": 7, "action": 5}
    statistics = {name: _statistics(size) for name, size in sizes.items()}
    second = Policy(spec, statistics, replace(first.config, trunk=trunk))
    weights = {name.replace(".base_layer.", "."): value for name, value in second.state_dict().items()}
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    with pytest.raises(VlaError, match=r"a policy of other parts.*trunk.*is \(.*there and \(.*here"):
        Policy(spec, statistics, replace(first.config, trunk=replace(trunk, width=48)))
    with pytest.raises(VlaError, match=r"start_from .*nowhere: model.safetensors cannot be read"):
        Policy(spec, statistics, replace(first.config, trunk=replace(trunk, start_from=str(tmp_path / "nowhere"))))


def _statistics(size: int) -> Any:
    from policy_makers import statistics

    return statistics([0.0] * size, [1.0] * size)


def test_the_recorded_names_are_those_of_the_published_checkpoint() -> None:
    shapes = published_shapes()
    assert len(shapes) == PUBLISHED["tensors"] == 500
    assert sum(map(math.prod, shapes.values())) == PUBLISHED["parameters"] == 450_046_176


def test_every_published_tensor_of_smolvla_has_its_place_and_shape(tmp_path: Path) -> None:
    """The policy of the preset vla-smolvla, at its full size, without memory for its weights."""
    from transformers import AutoConfig

    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    text |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "model_type": "llama"}
    text |= {"rms_norm_eps": 1e-5}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {"patch_size": 16, "image_size": 512}
    shape = AutoConfig.for_model("smolvlm", text_config=text, vision_config=vision, scale_factor=4)
    shape.save_pretrained(tmp_path / "backbone")
    save_tokeniser(tmp_path / "backbone")
    config = smolvla.policy_config()
    with torch.device("meta"):
        policy = Policy(replace(SPEC, horizon=50), STATISTICS, config, assets=tmp_path)
    own = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    mapped = {smolvla.our_name(name): shape for name, shape in published_shapes().items()}
    assert mapped.pop(None) == (49280, 960)
    assert mapped == own
    with pytest.raises(KeyError):
        smolvla.our_name("model.vlm_with_expert.lm_expert.embed_tokens.weight")


def smolvla_velocity(w: dict[str, Tensor], prefix: Any, x: Tensor, time: Tensor) -> Tensor:
    """SmolVLA's velocity from tensors under their published names, by its paper and published configuration: time 1 is
    noise; even layers attend to prefix and actions before, odd ones to the prefix' keys and values projected anew."""
    e, heads, kv_heads, count = 8, 4, 2, x.shape[1]
    width = w["model.action_in_proj.weight"].shape[0]
    period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = 2 * math.pi * time.double()[:, None] / period
    embedding = torch.cat([angle.sin(), angle.cos()], -1).to(x)[:, None].expand(-1, count, -1)
    h = F.linear(x, w["model.action_in_proj.weight"], w["model.action_in_proj.bias"])
    h = torch.cat([h, embedding], -1)
    h = F.silu(F.linear(h, w["model.action_time_mlp_in.weight"], w["model.action_time_mlp_in.bias"]))
    h = F.linear(h, w["model.action_time_mlp_out.weight"], w["model.action_time_mlp_out.bias"])

    def norm(y: Tensor, name: str) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{expert}{name}.weight"]

    def turn(y: Tensor, position: Tensor) -> Tensor:
        angle = position[:, None, :, None] / 10_000.0 ** (torch.arange(e // 2).to(y) / (e // 2))
        a, b = y[..., : e // 2], y[..., e // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, e)).transpose(1, 2)

    expert = "model.vlm_with_expert.lm_expert."
    own = torch.arange(count).to(x).expand(len(x), -1)
    position = prefix.valid.sum(1, keepdim=True) + own
    seen_prefix = prefix.valid[:, None].expand(-1, count, -1)
    for i, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        layer = f"layers.{i}."
        y = norm(h, f"{layer}input_layernorm")
        q, k_w, v_w, o = (w[f"{expert}{layer}self_attn.{p}_proj.weight"] for p in "qkvo")
        if i % 2:
            q = turn(split(y @ q.T), own)
            k, v = (split(part.transpose(1, 2).flatten(2) @ p.T) for part, p in ((keys, k_w), (values, v_w)))
            allowed = seen_prefix
        else:
            q = turn(split(y @ q.T), position)
            k = torch.cat([keys, turn(split(y @ k_w.T), position)], 2)
            v = torch.cat([values, split(y @ v_w.T)], 2)
            causal = torch.ones(count, count, dtype=torch.bool).tril().expand(len(x), -1, -1)
            allowed = torch.cat([seen_prefix, causal], -1)
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        score = (q @ k.mT / e**0.5).masked_fill(~allowed[:, None], -torch.inf)
        h = h + (score.softmax(-1) @ v).transpose(1, 2).flatten(2) @ o.T
        y = norm(h, f"{layer}post_attention_layernorm")
        gate, up, down = (w[f"{expert}{layer}mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        h = h + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    return F.linear(norm(h, "norm"), w["model.action_out_proj.weight"], w["model.action_out_proj.bias"])


def test_weights_under_published_names_give_the_velocity_that_smolvla_defines(
    model_folder: Path, tmp_path: Path
) -> None:
    """A small SmolVLA with random weights, written as LeRobot writes one and read by start_from; in float64, with the
    other sign, since its time runs the other way."""
    generator = torch.Generator().manual_seed(8)
    sizes = {"960": 32, "720": 24, "1440": 48, "2048": 40, "320": 16, "32": 32}
    published: dict[str, Tensor] = {}
    for name, shape in published_shapes().items():
        if ".vlm." not in name and not any(f"layers.{i}." in name for i in range(3, 16)):
            published[name] = 0.3 * torch.randn([sizes[str(n)] for n in shape], generator=generator)
    for name, value in load_file(model_folder / "model.safetensors").items():
        published[f"model.vlm_with_expert.vlm.{name}"] = value
    published["model.vlm_with_expert.vlm.lm_head.weight"] = torch.zeros(3, 32)
    # Heads of the small backbone: 4 x 8 queries, where SmolVLA's are as wide as its backbone.
    for name in list(published):
        if "lm_expert" in name and name.endswith(("q_proj.weight", "o_proj.weight")):
            shape = (32, 24) if "q_proj" in name else (24, 32)
            published[name] = 0.3 * torch.randn(shape, generator=generator)
    save_file(published, tmp_path / "model.safetensors")
    settings = {"type": "smolvla", "attention_mode": "cross_attn", "resize_imgs_with_padding": [32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(settings))

    config = smolvla.policy_config()
    assert isinstance(config.trunk, VlaConfig)
    assert isinstance(config.trunk.backbone, PretrainedConfig)
    backbone = replace(config.trunk.backbone, name=str(model_folder), layers=3, embedding_scale=32**0.5)
    trunk = replace(config.trunk, backbone=backbone, width=24, mlp=40, start_from=str(tmp_path))
    policy = Policy(SPEC, STATISTICS, replace(config, trunk=trunk, horizon=TP)).double().eval()
    observation = seen()
    assert isinstance(policy.encoder, PrefixEncoder)
    x = torch.randn(len(TEXTS), *policy.chunk_shape, generator=generator).double()
    t = torch.rand(len(TEXTS), 1, generator=generator)
    with torch.no_grad():
        got = policy.network(policy.encode(observation))(x, t)
        doubles = {name: value.double() for name, value in published.items()}
        want = smolvla_velocity(doubles, policy.encoder.prefix(observation), x, 1 - t[:, 0])
    assert got.shape == (len(TEXTS), TP, 32)
    torch.testing.assert_close(got, -want, rtol=1e-6, atol=1e-6)

    for text, said in (
        (json.dumps({**settings, "attention_mode": "self_attn"}), "config.json: attention_mode is 'self_attn'"),
        (json.dumps({**settings, "resize_imgs_with_padding": [64, 64]}), r"resize_imgs_with_padding is \[64, 64\]"),
        ("{", "config.json: Expecting"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(VlaError, match=said):
            Policy(SPEC, STATISTICS, replace(config, trunk=trunk, horizon=TP))


class _Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does: with the files of "served", and for what one may not have. Of a gated model it
    lists the files."""

    folder: Path
    SHA = "0" * 40

    def do_HEAD(self) -> None:
        is_api = self.path.startswith("/api/models/")
        _, _, name, *more = self.path.removeprefix("/api/models").split("/")
        code = {"gated": "GatedRepo", "model": "RevisionNotFound", "served": ""}.get(name, "RepoNotFound")
        headers, body, status = {"X-Error-Code": code}, b"", 200
        if is_api and name in ("gated", "served"):
            about = {"id": f"org/{name}", "sha": self.SHA}
            body = json.dumps(self._tree() if "/tree/" in self.path else about).encode()
        elif name == "served":
            body = (self.folder / more[-1]).read_bytes()
            headers = {"X-Repo-Commit": self.SHA, "ETag": f'"{more[-1]}"'}
        else:
            status = {"GatedRepo": 403, "RevisionNotFound": 404, "RepoNotFound": 401}[code]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _tree(self) -> list[dict[str, Any]]:
        files = sorted(self.folder.iterdir())
        return [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.SHA} for file in files]

    do_GET = do_HEAD

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(model_folder: Path) -> Iterator[str]:
    _Hub.folder = model_folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import sys
from robolearn.policies.vla.config import PretrainedConfig, VlaError
from robolearn.policies.vla.loading import load_backbone
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        load_backbone(PretrainedConfig(name=name, revision=revision), 8, None)
        print("loaded")
    except VlaError as error:
        print(error)
"""


def asked(environment: dict[str, str], *names: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout.splitlines()


def test_gated_missing_and_wrongly_revised_models_are_told_apart_with_alternatives(hub: str, tmp_path: Path) -> None:
    """By a server that answers as huggingface.co does."""
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    gated, revised, missing = asked(environment, "org/gated", "org/model@v9", "org/none")
    assert "org/gated is gated: accept its terms at https://huggingface.co/org/gated, then `hf auth login`" in gated
    assert "org/model has no revision 'v9'; leave it out for the newest" in revised
    assert "there is no model org/none at huggingface.co" in missing
    for line in (gated, revised, missing):
        assert "--backbone small" in line


def test_without_a_network_a_model_is_taken_from_this_machine_or_said_not_to_be_here(hub: str, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    assert asked({**home, "HF_ENDPOINT": hub}, "org/served") == ["loaded"]
    for nowhere in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):  # where nobody listens
        here, missing = asked({**home, **nowhere}, "org/served", "org/model")
        assert here == "loaded"
        assert "org/model is not on this machine, and huggingface.co cannot be reached" in missing


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VlaError, match=r"`pip install robolearn\[vla\]`, or take --backbone small"):
        load_backbone(PretrainedConfig(name="tiny-smolvlm"), 8, None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(VlaError, match=r"lora needs peft; `pip install robolearn\[vla\]`"):
        make_vla(learn="lora")


def test_what_is_no_backbone_is_refused_with_the_valid_ones(tmp_path: Path, model_folder: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("bert").save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    for name in ("weightless", "pickled"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text((model_folder / "config.json").read_text())
    torch.save(load_file(model_folder / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    (tmp_path / "code" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    for name, message in (
        ("bert", r"is a 'bert'; backbones are: smolvlm, paligemma, qwen2_5_vl, qwen3_vl"),
        ("empty", r"the folder .*empty does not hold a whole model"),
        ("weightless", r"the folder .*weightless does not hold a whole model"),
        ("pickled", r"the folder .*pickled does not hold a whole model"),
        ("code", r"the folder .*code does not hold a whole model"),
    ):
        with pytest.raises(VlaError, match=message) as caught:
            load_backbone(PretrainedConfig(name=str(tmp_path / name)), 8, None)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(VlaError, match="no family 'gpt' of backbones; valid: tiny-smolvlm"):
        load_backbone(PretrainedConfig(name="tiny-gpt"), 8, None)
    with pytest.raises(VlaError, match="layers 9: tiny-smolvlm has 3"):
        load_backbone(PretrainedConfig(name="tiny-smolvlm", layers=9), 8, None)
    for name, message in (("tiny-paligemma", "pictures have 32 pixels a side"), ("tiny-qwen3_vl", "a multiple of 16")):
        with pytest.raises(VlaError, match=message):
            load_backbone(PretrainedConfig(name=name, image_size=100), 8, None)
