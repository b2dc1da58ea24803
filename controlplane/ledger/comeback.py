"""Asks a peer, for nodes that have just come back, whether it has taken this datacenter's messages over (`controlplane.store.comebacks`)."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.errors import StoreUnavailableError
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.store.comebacks import Comebacks
from controlplane.tasks import going_on

__all__ = ["Inquiry"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 1.0


class Inquiry:
    """One per peer, of the ledger that leads."""

    def __init__(self, comebacks: Comebacks, client: LedgerClient, datacenter: str) -> None:
        self._comebacks = comebacks
        self._client = client
        self._datacenter = datacenter
        self.problem = ""
        """Why there is no answer; empty where there is, or nobody waits."""

    async def run(self) -> None:
        """Until cancelled."""
        while going_on():
            try:
                await self.step()
                self.problem = ""
            except (PeerError, StoreUnavailableError) as error:
                if self.problem != str(error)[:300]:
                    _log.warning("comeback_not_answered", peer=self._client.name, reason=str(error)[:300])
                self.problem = str(error)[:300]
            await asyncio.sleep(_PAUSE_SECONDS)

    async def step(self) -> bool:
        """Whether somebody waited and has the answer now. An adoption that goes on is none yet. Raises PeerError, StoreUnavailableError."""
        waiting = await self._comebacks.waiting(self._client.name)
        if not waiting:
            return False
        taken = await self._client.taken(self._datacenter)
        if taken.running:
            raise PeerError(f"{self._client.name}: it is taking this datacenter's messages over at this moment")
        await self._comebacks.answer(waiting, self._client.name, taken.terms)
        return True
