"""The fast half in action: a settled tokenizer's decoder, tick by tick, through one episode.

A tick is a few products of small matrices, which numpy computes ten times as fast as torch would. Shape letters: see
readings.py; R numbers in a block, H numbers in the recurrent state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robolearn.policies.reactive.config import ReactiveError

if TYPE_CHECKING:
    from robolearn.policies.policy import Policy
    from robolearn.policies.reactive.tokenizer import Tokenizer


class FastDecoder:
    """Makes actions of the newest latent chunk and of the force felt so far. Used by one thread.

    A new chunk begins in the past, at its observation's capture: what has been felt since is read at once, then one
    block at each tick.
    """

    def __init__(self, policy: Policy) -> None:
        """Raises ReactiveError: ``policy`` has no fast half."""
        if policy.tokenizer is None:
            raise ReactiveError("the policy has no fast half; train one with --policy reactive")
        self._tokenizer = policy.tokenizer
        self.ticks = policy.tokenizer.ticks
        """K in a control period."""
        self._last = (policy.spec.horizon - 1) * self.ticks
        self._network = _Network(policy.tokenizer)
        self._offset, self._scale = _array(policy.action.offset), _array(policy.action.scale)
        self._felt: deque[np.ndarray] = deque(maxlen=self._last + 2 * self.ticks)
        self.begin()

    def begin(self) -> None:
        """An episode begins: forget what was felt."""
        self._felt.clear()
        self._chunk, self._next = -1, 0
        self._state = np.empty(0, np.float32)

    def feel(self, readings: Mapping[str, np.ndarray]) -> None:
        """The readings of one tick or several, (n * S, F) of each stream, oldest first; the last ends now."""
        self._felt.extend(self._network.blocks(readings))

    def act(self, chunk: int, rows: np.ndarray, tick: int, ahead: int = 1) -> np.ndarray:
        """Actions (``ahead``, A) in physical units at ``tick`` and those after it, as far as can be told now.

        Args:
            chunk: number of the slow half's chunk; another one than before begins anew.
            rows: the chunk, (T, W).
            tick: fast periods from the time of the chunk's first row to now, where the newest block ends. It rises by
                one with each block felt; if it does not, the chunk is begun anew.
        """
        if not self._felt:
            raise ReactiveError("nothing has been felt yet, and a slow-fast policy cannot act without")
        newest = self._felt[-1]
        if chunk != self._chunk or tick != self._next:
            self._chunk, self._state = chunk, np.zeros(self._tokenizer.config.width, np.float32)
            with torch.no_grad():
                latent = self._tokenizer.from_rows(torch.from_numpy(np.array(rows, np.float32))[None])
                self._network.follow(self._tokenizer.features(latent)[0])
            felt = list(self._felt)[-tick - 1 :]
            felt = [felt[0]] * (tick + 1 - len(felt)) + felt  # what was not felt yet: as the first
            for past, block in enumerate(felt[:-1]):
                self._state = self._network.state(self._place(past), block, self._state)
        self._state = state = self._network.state(self._place(tick), newest, self._state)
        self._next = tick + 1
        actions = [self._network.action(self._place(tick), state)]
        for later in range(tick + 1, tick + ahead):  # the force stays as it is
            state = self._network.state(self._place(later), newest, state)
            actions.append(self._network.action(self._place(later), state))
        return np.stack(actions) / self._scale + self._offset

    def _place(self, tick: int) -> int:
        return min(tick, self._last)


class _Network:
    """What ``Tokenizer.decode_on`` computes, one tick at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        width = tokenizer.config.width
        w = {name: _array(value) for name, value in tokenizer.state_dict().items()}
        entry, hidden = w["gru.weight_ih_l0"].T, w["head.0.weight"].T
        self._entry_features, self._entry_block = entry[:width], entry[width:]
        self._entry_bias = w["gru.bias_ih_l0"]
        self._again, self._again_bias = w["gru.weight_hh_l0"].T, w["gru.bias_hh_l0"]
        self._hidden_features, self._hidden_state = hidden[:width], hidden[width:]
        self._hidden_bias = w["head.0.bias"]
        self._exit, self._exit_bias = w["head.2.weight"].T, w["head.2.bias"]
        self._samples = tokenizer.blocks.samples
        self._mean, self._scale = _array(tokenizer.blocks.mean), _array(tokenizer.blocks.scale)
        if not tokenizer.config.feels:
            self._scale = np.zeros_like(self._scale)
        self._width = width
        self._inputs = self._skips = np.empty((0, 0), np.float32)

    def blocks(self, readings: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Readings as ``FastDecoder.feel`` takes them -> blocks (R,)."""
        parts = []
        for name, samples in self._samples.items():
            values = np.asarray(readings[name], np.float32)
            parts.append(values.reshape(len(values) // samples, -1))
        joined = np.concatenate(parts, axis=1)
        return list((joined - self._mean) * self._scale)

    def follow(self, features: Tensor) -> None:
        """Take up what a chunk's latent says, (M, H)."""
        told = _array(features)
        self._inputs = told @ self._entry_features + self._entry_bias
        self._skips = told @ self._hidden_features + self._hidden_bias

    def state(self, place: int, block: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The recurrent state (H,) after a tick: the gated recurrent unit of torch.nn.GRU."""
        w = self._width
        given = self._inputs[place] + block @ self._entry_block
        again = before @ self._again + self._again_bias
        reset, keep = np.split(_sigmoid(given[: 2 * w] + again[: 2 * w]), 2)
        new = np.tanh(given[2 * w :] + reset * again[2 * w :])
        return (1 - keep) * new + keep * before

    def action(self, place: int, state: np.ndarray) -> np.ndarray:
        """The action (A,) of a tick, normalised."""
        hidden = self._skips[place] + state @ self._hidden_state
        return (hidden * _sigmoid(hidden)) @ self._exit + self._exit_bias


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Without the overflow of exp."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)
