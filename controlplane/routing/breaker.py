"""Breakers: what must be seen in seconds. One per route, one per route × network; an arm is as open as the worse of its two.

Three detectors, all of them sums of log-likelihood ratios (Page 1954; Lorden 1971: with threshold h the mean number of observations between
false alarms is at least e^h):

- refusals: submits fail half the time rather than once in fifty → open.
- silence: of the receipts that should be here by the delay curves, of what was submitted in the last seconds, a tenth came rather than all → open.
- brown-out: at the age `early_ms` fewer messages have a receipt than this arm was used to some minutes ago → the cells are reset to the new level,
  so that the scores follow within a minute; open where next to nothing is left. The mirror image sees recoveries.

Open for a pause that doubles; then half-open: probes, paid from the exploration budget, decide by a short sequential test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.tuning import Tuning

__all__ = ["CLOSED", "HALF_OPEN", "OPEN", "Alarm", "Breakers", "silence_gain"]

CLOSED, HALF_OPEN, OPEN = range(3)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_REFUSED, _ACCEPTED = np.log(0.5 / 0.02), np.log(0.5 / 0.98)
_SILENT = 0.1
_SURE = 0.85
_PROBE = 3.0
_OUT = 0.25
"""Less than this of the usual receipts is an outage rather than a brown-out."""
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a detector found."""

    cell: int
    kind: str
    """refusals, silence, brownout, recovery, probes_failed or closed."""
    ratio: float
    """Receipts seen of those expected; 0 for refusals."""
    opened: bool


def silence_gain(chance: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Log-likelihood ratio of silence for messages whose receipts should be here with `chance`. No one message is quite certain."""
    sure = np.minimum(chance, _SURE)
    return np.asarray(np.where(seen, np.log(_SILENT), np.log((1.0 - _SILENT * sure) / (1.0 - sure))))


class Breakers:
    """All breakers of one node, by cell number."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._cells: dict[str, int] = {}
        self._names: list[str] = []
        room = 64
        self.state = np.zeros(room, dtype=np.int64)
        self.since = np.zeros(room, dtype=np.int64)
        """Messages submitted before this say nothing about the present state."""
        self._until = np.full(room, _NEVER, dtype=np.int64)
        self._pause = np.zeros(room, dtype=np.int64)
        self._errors = np.zeros(room)
        self._probes = np.zeros(room)
        self._by_submits = np.zeros(room, dtype=bool)
        """Whether probes are judged by their submits already: it opened because of refusals."""
        self._down = np.zeros((room, 3))
        self._up = np.zeros((room, 3))
        """Page's statistic; expected and seen receipts since it was last zero."""
        self.changes = 0
        """Grows with each change of a state."""

    def __len__(self) -> int:
        return len(self._names)

    def cell(self, name: str) -> int:
        """The number of a breaker."""
        found = self._cells.get(name)
        if found is not None:
            return found
        n = self._cells[name] = len(self._names)
        self._names.append(name)
        if n == len(self.state):
            for key in ("state", "since", "_pause", "_errors", "_probes", "_by_submits", "_down", "_up"):
                old = getattr(self, key)
                setattr(self, key, np.concatenate([old, np.zeros_like(old)]))
            self._until = np.concatenate([self._until, np.full_like(self._until, _NEVER)])
        return n

    def name(self, cell: int) -> str:
        """The name of a breaker."""
        return self._names[cell]

    def submit(self, cells: tuple[int, int], now_ms: int, *, accepted: bool) -> list[Alarm]:
        """A submit was answered, or not (accepted=False)."""
        alarms = []
        for cell in cells:
            if self.state[cell] == CLOSED:
                self._errors[cell] = max(0.0, self._errors[cell] + (_ACCEPTED if accepted else _REFUSED))
                if self._errors[cell] >= self._tuning.alarm:
                    alarms.append(self._open(cell, now_ms, "refusals", 0.0))
            elif self.state[cell] == HALF_OPEN and (self._by_submits[cell] or not accepted):
                alarms += self._probe(cell, 1.0 if accepted else -_PROBE, now_ms)
        return alarms

    def early(self, layers: Ints, at: Ints, expected: Floats, seen: NDArray[np.bool_], now_ms: int) -> list[Alarm]:
        """Messages came to the early mark: layers (2, n) cells, at (n,) submit ms, expected (n,) P(receipt until here), seen (n,)."""
        alarms: list[Alarm] = []
        lower = expected * (1.0 - self._tuning.brownout / 0.9)
        upper = np.minimum(expected / (1.0 - self._tuning.brownout / 0.9), expected + 0.75 * (1.0 - expected))
        down = np.where(seen, np.log(lower / expected), np.log((1 - lower) / (1 - expected)))
        up = np.where(seen, np.log(upper / expected), np.log((1 - upper) / (1 - expected)))
        for cells in layers:
            fresh = at >= self.since[cells]
            state = self.state[cells]
            probing = np.flatnonzero(fresh & (state == HALF_OPEN))
            for i in probing:
                cell, e = int(cells[i]), float(expected[i])
                if self.state[cell] == HALF_OPEN and not self._by_submits[cell]:
                    gain = np.log(1 / _SILENT) if seen[i] else np.log((1 - e) / (1 - _SILENT * e))
                    alarms += self._probe(cell, float(gain), now_ms)
            closed = fresh & (state == CLOSED)
            if closed.any():
                alarms += self._page(cells[closed], down[closed], up[closed], expected[closed], seen[closed], now_ms)
        return alarms

    def silent(self, gains: Floats, expected: Floats, seen: Floats, now_ms: int) -> list[Alarm]:
        """What was submitted in the last seconds, for several windows: per cell (windows, cells) the sum of `silence_gain`, receipts expected, seen."""
        worst = gains.max(axis=0)
        alarms = []
        for cell in np.flatnonzero((worst >= self._tuning.silence) & (self.state[: len(worst)] == CLOSED)):
            window = int(gains[:, cell].argmax())
            share = float(seen[window, cell] / expected[window, cell])
            if share <= 2 * _SILENT:
                alarms.append(self._open(int(cell), now_ms, "silence", share))
        return alarms

    def tick(self, now_ms: int) -> None:
        """Open breakers whose pause is over become half-open."""
        due = np.flatnonzero((self.state[: len(self)] == OPEN) & (self._until[: len(self)] <= now_ms))
        if len(due):
            self.state[due], self.since[due], self._probes[due] = HALF_OPEN, now_ms, 0.0
            self.changes += 1

    def _page(
        self, cells: Ints, down: Floats, up: Floats, expected: Floats, seen: NDArray[np.bool_], now_ms: int
    ) -> list[Alarm]:
        """One step of Page's test per cell for all that came at once."""
        alarms: list[Alarm] = []
        for cell in np.unique(cells):
            mine = cells == cell
            sums = float(expected[mine].sum()), float(seen[mine].sum())
            for test, gain in ((self._down, down), (self._up, up)):
                value = test[cell, 0] + float(gain[mine].sum())
                test[cell] = (value, test[cell, 1] + sums[0], test[cell, 2] + sums[1]) if value > 0 else 0.0
                falling = test is self._down
                if value >= (self._tuning.alarm if falling else self._tuning.recovery):
                    alarms.append(self._shifted(int(cell), now_ms, falling=falling))
                    break
        return alarms

    def _shifted(self, cell: int, now_ms: int, *, falling: bool) -> Alarm:
        test = self._down if falling else self._up
        ratio = float((test[cell, 2] + 0.5) / (test[cell, 1] + 0.5))
        self._down[cell] = self._up[cell] = 0.0
        if falling and ratio < _OUT:
            return self._open(cell, now_ms, "silence", ratio)
        return Alarm(cell, "brownout" if falling else "recovery", ratio, opened=False)

    def _probe(self, cell: int, gain: float, now_ms: int) -> list[Alarm]:
        self._probes[cell] += gain
        if self._probes[cell] <= -_PROBE:
            return [self._open(cell, now_ms, "probes_failed", 0.0)]
        if self._probes[cell] >= _PROBE:
            self.state[cell], self.since[cell], self._pause[cell] = CLOSED, now_ms, 0
            self._until[cell] = _NEVER
            self._clear(cell)
            self.changes += 1
            return [Alarm(cell, "closed", 1.0, opened=False)]
        return []

    def _open(self, cell: int, now_ms: int, kind: str, ratio: float) -> Alarm:
        pause = int(self._pause[cell])
        pause = min(2 * pause, self._tuning.open_max_ms) if pause else self._tuning.open_ms
        if kind != "probes_failed":
            self._by_submits[cell] = kind == "refusals"
        self.state[cell], self._pause[cell], self._until[cell] = OPEN, pause, now_ms + pause
        self._clear(cell)
        self.changes += 1
        return Alarm(cell, kind, ratio, opened=True)

    def _clear(self, cell: int) -> None:
        self._errors[cell] = self._probes[cell] = 0.0
        self._down[cell] = self._up[cell] = 0.0
