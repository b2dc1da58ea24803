"""Garbage collection that never stops the node for long.

Nearly everything here is freed by its reference count; cycles are rare. But the collector's own rhythm traverses every open message again and again: with
100,000 young objects a pause was 30 to 60 ms, and it took a third of the node's time. Here only what is new since the last look is traversed, every
10,000 objects or so; what survived is set aside (`gc.freeze`). Cycles that die after that are found when everything is looked at: once an hour, and
whenever there is twice as much as after the last time, so that no flood of them can fill the memory.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from controlplane.tasks import going_on

__all__ = ["collect"]

_NEW_OBJECTS = 10_000
_LOOK_SECONDS = 0.05
_COUNT_LOOKS = 100  # every five seconds
_EVERYTHING_LOOKS = 72_000  # an hour
_TIMES, _MORE_BLOCKS = 2, 2_000_000
"""Everything is looked at when there are so many times as many blocks of memory, and so many more (some 200 MB)."""


async def collect() -> None:
    """Collect until cancelled; for a process that does nothing else."""
    gc.disable()
    try:
        while going_on():
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            await _look(_TIMES * sys.getallocatedblocks() + _MORE_BLOCKS)
    finally:
        gc.unfreeze()
        gc.enable()


async def _look(most: int) -> None:
    """Collect what is new, until an hour has passed or there are more blocks of memory than `most`."""
    for look in range(1, _EVERYTHING_LOOKS):
        await asyncio.sleep(_LOOK_SECONDS)
        if gc.get_count()[0] > _NEW_OBJECTS:
            gc.collect()
            gc.freeze()
        if look % _COUNT_LOOKS == 0 and sys.getallocatedblocks() > most:
            return
