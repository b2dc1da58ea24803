"""Who leads a datacenter's ledger: one of several processes, by a lease in MongoDB, without comparing wall clocks.

The lease decides who works; it does not decide what is true. A leader that does not know yet that it lost its lease can do no harm: each log's document
names the term that may commit to it, and the next leader raises it first.
"""

from __future__ import annotations

import asyncio

from controlplane.clock import Clock
from controlplane.settings import Settings
from controlplane.store.client import Document
from controlplane.store.ledger import LedgerStore
from controlplane.tasks import going_on

__all__ = ["Leadership"]

_POLL_SECONDS = 1.0


class Leadership:
    """One per process."""

    def __init__(self, store: LedgerStore, settings: Settings, clock: Clock, host: str) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._host = host
        """Equal for two processes only when they compete for one file lock since the same boot (store.leases.HostLock)."""
        self.term = 0
        """0 while another leads."""

    async def acquire(self) -> int:
        """Wait until the lease is free, released, or silent for its whole length and margin; the new term. Raises StoreUnavailableError."""
        dc = self._settings.datacenter
        silence = self._settings.lease_seconds + self._settings.lease_margin_seconds
        seen: Document | None = None
        since = self._clock.monotonic()
        while going_on():
            now = await self._store.lease(dc)
            if now is None or seen is None or (now["term"], now["beat"]) != (seen["term"], seen["beat"]):
                seen, since = now, self._clock.monotonic()
            free = seen is None or seen["released"] or seen["host"] == self._host
            if free or self._clock.monotonic() - since >= silence:
                now_ms = self._clock.now_ms()
                term = await self._store.take_lease(dc, seen, self._settings.node, self._host, now_ms)
                if term is not None:
                    self.term = term
                    return term
            await asyncio.sleep(_POLL_SECONDS)
        raise asyncio.CancelledError

    async def renew(self) -> bool:
        """One heartbeat; False once somebody else leads."""
        return await self._store.renew_lease(self._settings.datacenter, self.term)

    async def release(self) -> None:
        """Let the next one begin at once."""
        await self._store.renew_lease(self._settings.datacenter, self.term, release=True)
        self.term = 0
