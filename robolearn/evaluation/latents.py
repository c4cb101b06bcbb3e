"""What a latent-action model has learned: does z say what changed, does it say more, does it say what was done?

- explained: 1 - squared error of the predicted later picture / that of the earlier picture as the prediction. 1 is
  perfect, 0 no better than to expect no change.
- leakage: what z tells that is not the change. A forward model that is shown the mean picture, or another pair's, can
  only rebuild the later one if z carries it.
- codes: how much of a codebook is used; of a gaussian latent, how many of its numbers vary.
- probes: how well a linear map of z gives what was recorded beside the pictures (actions, changes of states), which
  was not learned from; beside the same map of what an untrained model gives, and of the difference of the pictures.
- With language the forward model is told z and what the instruction does not say ("unsaid"): which of them explains
  the change is seen where one of them is another pair's, and both are probed.

Shape letters: M pairs, Z numbers of a latent action, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robolearn.policies.latent.language import STREAM
from robolearn.policies.latent.model import LatentActionModel
from robolearn.training.instructions import Instructions, instruction_stream, instruction_views
from robolearn_data.dataset import Dataset
from robolearn_data.reading import View, WindowReader
from robolearn_data.windows import windows

COARSE = 432
"""The most numbers of a picture that linear maps read and tell: 12 x 12 x 3 of a picture in colour."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of ridge regression, against the variance of standardised data; each map is shown with the one that suits it best."""

_PIECE = 128
_ACTIVE = 0.01


@dataclass(frozen=True)
class Piece:
    """Pairs of one dataset."""

    observation: Mapping[str, Tensor]
    """The model's camera -> (M, 2, H, W, C) uint8, and with language "instruction" -> (M, bytes) uint8."""
    episode: np.ndarray
    """(M,)."""
    recorded: Mapping[str, np.ndarray]
    """Name -> (M, n): actions between the two pictures, and changes of states and actions from one to the other."""


def pieces(
    model: LatentActionModel, parts: Sequence[tuple[Dataset, Sequence[int]]], most: int, seed: int = 0
) -> Iterator[Piece]:
    """At most ``most`` pairs of the chosen episodes of each dataset, in random order.

    Streams that not all datasets have are left out of ``recorded``.
    """
    ahead = model.config.ahead
    names = [
        name
        for name, stream in parts[0][0].schema.of_kind("state", "action").items()
        if all(name in dataset.schema.streams for dataset, _ in parts) and len(stream.shape) == 1
    ]
    for number, (dataset, episodes) in enumerate(parts):
        place = windows(dataset.episode_ends, ahead + 1, 0, 0, episodes=episodes)
        rate_hz = dataset.schema.rate_hz
        views = {"frames": View(model.name, 2, ahead=1, rate_hz=rate_hz / ahead)}
        views |= {name: View(name, ahead + 1, ahead=ahead) for name in names}
        instructions = None
        if model.unsaid is not None:
            views |= instruction_views(dataset.schema)
            instructions = Instructions(dataset, instruction_stream(dataset.schema))
        reader = WindowReader(dataset, views, images="disk")
        order = np.random.default_rng([seed, number]).permutation(len(place))[:most]
        for first in range(0, len(order), _PIECE):
            episode, step = place.locate(order[first : first + _PIECE])
            values, missing = reader.read(episode, step)
            whole = ~np.logical_or.reduce([missing[name].any(1) for name in ("frames", *names)])
            observation = {model.name: torch.from_numpy(values["frames"][whole])}
            if instructions is not None:
                said = instructions.read(episode, step, 1, values.get(STREAM))
                observation[STREAM] = torch.from_numpy(said[whole, 0])
            yield Piece(
                observation,
                1_000_000 * number + episode[whole],
                _recorded(dataset, {name: values[name][whole] for name in names}),
            )


def _recorded(dataset: Dataset, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, value in values.items():
        stream = dataset.schema.streams[name]
        if stream.kind == "action":
            found[name] = value[:, :-1].mean(1)
        change = value[:, -1] - value[:, 0]
        for component in stream.wraps:
            change[:, component] = (change[:, component] + np.pi) % (2 * np.pi) - np.pi
        found[f"{name}, change"] = change
    return found


@torch.no_grad()
def measure(
    model: LatentActionModel, parts: Sequence[tuple[Dataset, Sequence[int]]], *, most: int = 2_000
) -> dict[str, Any]:
    """Figures of ``model`` on pairs of the chosen episodes of some datasets: JSON-ready, see the head of this file."""
    untrained = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in untrained.inverse.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
    mean = _mean_picture(model, parts, most)
    errors: dict[str, float] = {}
    columns: dict[str, list[np.ndarray]] = {}
    recorded: dict[str, list[np.ndarray]] = {}
    divergence = []

    def keep(name: str, value: Tensor) -> None:
        columns.setdefault(name, []).append(value.flatten(1).float().cpu().numpy())

    for piece in pieces(model, parts, most):
        if len(piece.episode) < 2:
            continue
        seen = {name: value.to(model.change.device) for name, value in piece.observation.items()}
        before, after = model.seen(seen[model.name])
        x, told = model.inverse(before, after), model.told(seen)
        z, unsaid = told.tensor_split([model.bottleneck.size], dim=1)
        half = len(z) // 2
        other = before.roll(half, 0)
        blank = mean.expand_as(before)
        for name, guess in {
            "copy": before,
            "z": model.predict(before, told),
            "other z": model.predict(before, torch.cat([z.roll(half, 0), unsaid], dim=1)),
            "other unsaid": model.predict(before, torch.cat([z, unsaid.roll(half, 0)], dim=1)),
            "mean": blank,
            "z alone": model.predict(blank, told),
            "other": other,
            "z, other": model.predict(other, told),
        }.items():
            errors[name] = errors.get(name, 0.0) + float((guess - after).square().double().sum())
        keep("z", z)
        if model.unsaid is not None:
            keep("unsaid", unsaid[:, : model.unsaid.bottleneck.size])
        keep("untrained", untrained.inverse(before, after))
        keep("picture", _coarse(before))
        keep("difference", _coarse(after - before))
        columns.setdefault("code", []).append(model.bottleneck.codes(x).cpu().numpy())
        columns.setdefault("episode", []).append(piece.episode)
        if model.config.bottleneck == "gaussian":
            divergence.append(model.bottleneck.divergence(x).cpu().numpy())  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in piece.recorded.items():
            recorded.setdefault(name, []).append(value)

    data = {name: np.concatenate(found) for name, found in columns.items()}
    episode, z = data["episode"], data["z"]
    sources = [name for name in ("z", "unsaid", "untrained", "difference") if name in data]
    explained = {"z": _part(errors, "z", "copy"), "z of another pair": _part(errors, "other z", "copy")}
    if model.unsaid is not None:
        explained["unsaid of another pair"] = _part(errors, "other unsaid", "copy")
    return {
        "pairs": len(z),
        "episodes": len(np.unique(episode)),
        "explained": explained,
        "leakage": {
            "mean picture and z": _part(errors, "z alone", "mean"),
            "another picture and z": _part(errors, "z, other", "other"),
            "picture from z, linear": _mean_r2(linear_r2(z, data["picture"], episode)),
            "change from z, linear": _mean_r2(linear_r2(z, data["difference"], episode)),
        },
        "codes": code_figures(data["code"], model.bottleneck.codebook_size)
        if model.bottleneck.codebook_size
        else {
            "numbers": z.shape[1],
            "varying": int((z.var(0) > _ACTIVE).sum()),
            "divergence_nats": np.concatenate(divergence).mean(0).tolist(),
        },
        "probes": {
            name: {source: linear_r2(data[source], np.concatenate(values), episode).tolist() for source in sources}
            for name, values in recorded.items()
        },
    }


def code_figures(codes: np.ndarray, size: int) -> dict[str, Any]:
    """Of codes (M, N), numbers below ``size``: how many are used, how many are dead (used by none of these), and the
    perplexity exp(-sum p ln p), which is the number of codes where all are used alike."""
    count = np.bincount(codes.ravel(), minlength=size)
    p = count[count > 0] / count.sum()
    return {
        "size": size,
        "used": len(p),
        "dead": size - len(p),
        "perplexity": float(np.exp(-(p * np.log(p)).sum())),
        "most_used": np.sort(count)[::-1][:256].tolist(),
    }


def linear_r2(x: np.ndarray, y: np.ndarray, episode: np.ndarray, folds: int = 5) -> np.ndarray:
    """R^2 (n,) of each column of y (M, n) by ridge regression on x (M, D), cross-validated: an episode is in one fold.

    With fewer than two episodes the folds are of pairs. NaN for a column that does not vary. Of the penalties, the one
    that is best for all columns together.
    """
    groups = np.unique(episode, return_inverse=True)[1]
    if groups.max() == 0:
        groups = np.arange(len(x))
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % min(folds, groups.max() + 1)
    x, y = x.astype(np.float64), y.astype(np.float64)
    variance = np.square(y - y.mean(0)).sum(0)
    lives = variance > 1e-12 * np.maximum(1, np.square(y).sum(0))
    residual = np.zeros((len(PENALTIES), y.shape[1]))
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        shift, scale = x[train].mean(0), x[train].std(0)
        a = (x[train] - shift) / np.where(scale > 1e-9, scale, 1)
        b = (x[test] - shift) / np.where(scale > 1e-9, scale, 1)
        target = y[train].mean(0)
        values, vectors = np.linalg.eigh(a.T @ a / len(a))
        right = vectors.T @ (a.T @ (y[train] - target)) / len(a)
        for i, penalty in enumerate(PENALTIES):
            guess = b @ (vectors @ (right / (values[:, None].clip(0) + penalty))) + target
            residual[i] += np.square(guess - y[test]).sum(0)
    if not lives.any():
        return np.full(y.shape[1], np.nan)
    r2 = 1 - residual / np.where(lives, variance, np.nan)
    return r2[np.argmax(np.nanmean(r2[:, lives], axis=1))]


def _coarse(x: Tensor) -> Tensor:
    """(M, C, H, W) -> (M, C, h, w) of at most ``COARSE`` numbers."""
    side = max(int((COARSE / x.shape[1]) ** 0.5), 1)
    return F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))


def _mean_picture(model: LatentActionModel, parts: Sequence[tuple[Dataset, Sequence[int]]], most: int) -> Tensor:
    """(1, C, H, W) of the earlier pictures."""
    total, count = torch.zeros(()), 0
    for piece in pieces(model, parts, most):
        before, _ = model.seen(piece.observation[model.name].to(model.change.device))
        total = total + before.double().sum(0, keepdim=True)
        count += len(before)
    return (total / max(count, 1)).float()


def _part(errors: Mapping[str, float], guess: str, nothing: str) -> float:
    return 1 - errors[guess] / max(errors[nothing], 1e-12)


def _mean_r2(values: np.ndarray) -> float:
    """Of all columns that vary, never below -1, so that a few flat ones cannot hide the others."""
    return float(np.nanmean(values.clip(-1)))
