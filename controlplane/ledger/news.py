"""A round that is committed is told to whoever waits for it in this process; who waits elsewhere looks now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

__all__ = ["News", "Wait", "look_again"]

_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 1.0

Wait = Callable[[], Awaitable[None]]
"""Returns when there may be something new."""


async def look_again() -> None:
    """`Wait` of a process that is told nothing."""
    await asyncio.sleep(_LOOK_SECONDS)


class News:
    """One per process."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """There is something new."""
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def wait(self) -> None:
        """Until the next `tell`, or a second: what is new may be somebody else's doing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_SECONDS):
                await self._next.wait()
