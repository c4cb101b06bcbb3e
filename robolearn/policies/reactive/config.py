"""What can be chosen of the fast half of a slow-fast policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robolearn.policies.spec import FastSpec
from robolearn_data.schema import Stream, UserError


class ReactiveError(UserError):
    """A slow-fast policy cannot be made of this, or run like this."""


@dataclass(frozen=True)
class TokenizerConfig:
    """The asymmetric tokenizer of Reactive Diffusion Policy: its encoder sees the actions of a chunk, its decoder the
    latent and the force up to each instant."""

    steps: int = 4_000
    """Optimiser steps in which it is trained, before those of the slow half."""
    fast_hz: float = 100.0
    """How often the decoder acts. A whole multiple of the control rate."""
    stride: int = 4
    """Control steps that one token of the latent stands for: a power of two that divides the horizon."""
    channels: int = 8
    """Numbers in a token of the latent: a multiple of the stride."""
    width: int = 64
    """Of the encoder's convolutions and of the decoder's recurrent state (GRU)."""
    kl: float = 1e-4
    """Weight of the divergence of a chunk's latent from a standard normal distribution, beside the mean error of its
    actions. The larger, the less the latent says of what the decoder can tell from the force."""
    feels: bool = True
    """False: the decoder's readings are zero, in training too. To compare with."""


def fast_spec(streams: Mapping[str, Stream], rate_hz: float, horizon: int, config: TokenizerConfig) -> FastSpec:
    """The fast half of a policy of ``rate_hz`` that reads ``streams``.

    Raises:
        ReactiveError: numbers that do not go together; a stream without enough readings.
    """
    c = config
    ticks = max(1, round(c.fast_hz / rate_hz))
    if abs(ticks * rate_hz - c.fast_hz) > 1e-3 * c.fast_hz:
        raise ReactiveError(
            f"fast_hz {c.fast_hz:g} is no whole multiple of the control rate of {rate_hz:g} Hz; "
            f"take {ticks * rate_hz:g}"
        )
    if c.stride < 1 or c.stride & (c.stride - 1) or horizon % c.stride:
        raise ReactiveError(f"stride {c.stride} must be a power of two that divides the horizon of {horizon} steps")
    if c.channels < 1 or c.channels % c.stride:
        raise ReactiveError(f"channels {c.channels} must be a multiple of the stride {c.stride}")
    if min(c.steps, c.width) < 1 or not c.kl >= 0:
        raise ReactiveError("steps and width must be at least 1, and kl not negative")
    for name, stream in streams.items():
        if stream.kind != "state" or (stream.is_native and len(stream.shape) != 1):
            raise ReactiveError(f"the fast half reads streams of numbers such as a wrench, and {name!r} is none")
        readings = stream.shape[0] if len(stream.shape) == 2 else 1
        if not stream.is_native and readings % ticks:
            valid = ", ".join(f"{k * rate_hz:g}" for k in range(1, readings + 1) if readings % k == 0)
            raise ReactiveError(
                f"{name!r} has {readings} readings in a control step, which do not make {ticks} equal parts; "
                f"--policy.tokenizer.fast-hz can be {valid}"
            )
    return FastSpec(dict(streams), ticks, c.channels // c.stride)


def samples_in_tick(stream: Stream, rate_hz: float, ticks: int) -> int:
    """Readings of ``stream`` in one of ``ticks`` fast periods of a control period ``1 / rate_hz`` (S)."""
    if stream.is_native:
        return max(1, round(stream.rate_hz / (rate_hz * ticks)))
    return (stream.shape[0] if len(stream.shape) == 2 else 1) // ticks
