"""LeRobot's own SmolVLA, small and with random weights: what it makes of observations. In LeRobot's environment.

    smolvla.py FOLDER

Writes FOLDER/policy, as LeRobot saves it; FOLDER/backbone, the configuration and tokens of its language model; and
FOLDER/seen.safetensors and seen.json, inputs and outputs, for tests/test_vla_lerobot.py. What is shown goes through
LeRobot's own preparation of pictures, texts and statistics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

TEXTS = ("lift the red cube", "push", "put it on the blue one")
CAMERAS = {"front": (40, 56), "wrist": (64, 64), "far": (180, 150)}
"""Height and width, px: enlarged, as it is, and made smaller by more than two to 64."""
COMPONENTS, STEPS, LAYERS, SIDE = 6, 8, 4, 64
SPECIAL = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def save_backbone(folder: Path) -> None:
    """A SmolVLM of few parameters, with what LeRobot asks of its processor."""
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS + 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 1}
    text |= {"rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": False}
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"patch_size": 8, "image_size": SIDE}
    shape = AutoConfig.for_model(
        "smolvlm", text_config=text, vision_config=vision, scale_factor=2, tie_word_embeddings=False
    )
    shape.save_pretrained(folder)
    words = sorted({word for said in TEXTS for word in said.split()})
    vocabulary = {word: i for i, word in enumerate(("<unk>", "<pad>", "\n", *SPECIAL.values(), *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokeniser = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=SPECIAL
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), tokeniser, SmolVLMVideoProcessor()).save_pretrained(folder)


def config(folder: Path) -> SmolVLAConfig:
    """The published policy's, but for its sizes."""
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (COMPONENTS,))}
    for name, size in CAMERAS.items():
        inputs[f"observation.images.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, *size))
    return SmolVLAConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (COMPONENTS,))},
        vlm_model_name=str(folder),
        num_vlm_layers=LAYERS,
        resize_imgs_with_padding=(SIDE, SIDE),
        chunk_size=STEPS,
        n_action_steps=STEPS,
        pad_language_to="max_length",
        load_vlm_weights=False,
        push_to_hub=False,
        device="cpu",
    )


def main() -> None:
    folder = Path(sys.argv[1])
    save_backbone(folder / "backbone")
    policy = SmolVLAPolicy(config(folder / "backbone")).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.1 if parameter.ndim == 1 else 1.5 / parameter[0].numel() ** 0.5))
    policy.save_pretrained(folder / "policy")

    batch = len(TEXTS)
    pictures = {
        name: torch.randint(0, 256, (batch, *size, 3), generator=random, dtype=torch.uint8)
        for name, size in CAMERAS.items()
    }
    seen: dict[str, Tensor] = {"state": 50 * torch.randn(batch, COMPONENTS, generator=random)}
    for name in ("state", "action"):
        seen[f"{name}_mean"] = 20 * torch.randn(COMPONENTS, generator=random)
        seen[f"{name}_std"] = 10 + 40 * torch.rand(COMPONENTS, generator=random)
    width = policy.config.max_action_dim
    seen["noise"] = torch.randn(batch, STEPS, width, generator=random)
    seen["action"] = 50 * torch.randn(batch, STEPS, COMPONENTS, generator=random)
    seen["time"] = torch.rand(batch, generator=random)

    statistics = {
        key: {part: seen[f"{name}_{part}"] for part in ("mean", "std")}
        for key, name in (("observation.state", "state"), ("action", "action"))
    }
    prepare, finish = make_smolvla_pre_post_processors(policy.config, dataset_stats=statistics)
    shown = {f"observation.images.{name}": value.permute(0, 3, 1, 2) / 255 for name, value in pictures.items()}
    ready = prepare({"observation.state": seen["state"], "action": seen["action"], "task": list(TEXTS), **shown})
    with torch.no_grad():
        images, real = policy.prepare_images(ready)
        tokens = ready["observation.language.tokens"], ready["observation.language.attention_mask"]
        state, action = policy.prepare_state(ready), policy.prepare_action(ready)
        model = policy.model
        prefix, valid, blocks = model.embed_prefix(images, real, *tokens, state=state)
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(valid, blocks),
            position_ids=torch.cumsum(valid, dim=1) - 1,
            inputs_embeds=[prefix, None],
            use_cache=True,
        )
        found = {
            "prefix": prefix,
            "valid": valid,
            "keys": torch.stack([layer.keys for layer in cache.layers]),
            "values": torch.stack([layer.values for layer in cache.layers]),
            "velocity": model.denoise_step(valid, cache, seen["noise"], seen["time"]),
            "chunk": finish(policy.predict_action_chunk(ready, noise=seen["noise"])),
            "losses": model.forward(images, real, *tokens, state, action, seen["noise"], seen["time"]),
        }
    seen |= found | {f"picture_{name}": value for name, value in pictures.items()}
    save_file({name: value.contiguous() for name, value in seen.items()}, folder / "seen.safetensors")
    (folder / "seen.json").write_text(json.dumps({"texts": TEXTS, "cameras": list(CAMERAS)}))


if __name__ == "__main__":
    main()
