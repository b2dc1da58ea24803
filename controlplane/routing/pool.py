"""Messages of one class whose story is not over: what their receipts will teach, and what missing ones say already.

Bounded. A message passes five marks in the order of its submit: sent (what was expected of it is noted), `early` (has it a receipt sooner than usual?), mature (the content model learns),
due (no receipt until here is a real negative), forgotten. When the pool is full, stories that are over go first, the oldest; then every second of the
oldest open ones goes, and its neighbour stands for both (weight ×2), so that sums stay unbiased while memory stays bounded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.features import WIDTH
from controlplane.routing.tuning import ClassTuning

__all__ = ["DELIVERED", "EXPIRED", "FAILED", "LATE", "PENDING", "Entry", "Pool"]

PENDING, DELIVERED, FAILED, EXPIRED, LATE = range(5)
Ints = NDArray[np.int64]
_NONE = np.zeros(0, dtype=np.int64)


class Entry(NamedTuple):
    """A remembered message."""

    arm: int
    at: int
    weight: float
    state: int


class Pool:
    """Parallel arrays in the order of submits; positions move only in `_compact`."""

    def __init__(self, tuning: ClassTuning, *, early_ms: int, capacity: int) -> None:
        self._marks = {
            "sent": 0,
            "early": early_ms,
            "mature": tuning.mature_ms,
            "due": tuning.deadline_ms,
            "forgotten": tuning.remember_ms,
        }
        self.mature_ms = tuning.mature_ms
        self._capacity = capacity
        self._passed = dict.fromkeys(self._marks, 0)
        """Mark → how many entries are past it."""
        self._mids: list[str] = []
        self._seat: dict[str, int] = {}
        self.size = 0
        room = min(1024, capacity)
        self.at = np.zeros(room, dtype=np.int64)
        self._order = np.zeros(room, dtype=np.int64)
        """`at`, but never falling: what is told late passes its marks late."""
        self.arm = np.zeros(room, dtype=np.int64)
        self.weight = np.zeros(room)
        self.state = np.zeros(room, dtype=np.int64)
        self.latency = np.zeros(room, dtype=np.int64)
        """ms from submit to receipt, where there is one."""
        self.expected = np.zeros(room)
        """P(delivered in time) as it was before anything was known of the message."""
        self.hashes = np.zeros((room, WIDTH), dtype=np.uint64)

    def add(self, mid: str, arm: int, hashes: NDArray[np.uint64], at: int) -> None:
        """A message was submitted. One that is known already starts again (re-routed)."""
        if self.size == len(self.at):
            self._make_room()
        n = self.size
        known = self._seat.get(mid)
        if known is not None:
            self._mids[known] = ""
        self._seat[mid] = n
        self._mids.append(mid)
        self.at[n], self.arm[n], self.weight[n], self.state[n], self.latency[n] = at, arm, 1.0, PENDING, 0
        self._order[n] = max(at, int(self._order[n - 1])) if n else at
        self.hashes[n] = hashes
        self.size = n + 1

    def find(self, mid: str) -> int | None:
        """Position of a message, until the next `add`."""
        return self._seat.get(mid)

    def mid(self, position: int) -> str:
        """Whose story it is; "" where the message was submitted again."""
        return self._mids[position]

    def entry(self, position: int) -> Entry:
        """What is known of it."""
        return Entry(
            int(self.arm[position]), int(self.at[position]), float(self.weight[position]), int(self.state[position])
        )

    def settle(self, position: int, state: int, latency_ms: int) -> None:
        """Its receipt came."""
        self.state[position], self.latency[position] = state, latency_ms

    def pass_mark(self, mark: str, now_ms: int) -> Ints:
        """Positions that have come to the age of a mark since it was last asked for."""
        start = self._passed[mark]
        end = self.since(now_ms - self._marks[mark] + 1)
        if end <= start:
            return _NONE
        self._passed[mark] = end
        return np.arange(start, end)

    def since(self, at: int) -> int:
        """The first position submitted at or after `at`."""
        return int(np.searchsorted(self._order[: self.size], at))

    def open_from(self) -> int:
        """The first position that may still be pending."""
        return self._passed["due"]

    def _make_room(self) -> None:
        if self.size < self._capacity and self._passed["forgotten"] < self.size // 2:
            grown = min(2 * len(self.at), self._capacity) - len(self.at)
            for name in ("at", "_order", "arm", "weight", "state", "latency", "expected"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros(grown, old.dtype)]))
            self.hashes = np.concatenate([self.hashes, np.zeros((grown, WIDTH), np.uint64)])
            return
        self._compact()

    def _compact(self) -> None:
        n, room = self.size, self._capacity * 3 // 4
        keep = np.zeros(n, dtype=bool)
        keep[self._passed["forgotten"] :] = True
        if keep.sum() > room:
            over = keep & (self.state[:n] != PENDING)
            over[self._passed["mature"] :] = False
            keep[np.flatnonzero(over)[: int(keep.sum()) - room]] = False
        if keep.sum() > room:
            oldest = np.flatnonzero(keep)[: 2 * (int(keep.sum()) - room)]
            oldest = oldest[self.state[oldest] == PENDING]
            gone, kept = oldest[::2], oldest[1::2]
            gone = gone[: len(kept)]
            self.weight[kept] += self.weight[gone]
            keep[gone] = False
        if keep.sum() > room:  # only stories that are over, and young: forget the oldest after all
            keep[np.flatnonzero(keep & (self.state[:n] != PENDING))[: int(keep.sum()) - room]] = False
        kept = np.flatnonzero(keep)
        for name in ("at", "_order", "arm", "weight", "state", "latency", "expected", "hashes"):
            array = getattr(self, name)
            array[: len(kept)] = array[kept]
        before = np.concatenate([[0], np.cumsum(keep)])
        self._passed = {mark: int(before[passed]) for mark, passed in self._passed.items()}
        self._mids = [self._mids[position] for position in kept]
        self._seat = {mid: position for position, mid in enumerate(self._mids) if mid}
        self.size = len(kept)
