"""What was changed and found, a JSON object at a time; and until when to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.clock import Clock, SystemClock
from controlplane.store.client import Document

__all__ = ["Deadline", "Report"]

_PAUSE_SECONDS = 0.25


class Report:
    """Counts changes; says each finding once."""

    def __init__(self, write: Callable[[Document], None]) -> None:
        self._write = write
        self._said: set[tuple[str, ...]] = set()
        self.changes = 0

    def change(self, change: str, detail: str, **where: str) -> None:
        """Something is now otherwise: `{"change": …, "set": …, "detail": …}`."""
        self.changes += 1
        self._write({"change": change, **where, "detail": detail})

    def finding(self, finding: str, **where: str) -> None:
        """Something that is not as declared and was left as it is."""
        if (key := (finding, *where.values())) not in self._said:
            self._said.add(key)
            self._write({"finding": finding, **where})

    def converged(self) -> None:
        """The last line."""
        self._write({"result": "converged", "changes": self.changes})


class Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self.seconds = seconds
        self._clock = clock or SystemClock()
        self._end = self._clock.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; never below 0."""
        return max(0.0, self._end - self._clock.monotonic())

    async def pause(self) -> bool:
        """Sleep a moment. False when the time is over."""
        if not self.left:
            return False
        await asyncio.sleep(min(_PAUSE_SECONDS, self.left))
        return True
