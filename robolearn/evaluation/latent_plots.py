"""The figure of a latent-action model. The caller saves it: ``figure.savefig(path)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robolearn.evaluation.latents import pieces
from robolearn.evaluation.plots import BLUE, GREEN, GREY, ORANGE
from robolearn.policies.latent.model import LatentActionModel
from robolearn_data.dataset import Dataset

_SHOWN = 4


def latent_figure(
    model: LatentActionModel, figures: Mapping[str, Any], parts: Sequence[tuple[Dataset, Sequence[int]]]
) -> Figure:
    """What ``measure`` found, and, where pixels are predicted, a few pictures with what the model makes of them."""
    pixels = model.features is None and model.image.shape[-1] == 3
    figure = Figure(figsize=(12, 3.3 + (5.2 if pixels else 0)), dpi=110, layout="constrained")
    parts_of_figure: Any = figure.subfigures(2, 1, height_ratios=(3.3, 5.2)) if pixels else (figure, None)
    top, bottom = parts_of_figure
    change, codes, probes = top.subplots(1, 3, width_ratios=(1.1, 1, 1.4))
    explained = figures["explained"]
    shown = {
        "later picture from z": explained["z"],
        **{f"... from another {name.split()[0]}": explained[name] for name in explained if name != "z"},
        "leak: mean picture, z": figures["leakage"]["mean picture and z"],
        "leak: other picture, z": figures["leakage"]["another picture and z"],
        "leak: picture from z": figures["leakage"]["picture from z, linear"],
    }
    colors = [GREEN if name.startswith("later") else GREY for name in shown]
    change.barh(list(shown), [max(value, -1) for value in shown.values()], color=colors)
    change.invert_yaxis()
    change.axvline(0, color="black", linewidth=0.8)
    change.set(title="Part explained", xlim=(-1, 1))
    _codes(codes, figures["codes"])
    _probes(probes, figures["probes"])
    for axes in (change, codes, probes):
        axes.spines[["top", "right"]].set_visible(False)
    if bottom is not None:
        _pictures(bottom.subplots(4, 2 * _SHOWN, squeeze=False), model, parts)
    return figure


def _codes(axes: Axes, codes: Mapping[str, Any]) -> None:
    if "size" in codes:
        axes.bar(range(len(codes["most_used"])), codes["most_used"], color=BLUE, width=1.0)
        axes.set(title=f"Codes: {codes['used']} of {codes['size']}, perplexity {codes['perplexity']:.1f}")
        axes.set(xlabel="code, the most used first", ylabel="times used")
    else:
        axes.bar(range(codes["numbers"]), codes["divergence_nats"], color=BLUE)
        axes.set(title=f"{codes['varying']} of {codes['numbers']} numbers vary", xlabel="number of z")
        axes.set(ylabel="divergence, nats")


def _probes(axes: Axes, probes: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    names = list(probes)
    colors = {"z": GREEN, "unsaid": ORANGE, "untrained": GREY, "difference": BLUE}
    sources = [source for source in colors if names and source in probes[names[0]]]
    apart = 0.81 / max(len(sources), 1)
    for i, source in enumerate(sources):
        values = [max(float(np.nanmean(probes[name][source])), -0.2) for name in names]
        place = np.arange(len(names)) + apart * (i - (len(sources) - 1) / 2)
        axes.bar(place, values, apart - 0.02, color=colors[source], label=source)
    axes.set(title="Linear probes", ylabel="R², mean of the components", ylim=(-0.2, 1))
    axes.set_xticks(range(len(names)), names)
    axes.axhline(0, color="black", linewidth=0.8)
    if names:
        axes.legend(frameon=False, fontsize=8)


@torch.no_grad()
def _pictures(grid: np.ndarray, model: LatentActionModel, parts: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
    """Earlier, later and predicted picture, and the predicted change, of the pairs in which most happens."""
    piece = next(pieces(model, parts, 128))
    seen = {name: value.to(model.change.device) for name, value in piece.observation.items()}
    before, after = model.seen(seen[model.name])
    most = (after - before).square().flatten(1).mean(1).argsort(descending=True)[: 2 * _SHOWN]
    guess = model.predict(before, model.told(seen))[most]
    before, after = before[most], after[most]
    rows = {"earlier": before, "later": after, "predicted": guess, "change": 2 * (guess - before)}
    for row, (name, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures):
            axes: Axes = grid[row, column]
            axes.imshow(((picture.permute(1, 2, 0).cpu().numpy() + 1) / 2).clip(0, 1))
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name)
