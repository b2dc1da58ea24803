"""Streams for open tabs (server-sent events). What many tabs ask again and again is asked once for all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import suppress

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from controlplane.clock import Clock
from controlplane.console.backend import ApiError
from controlplane.console.identity import cookie_of, seen, services_of

__all__ = ["Live"]

_PING_SECONDS = 15.0
_LONGEST_SECONDS = 600.0
"""A stream ends after this; the browser opens the next one."""
_STILL_SECONDS = 60.0
"""How often it is looked whether its session still is one."""
_MOST = 40
"""Streams of one person on a node: each may ask a question of its own, on the loop that sends messages."""


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
        self._readers: Counter[Hashable] = Counter()

    def stream(
        self, request: Request, key: Hashable, ask: Callable[[], Awaitable[str]], seconds: float = 2.0
    ) -> Response:
        """HTML whenever `ask` says something new, asked every `seconds` for all tabs with the same `key`.

        `key` must hold all that the answer depends on: whose it is (tenant, role) and what is asked. 429 for a person with too many.
        """
        visit = seen(request)
        if visit is None or self._readers["person", visit.person] >= _MOST:
            return Response(status_code=429, headers={"Retry-After": "60"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = self._events(request, visit.person, key, ask, seconds)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(
        self, request: Request, person: str, key: Hashable, ask: Callable[[], Awaitable[str]], seconds: float
    ) -> AsyncIterator[str]:
        counted = (key, ("person", person))
        self._readers.update(counted)
        shared = self._questions.setdefault(key, _Shared())
        began = said_at = looked_at = self._clock.monotonic()
        said: str | None = None
        try:
            yield "retry: 3000\n\n"
            while (now := self._clock.monotonic()) - began < _LONGEST_SECONDS and not self._stopping():
                if now - looked_at >= _STILL_SECONDS:
                    looked_at = now
                    if await services_of(request).sessions.visit(cookie_of(request), used=False) is None:
                        return
                html = await self._answer(shared, ask, seconds)
                if html != said:
                    said, said_at = html, now
                    yield "".join(f"data: {line}\n" for line in html.splitlines() or [""]) + "\n"
                elif now - said_at >= _PING_SECONDS:
                    said_at = now
                    yield ": still here\n\n"
                await asyncio.sleep(seconds)
        finally:
            self._readers.subtract(counted)
            if not self._readers[key]:
                del self._questions[key]
            self._readers = +self._readers  # those that nobody reads any more are forgotten

    async def _answer(self, shared: _Shared, ask: Callable[[], Awaitable[str]], seconds: float) -> str:
        async with shared.asking:
            if self._clock.monotonic() - shared.asked_at >= seconds * 0.9:
                with suppress(ApiError):  # what was known stays; the page itself shows errors
                    shared.html = await ask()
                shared.asked_at = self._clock.monotonic()
        return shared.html
