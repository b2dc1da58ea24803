"""When to look at a message again: a wheel of one-second slots, because a million timers must cost a million references and no more."""

from __future__ import annotations

import heapq

__all__ = ["Wheel"]


class Wheel:
    """Message ids by the second in which they are due. An id may stand in several slots; the one who looks decides whether it matters."""

    __slots__ = ("_order", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, dict[str, None]] = {}
        self._order: list[int] = []

    def add(self, due_ms: int, mid: str) -> None:
        """Look at `mid` at `due_ms` or up to a second later."""
        second = -(-due_ms // 1000)
        slot = self._slots.get(second)
        if slot is None:
            self._slots[second] = {mid: None}
            heapq.heappush(self._order, second)
        else:
            slot[mid] = None

    def drop(self, due_ms: int, mid: str) -> None:
        """Nobody needs to look at `mid` at `due_ms` any more: days of finished messages would not fit in memory."""
        slot = self._slots.get(-(-due_ms // 1000))
        if slot is not None:
            slot.pop(mid, None)

    def due(self, now_ms: int) -> list[str]:
        """Take out everything that is due."""
        found: list[str] = []
        while self._order and self._order[0] * 1000 <= now_ms:
            found.extend(self._slots.pop(heapq.heappop(self._order)))
        return found
