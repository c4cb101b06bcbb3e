"""Where a pretrained backbone comes from: huggingface.co, a folder, a checkpoint of ours, or tiny random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robolearn.policies.vla.config import TINY, PretrainedConfig, VlaError
from robolearn.policies.vla.pretrained import FAMILIES, PretrainedBackbone
from robolearn.policies.vla.text import OwnTokeniser, PretrainedTokeniser, Tokeniser

TEXTS, WEIGHTS = ["*.json", "*.txt", "*.model", "*.jinja"], "*.safetensors"
_ELSE = "a folder with the model, or --backbone small, which trains from nothing"


def load_backbone(
    config: PretrainedConfig, max_text: int, assets: Path | None, *, weights: bool = True
) -> tuple[PretrainedBackbone, Tokeniser]:
    """A backbone and its tokeniser.

    Args:
        assets: folder of a checkpoint of ours, where what the model looks like and its tokens are taken from.
        weights: load the published ones; otherwise they are random, to be replaced.

    Raises:
        VlaError: transformers is not installed, or the model cannot be had; the message says why and what else there
            is.
    """
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError as error:
        raise VlaError(
            "pretrained backbones need transformers: `pip install robolearn[vla]`, or take --backbone small"
        ) from error
    dtype = getattr(torch, config.dtype)
    tiny = config.name.startswith(TINY)
    folder = None if assets is None else assets / "backbone"
    own: dict[str, Any] = {"trust_remote_code": False}  # no code that comes with a model is run
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", **own}
    try:
        source = Path() if tiny else folder or _fetched(config, TEXTS)
        shape = tiny_config(config.name.removeprefix(TINY)) if tiny else AutoConfig.from_pretrained(source, **own)
        if shape.model_type not in FAMILIES:
            raise VlaError(
                f"{config.name} is a {shape.model_type!r}; backbones are: {', '.join(FAMILIES)}; or give {_ELSE}"
            )
        if tiny or not weights:
            model = AutoModel.from_config(shape, **how)
        else:
            whole = folder or _fetched(config, [*TEXTS, WEIGHTS])
            model = AutoModel.from_pretrained(whole, use_safetensors=True, **how)
        tokeniser = OwnTokeniser("bytes", max_text) if tiny else AutoTokenizer.from_pretrained(source, **own)
    except VlaError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise VlaError(_reason(config, error, from_checkpoint=folder is not None)) from error
    if not isinstance(tokeniser, OwnTokeniser):
        tokeniser = PretrainedTokeniser(tokeniser, max_text)
    return PretrainedBackbone(model, config), tokeniser


def _fetched(config: PretrainedConfig, files: list[str]) -> Path:
    """The model's folder: a person's own, or of what huggingface.co has; without a network what is here of it already.

    transformers alone would ask for each file again and again, for half a minute each, before it says that there is no
    network.
    """
    from huggingface_hub import snapshot_download

    if Path(config.name).is_dir():
        return Path(config.name)
    return Path(snapshot_download(config.name, revision=config.revision or None, allow_patterns=files))


def _reason(config: PretrainedConfig, error: BaseException, *, from_checkpoint: bool) -> str:
    """What to tell a person. transformers wraps the hub's errors, so all that led to one are looked at."""
    name = config.name + (f" at revision {config.revision}" if config.revision else "")
    if from_checkpoint:
        return f"the checkpoint's folder backbone cannot be read ({_line(error)}); copy the checkpoint anew"
    found = {type(e).__name__ for e in _causes(error)}
    if "GatedRepoError" in found:
        what = f"{name} is gated: accept its terms at https://huggingface.co/{config.name}, then `hf auth login`"
    elif "RevisionNotFoundError" in found:
        what = f"{config.name} has no revision {config.revision!r}; leave it out for the newest"
    elif "RepositoryNotFoundError" in found:
        what = f"there is no model {name} at huggingface.co, or it is private (`hf auth login`)"
    elif Path(config.name).is_dir():
        what = f"the folder {name} does not hold a whole model ({_line(error)})"
    elif found & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError"}:
        what = f"{name} is not on this machine, and huggingface.co cannot be reached: fetch it where there is a network"
    else:
        what = f"{name} cannot be loaded ({_line(error)})"
    return f"{what}; or give {_ELSE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def tiny_config(family: str) -> Any:
    """A model of a few thousand parameters, whose vocabulary is bytes.

    Raises:
        VlaError: no such family.
    """
    from transformers import AutoConfig

    text: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 260,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 512,
    }
    vision: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    qwen: dict[str, Any] = {"depth": 2, "hidden_size": 24, "num_heads": 2, "patch_size": 8, "intermediate_size": 32}
    qwen |= {"out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
    match family:
        case "smolvlm":
            return AutoConfig.for_model(
                family, text_config={**text, "model_type": "llama"}, vision_config=vision, scale_factor=2
            )
        case "paligemma":
            return AutoConfig.for_model(
                family,
                text_config={**text, "model_type": "gemma"},
                vision_config={**vision, "model_type": "siglip_vision_model", "projection_dim": 32},
                projection_dim=32,
                hidden_size=32,
            )
        case "qwen2_5_vl":
            return AutoConfig.for_model(
                family,
                text_config={**text, **rope},
                vision_config={**qwen, "window_size": 32, "fullatt_block_indexes": [1]},
            )
        case "qwen3_vl":
            return AutoConfig.for_model(
                family,
                text_config={**text, **rope},
                vision_config={**qwen, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            )
    raise VlaError(f"no family {family!r} of backbones; valid: {', '.join(TINY + name for name in FAMILIES)}")
