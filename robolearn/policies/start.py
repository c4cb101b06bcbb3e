"""Training that starts from a policy that is there: its encoder and trunk, for other data or another action."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robolearn.policies.checkpoint import CheckpointError, load_spec, load_statistics, resolve_checkpoint
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.statistics import StreamStatistics

_PARTS = ("encoder.", "goal_encoder.", "condition.", "trunk.", "objective.")


def started_statistics(
    spec: PolicySpec, values: Mapping[str, StreamStatistics], start: Path
) -> dict[str, StreamStatistics]:
    """``values`` with those of the observations as the policy in ``start`` had them, since its encoder knows no others.

    Raises:
        SpecError: that policy observes something else.
        CheckpointError: there is no policy.
    """
    theirs = load_spec(start)
    ours = ({n: s.shape for n, s in spec.observation.items()}, dict(spec.components), spec.obs_horizon)
    others = ({n: s.shape for n, s in theirs.observation.items()}, dict(theirs.components), theirs.obs_horizon)
    if ours != others:
        raise SpecError(
            f"--start-from {start}: that policy observes {_observed(theirs)}, this one {_observed(spec)}; give the "
            "same --observe and --policy.obs-horizon"
        )
    known = load_statistics(start)
    return {**values, **{name: known[name] for name in spec.observation if name in known}}


def start_from(policy: Policy, start: Path) -> list[str]:
    """Put the weights of the policy in ``start`` (a run or checkpoint) into ``policy``.

    Layers that read or write actions start anew where actions have another size.

    Returns:
        The names of the weights that start anew.

    Raises:
        CheckpointError: there is no policy, or one of other parts.
    """
    folder = resolve_checkpoint(start)
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; train again or copy it anew") from error
    wanted = {n: v for n, v in policy.state_dict().items() if n.startswith(_PARTS)}
    weights = {n: v for n, v in weights.items() if n.startswith(_PARTS)}
    spec = load_spec(folder)
    sizes = (spec.action.size, policy.spec.action.size)
    flat = (spec.horizon * sizes[0], policy.spec.horizon * sizes[1])
    anew = [n for n, v in wanted.items() if n in weights and _depends_on_action(weights[n], v, {sizes, flat})]
    strange = [
        n
        for n in sorted(wanted.keys() | weights.keys())
        if n not in anew and (n not in wanted or n not in weights or wanted[n].shape != weights[n].shape)
    ]
    if strange:
        raise CheckpointError(
            f"--start-from {start}: a policy of other parts ({len(strange)} weights differ, the first is "
            f"{strange[0]}); train with the same --policy, --trunk and sizes"
        )
    policy.load_state_dict({n: v for n, v in weights.items() if n not in anew}, strict=False)
    return anew


def _depends_on_action(theirs: Tensor, ours: Tensor, sizes: set[tuple[int, int]]) -> bool:
    """Whether two weights differ in nothing but the size of an action, or of a chunk."""
    if theirs.ndim != ours.ndim or theirs.shape == ours.shape:
        return False
    return all(a == b or (a, b) in sizes for a, b in zip(theirs.shape, ours.shape, strict=True))


def _observed(spec: PolicySpec) -> str:
    streams = [f"{n}{list(spec.components[n]) if n in spec.components else ''}" for n in spec.observation]
    return f"{', '.join(streams)} ({spec.obs_horizon} at a time)"
