"""How the baselines turn what a gateway sees into labels: one per submitted message, once, when it is known or given up."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from bench.routing.view import View

__all__ = ["Label", "Labels"]


class Label(NamedTuple):
    row: int
    route: int
    y: float
    """1: delivered in time, as far as is known."""
    seconds: float
    """To the receipt; 0 without one."""


class Labels:
    """Receipts by the class's deadline, or none of them: a failure. Marketing is given up after `patience_s`, since nobody waits a day to learn.

    With `feedback`, what the tenant says of a one-time password is its label, instead of its receipt: later, but not to be faked by a route.
    """

    def __init__(self, view: View, *, feedback: bool, patience_s: int = 900) -> None:
        self._view, self._feedback = view, feedback
        self._give_up = [min(int(one), 1_000 * patience_s) for one in view.deadline_ms]
        self._open: dict[int, tuple[int, int]] = {}
        self._due: list[tuple[int, int]] = []
        self._seconds: dict[int, float] = {}
        self._ready: list[Label] = []

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        self._open[row] = route, now_ms
        if not (self._feedback and self._view.reports[row]):
            heapq.heappush(self._due, (now_ms + self._give_up[int(self._view.cls[row])], row))

    def refused(self, row: int, route: int) -> None:
        """Known at once."""
        self._ready.append(Label(row, route, 0.0, 0.0))

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        if (found := self._open.get(row)) is None:
            return
        route, since = found
        seconds = (now_ms - since) / 1_000
        if self._feedback and self._view.reports[row]:
            self._seconds[row] = seconds
            return
        del self._open[row]
        in_time = delivered and now_ms - since <= self._view.deadline_ms[self._view.cls[row]]
        self._ready.append(Label(row, route, float(in_time), seconds if in_time else 0.0))

    def feedback(self, row: int, *, converted: bool) -> None:
        if not self._feedback or (found := self._open.pop(row, None)) is None:
            return
        self._ready.append(Label(row, found[0], float(converted), self._seconds.pop(row, 0.0) if converted else 0.0))

    def due(self, now_ms: int) -> list[Label]:
        """Those that were settled since the last call."""
        while self._due and self._due[0][0] <= now_ms:
            _, row = heapq.heappop(self._due)
            if (found := self._open.pop(row, None)) is not None:
                self._ready.append(Label(row, found[0], 0.0, 0.0))
        ready, self._ready = self._ready, []
        return ready
