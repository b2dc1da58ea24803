"""Streams for open tabs (server-sent events). What many tabs ask again and again is asked once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import suppress

from starlette.responses import StreamingResponse

from controlplane.clock import Clock
from controlplane.console.backend import ApiError

__all__ = ["Live"]

_PING_SECONDS = 15.0
_LONGEST_SECONDS = 600.0
"""A stream ends after this; the browser opens the next one, and who it is is looked at again."""


class _Shared:
    """The newest answer to one question."""

    __slots__ = ("asked_at", "asking", "html")

    def __init__(self) -> None:
        self.html = ""
        self.asked_at = float("-inf")
        self.asking: asyncio.Lock = asyncio.Lock()


class Live:
    """One per node. Streams end when `stopping` says that the node does."""

    def __init__(self, clock: Clock, stopping: Callable[[], bool]) -> None:
        self._clock = clock
        self._stopping = stopping
        self._questions: dict[Hashable, _Shared] = {}
        self._readers: dict[Hashable, int] = {}

    def stream(self, key: Hashable, ask: Callable[[], Awaitable[str]], seconds: float = 2.0) -> StreamingResponse:
        """HTML whenever `ask` says something new, asked every `seconds` for all tabs with the same `key`.

        `key` must hold all that the answer depends on: whose it is (tenant, role) and what is asked.
        """
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(key, ask, seconds), media_type="text/event-stream", headers=headers)

    async def _events(self, key: Hashable, ask: Callable[[], Awaitable[str]], seconds: float) -> AsyncIterator[str]:
        self._readers[key] = self._readers.get(key, 0) + 1
        shared = self._questions.setdefault(key, _Shared())
        began = said_at = self._clock.monotonic()
        said: str | None = None
        try:
            yield "retry: 3000\n\n"
            while (now := self._clock.monotonic()) - began < _LONGEST_SECONDS and not self._stopping():
                html = await self._answer(shared, ask, seconds)
                if html != said:
                    said, said_at = html, now
                    yield "".join(f"data: {line}\n" for line in html.splitlines() or [""]) + "\n"
                elif now - said_at >= _PING_SECONDS:
                    said_at = now
                    yield ": still here\n\n"
                await asyncio.sleep(seconds)
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key], self._questions[key]

    async def _answer(self, shared: _Shared, ask: Callable[[], Awaitable[str]], seconds: float) -> str:
        async with shared.asking:
            if self._clock.monotonic() - shared.asked_at >= seconds * 0.9:
                with suppress(ApiError):  # what was known stays; the page itself shows errors
                    shared.html = await ask()
                shared.asked_at = self._clock.monotonic()
        return shared.html
