"""The fast half in action: a settled tokenizer's decoder, tick by tick, through one episode."""

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


class FastDecoder:
    """Makes actions of the newest latent chunk and of the force felt so far. Used by one thread.

    A new chunk begins in the past, at its observation's capture: what has been felt since is read at once, then one
    block at each tick. Shape letters: see readings.py; R numbers in a block.
    """

    def __init__(self, policy: Policy) -> None:
        """Raises ReactiveError: ``policy`` has no fast half."""
        if policy.tokenizer is None:
            raise ReactiveError("the policy has no fast half; train one with --policy reactive")
        self._policy, self._tokenizer = policy, policy.tokenizer
        self.ticks = policy.tokenizer.ticks
        """K in a control period."""
        self._last = (policy.spec.horizon - 1) * self.ticks
        self._felt: deque[Tensor] = deque(maxlen=self._last + 2 * self.ticks)
        self.begin()

    def begin(self) -> None:
        """An episode begins: forget what was felt."""
        self._felt.clear()
        self._chunk, self._next = -1, 0
        self._state: Tensor | None = None
        self._features = torch.empty(0)

    def feel(self, readings: Mapping[str, np.ndarray]) -> None:
        """The readings of one tick or several, (n * S, F) of each stream, oldest first; the last ends now."""
        blocks = self._tokenizer.blocks({name: torch.from_numpy(value[None]) for name, value in readings.items()})
        self._felt.extend(blocks[0].split(1))

    @torch.no_grad()
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
        if chunk != self._chunk or tick != self._next:
            tokenizer = self._tokenizer
            self._chunk, self._state = chunk, None
            latent = tokenizer.from_rows(torch.from_numpy(np.array(rows, np.float32))[None])
            self._features = tokenizer.features(latent)
            felt = list(self._felt)[-tick - 1 :]
            blocks = torch.cat([felt[0].expand(tick + 1 - len(felt), -1), *felt])  # what was not felt yet: as the first
            first = 0
        else:
            blocks, first = self._felt[-1], tick
        found, self._state = self._decoded(blocks, first, self._state)
        self._next = tick + 1
        actions = [found[:, -1]]
        if ahead > 1:  # the force stays as it is
            actions.append(self._decoded(self._felt[-1].expand(ahead - 1, -1), tick + 1, self._state)[0][0])
        return self._policy.action.inverse(torch.cat(actions)).numpy()

    def _decoded(self, blocks: Tensor, first: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions (1, n, A), normalised, of ``blocks`` (n, R) at the ticks from ``first`` on."""
        places = torch.arange(first, first + len(blocks)).clamp(max=self._last)
        return self._tokenizer.decode_on(self._features[:, places], blocks[None], state)
