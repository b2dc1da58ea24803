"""Sums that nodes add up and time halves: what the content model and the calibration keep."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.tuning import HOUR

__all__ = ["Fading", "Floats"]

Floats = NDArray[np.float64]
_REBASE_MS = 24 * HOUR


class Fading:
    """This node's own contribution and the sum of its peers', both as of a landmark that moves along (all of one shape)."""

    def __init__(self, shape: tuple[int, ...], half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._own = np.zeros(shape)
        self._others = np.zeros(shape)
        self._peers: dict[str, tuple[int, Floats]] = {}
        self._ref = 0

    def refresh(self, now_ms: int) -> None:
        """Forget up to now."""
        raise NotImplementedError

    def _load(self, state: bytes) -> tuple[int, Floats]:
        """(when, contribution) of a `dump`. Raises ValueError for what is none."""
        raise NotImplementedError

    def merge(self, peer: str, state: bytes, now_ms: int) -> bool:
        """Take a peer's `dump`; False where a newer one is known. Raises ValueError for what is no dump."""
        at, own = self._load(state)
        at = min(at, now_ms)  # whatever the peer's clock says
        known = self._peers.get(peer)
        if known is not None and known[0] >= at:
            return False
        self._peers[peer] = at, own
        self._rebase(now_ms)
        self._sum_others()
        return True

    def restore(self, state: bytes) -> None:
        """Take this node's own `dump` in place of what it has."""
        at, own = self._load(state)
        self._rebase(at)
        self._own = own / self._scale(at)
        self.refresh(at)

    def _scale(self, now_ms: int) -> float:
        return float(np.exp2((self._ref - now_ms) / self._half_life_ms))

    def _rebase(self, now_ms: int) -> None:
        if now_ms - self._ref < _REBASE_MS:
            return
        if self._ref:
            self._own *= self._scale(now_ms)
        self._ref = now_ms
        self._sum_others()

    def _sum_others(self) -> None:
        self._others[:] = 0.0
        for peer in sorted(self._peers):
            at, own = self._peers[peer]
            self._others += own * np.exp2((at - self._ref) / self._half_life_ms)
