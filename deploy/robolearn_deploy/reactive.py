"""The decoder of a slow-fast checkpoint as a ``FastPolicy``: in a process of its own, against a world or on a rig.

Shape letters: see robolearn/policies/reactive/readings.py; S readings of a stream in a fast period.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.fast import Felt, Readings, interpolate
from robolearn_hardware.clock import SECOND_NS, period_ns

if TYPE_CHECKING:
    from robolearn.policies.reactive.decoder import FastDecoder

STALE_NS = SECOND_NS // 20
"""A sensor that has measured nothing for so long is not reacted to: nothing is said, and the robot comes to hold."""


class ReactiveFast:
    """Decodes the slow half's newest latent with the force that was felt up to now."""

    def __init__(self, checkpoint: Path, spec: PolicySpec) -> None:
        """``spec``: of the checkpoint, which is loaded by ``start``."""
        assert spec.fast is not None
        self.rate_hz = spec.rate_hz * spec.fast.ticks
        self._checkpoint, self._spec = checkpoint, spec
        self._period_ns = period_ns(self.rate_hz)
        self._decoder: FastDecoder | None = None
        self._samples: dict[str, int] = {}

    def start(self) -> None:
        """Load the checkpoint. Raises CheckpointError, ReactiveError."""
        from robolearn.policies.checkpoint import load_policy
        from robolearn.policies.engines.threads import use_threads
        from robolearn.policies.reactive.decoder import FastDecoder

        use_threads(1)
        policy = load_policy(self._checkpoint)
        self._decoder = FastDecoder(policy)
        assert policy.tokenizer is not None
        assert self._spec.fast is not None
        self._samples = policy.tokenizer.blocks.samples
        # The first calls are slower by an order of magnitude.
        rows = np.zeros((self._spec.horizon, self._spec.fast.latent), np.float32)
        self._decoder.feel({n: np.zeros((s, *self._shape(n)), np.float32) for n, s in self._samples.items()})
        for tick in (0, 1, 2, 0):
            self._decoder.act(0, rows, tick, ahead=2)
        self.begin()

    def begin(self) -> None:
        assert self._decoder is not None
        self._decoder.begin()
        self._history: dict[str, Readings] = {}
        self._chunk, self._tick = -1, -1
        self._knots = np.zeros((0, self._spec.action.size))

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray | None:
        decoder, period = self._decoder, self._period_ns
        assert decoder is not None
        self._remember(felt)
        now_ns = int(times_ns[0])
        newest = [r.times_ns[-1] for r in self._history.values() if len(r.times_ns)]
        if len(newest) < len(self._samples) or now_ns - int(min(newest)) > STALE_NS:
            return None
        begin_ns = int(chunk.times_ns[0])
        tick = (now_ns - begin_ns) // period
        if chunk.sequence != self._chunk:  # its instants are others than those of the chunk before
            decoder.begin()
            self._chunk, self._tick = chunk.sequence, -1
        if tick > self._tick:
            ends_ns = begin_ns + np.arange(self._tick + 1, tick + 1, dtype=np.int64) * period
            decoder.feel({name: self._block(name, ends_ns) for name in self._samples})
            self._tick = tick
            self._knots = decoder.act(chunk.sequence, chunk.actions, tick, ahead=len(times_ns) + 1)
        knots_ns = begin_ns + (self._tick + np.arange(len(self._knots), dtype=np.int64)) * period
        said = Chunk(0, 0, 0, knots_ns, self._knots, int(knots_ns[-1]))
        return interpolate(said, times_ns)

    def _remember(self, felt: Felt) -> None:
        keep_ns = felt.capture_ns - (self._spec.horizon + 2) * period_ns(self._spec.rate_hz)
        for name in self._samples:
            new = felt.readings.get(name)
            old = self._history.get(name)
            if new is None:
                continue
            joined = (
                new
                if old is None
                else Readings(np.concatenate([old.times_ns, new.times_ns]), np.concatenate([old.values, new.values]))
            )
            first = int(np.searchsorted(joined.times_ns, keep_ns))
            self._history[name] = Readings(joined.times_ns[first:], joined.values[first:])

    def _block(self, name: str, ends_ns: np.ndarray) -> np.ndarray:
        """(n * S, F) float32: the newest readings at S instants of each fast period that ends at ``ends_ns`` (n,)."""
        samples, history = self._samples[name], self._history[name]
        back_ns = np.arange(samples - 1, -1, -1) * (self._period_ns / samples)
        instants = (ends_ns[:, None] - back_ns.astype(np.int64)).ravel()
        places = np.searchsorted(history.times_ns, instants, side="right") - 1
        return history.values[np.maximum(places, 0)].astype(np.float32)

    def _shape(self, name: str) -> tuple[int, ...]:
        assert self._spec.fast is not None
        return self._spec.fast.observation[name].shape[-1:] or (1,)
