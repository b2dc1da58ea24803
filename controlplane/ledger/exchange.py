"""What another datacenter's nodes have learned about routes and counted of messages, fetched every few seconds. No messages: nothing of it is in a log, or proven."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.errors import StoreUnavailableError
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.wire import MAX_COUNTED
from controlplane.store.routing_states import RoutingState, RoutingStates
from controlplane.store.statistics import Statistics
from controlplane.tasks import going_on

__all__ = ["Exchange", "StatisticsExchange", "told"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 3.0
_STATISTICS_SECONDS = 10.0
_OVERLAP_MS = 60_000
"""Fetched again each time: nodes write at once, and by clocks that may differ a little."""


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
            except Exception as error:  # noqa: BLE001 - whatever a peer says, the ledger goes on
                self.problem = told("routing_states_not_fetched", self._client, error, self.problem)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def fetch(self) -> int:
        """Take what is new at the peer; how many. A peer speaks of its own nodes only. Raises PeerError, StoreUnavailableError."""
        dc = self._client.name
        known = await self._states.known(dc)
        found = await self._client.routing_states(known)
        for item in found:
            await self._states.save(RoutingState(dc, item.node, item.at, item.state))
        return len(found)


class StatisticsExchange:
    """One per peer, of the ledger that leads: copies what the peer's nodes counted, so that each datacenter shows all of them."""

    def __init__(self, statistics: Statistics, client: LedgerClient) -> None:
        self._statistics = statistics
        self._client = client
        self.problem = ""
        """Why nothing comes; empty while it does."""

    async def run(self) -> None:
        """Until cancelled."""
        while going_on():
            try:
                await self.fetch()
                self.problem = ""
            except Exception as error:  # noqa: BLE001 - whatever a peer says, the ledger goes on
                self.problem = told("statistics_not_fetched", self._client, error, self.problem)
            await asyncio.sleep(_STATISTICS_SECONDS)

    async def fetch(self) -> int:
        """Take what is new at the peer; how many documents came. Raises PeerError, StoreUnavailableError, ValueError for what is none of it."""
        dc, total = self._client.name, 0
        changed = max(0, await self._statistics.newest_of(dc) - _OVERLAP_MS)
        while going_on():
            documents = await self._client.statistics(changed)
            await self._statistics.copy(dc, documents)
            total += len(documents)
            if len(documents) < MAX_COUNTED:
                break
            changed = max(changed + 1, documents[-1]["changed"])
        return total


def told(event: str, client: LedgerClient, error: Exception, before: str) -> str:
    """What is wrong, logged unless it was so before; with its traceback where nobody expects it."""
    problem = str(error)[:300] or repr(error)
    if problem != before:
        unexpected = not isinstance(error, PeerError | StoreUnavailableError | ValueError)
        _log.warning(event, peer=client.name, reason=problem, exc_info=unexpected)
    return problem
