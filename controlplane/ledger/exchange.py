"""What another datacenter's nodes have learned about routes, fetched every few seconds. Statistics, no messages: nothing of it is in a log, or proven."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.errors import StoreUnavailableError
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.store.routing_states import RoutingState, RoutingStates
from controlplane.tasks import going_on

__all__ = ["Exchange"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 3.0


class Exchange:
    """One per peer, of the ledger that leads."""

    def __init__(self, states: RoutingStates, client: LedgerClient) -> None:
        self._states = states
        self._client = client
        self.problem = ""
        """Why nothing comes; empty while it does."""

    async def run(self) -> None:
        """Until cancelled."""
        while going_on():
            try:
                await self.fetch()
                self.problem = ""
            except (PeerError, StoreUnavailableError) as error:
                if self.problem != str(error)[:300]:
                    _log.warning("routing_states_not_fetched", peer=self._client.name, reason=str(error)[:300])
                self.problem = str(error)[:300]
            await asyncio.sleep(_PAUSE_SECONDS)

    async def fetch(self) -> int:
        """Take what is new at the peer; how many. A peer speaks of its own nodes only. Raises PeerError, StoreUnavailableError."""
        dc = self._client.name
        known = await self._states.known(dc)
        found = await self._client.routing_states(known)
        for item in found:
            await self._states.save(RoutingState(dc, item.node, item.at, item.state))
        return len(found)
